"""The tables. Migrations follow these definitions.

Every key starts with ``namespace``. Times are UTC with microseconds. Text columns of keys compare
by code point on both databases, so that an order by id is the same on both.

- ``sessions`` is the registry, with counters of each transcript.
- ``messages`` holds the transcripts.
- ``mailboxes`` holds the state of each session's inbox in one narrow row.
- ``inbox`` is the queue. It keeps finished messages as receipts.
- ``questions`` holds the questions of turns to people.
- ``pieces`` holds the replies that running turns stream, until their commits.
- ``schedules`` holds the messages that are sent later, once or again and again.
- ``state_scopes`` and ``state_values`` hold the state that agents keep beside the transcripts.
- ``search_marks`` and ``search_documents`` hold the words of messages, for the search.
- ``tokens`` holds the digests of the tokens of HTTP clients.
- ``waits`` holds the sessions that wait for other sessions now.
- ``write_stamps`` tells which writes were committed whose answers were lost.

A table is imported at its first use (PEP 562), since most commands need two or three. ``metadata``
has all of them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sessionsdb.schema import base
from sessionsdb.schema.base import VERSION_TABLE, BigInt, KeyText, PlainText, UTCDateTime

if TYPE_CHECKING:
    from sessionsdb.schema.base import metadata
    from sessionsdb.schema.tables.mailboxes import first_epoch, inbox, mailboxes
    from sessionsdb.schema.tables.pieces import pieces
    from sessionsdb.schema.tables.questions import questions
    from sessionsdb.schema.tables.schedules import schedules
    from sessionsdb.schema.tables.search import search_documents, search_marks
    from sessionsdb.schema.tables.sessions import (
        CHANNEL_PREFIX,
        PEER_PREFIX,
        messages,
        new_incarnation,
        sessions,
    )
    from sessionsdb.schema.tables.state import state_scopes, state_values
    from sessionsdb.schema.tables.tokens import tokens
    from sessionsdb.schema.tables.waits import waits
    from sessionsdb.schema.tables.write_stamps import write_stamps

__all__ = [
    "CHANNEL_PREFIX",
    "PEER_PREFIX",
    "VERSION_TABLE",
    "BigInt",
    "KeyText",
    "PlainText",
    "UTCDateTime",
    "first_epoch",
    "inbox",
    "mailboxes",
    "messages",
    "metadata",
    "new_incarnation",
    "pieces",
    "questions",
    "schedules",
    "search_documents",
    "search_marks",
    "sessions",
    "state_scopes",
    "state_values",
    "tokens",
    "waits",
    "write_stamps",
]

_NAMES = {
    "mailboxes": ("first_epoch", "inbox", "mailboxes"),
    "pieces": ("pieces",),
    "questions": ("questions",),
    "schedules": ("schedules",),
    "search": ("search_documents", "search_marks"),
    "sessions": ("CHANNEL_PREFIX", "PEER_PREFIX", "messages", "new_incarnation", "sessions"),
    "state": ("state_scopes", "state_values"),
    "tokens": ("tokens",),
    "waits": ("waits",),
    "write_stamps": ("write_stamps",),
}
_FILES = {name: file for file, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name == "metadata":
        for file in _NAMES:
            _tables(file)
        globals()[name] = base.with_options(base.metadata)
    elif name in _FILES:
        globals()[name] = getattr(_tables(_FILES[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return globals()[name]


def _tables(file: str) -> Any:
    return import_module(f"{__name__}.tables.{file}")

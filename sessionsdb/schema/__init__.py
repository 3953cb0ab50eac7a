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
"""

from typing import TYPE_CHECKING, Any

from sessionsdb.schema import base
from sessionsdb.schema.base import VERSION_TABLE, BigInt, KeyText, PlainText, UTCDateTime
from sessionsdb.schema.mailboxes import first_epoch, inbox, mailboxes
from sessionsdb.schema.pieces import pieces
from sessionsdb.schema.questions import questions
from sessionsdb.schema.schedules import schedules
from sessionsdb.schema.search import search_documents, search_marks
from sessionsdb.schema.sessions import (
    CHANNEL_PREFIX,
    PEER_PREFIX,
    messages,
    new_incarnation,
    sessions,
)
from sessionsdb.schema.state import state_scopes, state_values
from sessionsdb.schema.tokens import tokens
from sessionsdb.schema.waits import waits
from sessionsdb.schema.write_stamps import write_stamps

if TYPE_CHECKING:
    from sessionsdb.schema.base import metadata

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


def __getattr__(name: str) -> Any:
    """Return ``metadata`` (PEP 562): its first reader waits for the options of the indices."""
    if name == "metadata":
        globals()[name] = base.with_options(base.metadata)
        return base.metadata
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

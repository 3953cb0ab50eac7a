"""Load whole transcripts. Of a transcript that this process remembers, read the newer rows only.

A write that changes or removes a message adds one to ``sessions.rewrites``. A purge removes
messages without that, and lowers ``message_count``. ``seq`` never goes back. So remembered rows
still stand if three things are true. The session is the same one. It was not rewritten. Its
``message_count`` is the number of the remembered and the new rows together.

A server may lose commits in a failover, or by a restored backup. It gives the lost numbers to other
messages then. So the last remembered message must also have the same time. One case is not noticed:
only rewrites were lost, and the session was rewritten as many times again.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from sys import getsizeof
from typing import NamedTuple

from sqlalchemy import Connection

from sessionsdb.engine.statement import Row
from sessionsdb.messages.codec import Message, decode_rows
from sessionsdb.operations import transcripts
from sessionsdb.operations.dialect import dialect_of
from sessionsdb.operations.history_page import FIRST_SEQ
from sessionsdb.operations.keys import SessionKey

TRANSCRIPT_BYTES, ROW_BYTES = 600, 280
"""The memory of a transcript without its rows, and of a row without its texts."""

_CONTENT, _PAYLOAD = itemgetter(1), itemgetter(2)


class Loaded(NamedTuple):
    """The rows of a transcript, and the state that it had when they were read."""

    rows: Sequence[Row]
    """Oldest first. The first columns are ``role, content, payload``. Nobody changes the list."""
    incarnation: str = ""
    version: int = 0
    rewrites: int = -1
    last_seq: int = FIRST_SEQ
    last_at: str | None = None
    """The time of the message at ``last_seq``, in the text of the database."""
    size: int = 0
    """The memory of the rows in bytes, about. 0: the rows can't be remembered. Their state is not
    known, or the message at ``last_seq`` was removed, and no later load could look for it."""

    def messages(self) -> list[Message]:
        """Return the messages as new objects."""
        return decode_rows(self.rows)


NO_ROWS = Loaded(())
"""Stands for the remembered rows before the first ones are remembered. All rows are read then."""


class Load(NamedTuple):
    """The request for a transcript."""

    key: SessionKey
    remembered: Loaded | None = None
    """``None``: the rows are not to be remembered. Such a load takes 0.8 of the time."""


class Head(NamedTuple):
    """The state of a transcript as ``sessions`` has it."""

    incarnation: str
    version: int
    rewrites: int
    last_seq: int
    last_at: str | None
    """The time of the message at ``last_seq``. ``None``: there is no such message."""
    message_count: int
    remembered_at: str | None
    """The time of the last remembered message."""

    def read_behind(self, remembered: Loaded) -> int:
        """Return the ``seq`` behind which the messages are read.

        The statement of PostgreSQL decides the same in SQL. A repair by hand adds one to
        ``rewrites``, see schema.md. A repair that only adds to ``version`` is noticed too, unless
        another message was appended before this load.
        """
        if (
            self.incarnation == remembered.incarnation
            and self.rewrites == remembered.rewrites
            and (self.version == remembered.version or self.last_seq > remembered.last_seq)
        ):
            return remembered.last_seq
        return FIRST_SEQ


class NewRows(NamedTuple):
    """The answer of a database to one request."""

    head: Head
    rows: Sequence[Row]
    """The rows behind ``head.read_behind(…)``, oldest first."""


def load(connection: Connection, request: Load) -> Loaded | None:
    """Return a transcript, or ``None`` for an unknown session."""
    if request.remembered is None:
        rows = transcripts.load_rows(connection, *request.key)
        return None if rows is None else Loaded(rows)
    new = dialect_of(connection).read_new_rows(connection, request)
    if new is None:
        return None
    loaded = join(request.remembered, new)
    if loaded is None:
        return load(connection, Load(request.key, NO_ROWS))
    return loaded


def join(remembered: Loaded, new: NewRows) -> Loaded | None:
    """Join the remembered rows and the new ones.

    ``None``: the remembered messages are not those of this database.
    """
    head, rows = new
    size = TRANSCRIPT_BYTES
    if head.read_behind(remembered) > FIRST_SEQ:
        if head.remembered_at != remembered.last_at:
            return None
        if len(remembered.rows) + len(rows) != head.message_count:
            return None  # some were purged, or the counters are damaged
        size = remembered.size
        rows = [*remembered.rows, *rows] if rows else remembered.rows
    size = 0 if head.last_at is None else size + _size(new.rows)
    return Loaded(rows, *head[:5], size)


def _size(rows: Sequence[Row]) -> int:
    texts = sum(map(getsizeof, map(_CONTENT, rows)))
    payloads = sum(map(getsizeof, filter(None, map(_PAYLOAD, rows))))
    return ROW_BYTES * len(rows) + texts + payloads

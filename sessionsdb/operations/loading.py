"""Load whole transcripts. Of a transcript that this process remembers, read the newer rows only."""

from __future__ import annotations

from collections.abc import Sequence
from sys import getsizeof
from typing import NamedTuple

from sqlalchemy import Connection

from sessionsdb.engine.statement import Row
from sessionsdb.messages.codec import Message, decode_rows
from sessionsdb.operations import transcripts
from sessionsdb.operations.dialect import dialect_of
from sessionsdb.operations.history_page import FIRST_SEQ
from sessionsdb.operations.keys import SessionKey
from sessionsdb.operations.newer_rows import (
    NO_STATE,
    NewRows,
    ReadState,
    memory_of,
    stand,
)

TRANSCRIPT_BYTES, ROW_BYTES = 600, 230
"""The memory of a transcript without its rows, and of a row without its texts."""


class Loaded(NamedTuple):
    """The rows of a transcript."""

    rows: Sequence[Row]
    """Oldest first. The first columns are ``role, content, payload``. Nobody changes the list."""
    state: ReadState = NO_STATE
    size: int = 0
    """The memory of the rows in bytes, about. 0: the rows can't be remembered."""

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


def load(connection: Connection, request: Load) -> Loaded | None:
    """Return a transcript, or ``None`` for an unknown session."""
    if request.remembered is None:
        rows = transcripts.load_rows(connection, *request.key)
        return None if rows is None else Loaded(rows)
    new = dialect_of(connection).read_new_rows(connection, request.key, request.remembered.state)
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
    rows, size = new.rows, TRANSCRIPT_BYTES + sum(map(_memory_of, new.rows))
    if new.behind > FIRST_SEQ:
        if not stand(remembered.state, new):
            return None
        rows = [*remembered.rows, *rows] if rows else remembered.rows
        size += remembered.size - TRANSCRIPT_BYTES
    is_whole = new.state.last_at is not None and len(rows) == new.state.message_count
    return Loaded(rows, new.state, size if is_whole else 0)


def _memory_of(row: Row) -> int:
    role, content, payload, *_ = row
    size = ROW_BYTES + memory_of(role) + memory_of(content)
    return size if payload is None else size + getsizeof(payload)

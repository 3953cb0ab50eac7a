"""Values that pass between the reads of a follower and the statements of each database."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from sessionsdb.operations.keys import SessionKey


class SessionState(NamedTuple):
    """The row of a look: all that tells whether a follower of the session has something to read.

    Each change that makes an event changes one of these numbers. Two states that are equal but for
    ``generation`` and ``number`` differ in streamed pieces only.
    """

    incarnation: str
    version: int
    last_seq: int
    rewrites: int
    head: int
    tail: int
    pending: int
    last_taken: int
    epoch: int
    leased: bool
    wake_at: datetime | str | None
    closed: bool
    question: int | None
    """The position of the open question that the session is held by."""
    generation: int | None
    """The generation of the newest piece of the running turn. ``None``: it streams nothing."""
    number: int | None
    """The number of that piece."""

    @property
    def without_pieces(self) -> SessionState:
        return self._replace(generation=None, number=None)


STATE_COLUMNS = (
    "coalesce(s.incarnation, '') AS incarnation, s.version, s.last_seq, s.rewrites, "
    "m.head, m.tail, m.pending, m.last_taken, m.epoch, m.owner IS NOT NULL AS leased, m.wake_at, "
    "m.closed, m.question"
)
"""The columns of a ``SessionState`` but the last two, from ``sessions AS s`` and ``mailboxes AS
m``."""


END_COLUMNS = (
    "i.position, i.status, i.epoch, i.attempts, i.error, i.finished_at, i.first_seq, i.last_seq"
)
"""The columns of a message that is finished, from ``inbox AS i``."""


class PieceRequest(NamedTuple):
    """A request for the pieces of a run from ``number`` on."""

    key: SessionKey
    epoch: int
    generation: int
    number: int


class Piece(NamedTuple):
    """A row of ``pieces``: text, or data of a kind."""

    number: int
    start: int
    text: str | None
    kind: str | None
    data: str | None
    written_at: datetime | str


PIECE_COLUMNS = ", ".join(f"p.{name}" for name in Piece._fields)

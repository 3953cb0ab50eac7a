"""The pieces of a running turn, on their way to the database."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sessionsdb.operations.keys import SessionKey


class Run(NamedTuple):
    """One run of a turn: a session and the epoch of the lease."""

    namespace: str
    session_id: str
    epoch: int

    @property
    def key(self) -> SessionKey:
        return (self.namespace, self.session_id)


class Piece(NamedTuple):
    """A piece of the reply's text, or data of a kind."""

    start: int
    """How many characters of text the run has before it."""
    text: str | None = None
    kind: str | None = None
    data: str | None = None
    """The JSON of the data."""


class RunPieces(NamedTuple):
    """The next pieces of one run. A list of them has each run once."""

    run: Run
    generation: int
    """How often the run was written anew, because stored pieces were lost."""
    number: int
    """The number of the first piece: how many pieces of this generation stand before it."""
    pieces: Sequence[Piece]

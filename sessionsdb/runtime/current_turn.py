"""The turn whose handler is running: a handler may not rewrite or stop its own session.

Tasks that a handler starts see its turn too. It is over when the handler has ended, so a task that
goes on longer is no part of it.
"""

from __future__ import annotations

from contextvars import ContextVar

from sessionsdb.operations.keys import SessionKey


class CurrentTurn:
    """A turn whose handler runs, of a session of one open database."""

    __slots__ = ("database", "key", "over")

    def __init__(self, database: object, key: SessionKey) -> None:
        self.database = database
        self.key = key
        self.over = False


_current: ContextVar[CurrentTurn | None] = ContextVar("sessionsdb_turn", default=None)


def enter(database: object, key: SessionKey) -> CurrentTurn:
    """Make this the turn of the current task, until the task ends or ``over`` is set."""
    turn = CurrentTurn(database, key)
    _current.set(turn)
    return turn


def is_inside(database: object, key: SessionKey) -> bool:
    """Return whether the caller is the handler of a turn of this session."""
    turn = _current.get()
    return turn is not None and turn.key == key and turn.database is database and not turn.over

"""The turn whose handler is running: a handler may not rewrite or stop its own session.

Tasks that a handler starts see its turn too. It is over when the handler has ended, so a task that
goes on longer is no part of it.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING

from sessionsdb.errors import InvalidArgument

if TYPE_CHECKING:
    from sessionsdb.operations.inbox_types import Lease
    from sessionsdb.operations.keys import SessionKey
    from sessionsdb.runtime.open_database import OpenDatabase


class CurrentTurn:
    """A turn whose handler runs, of a session of one open database."""

    __slots__ = ("database", "lease", "over")

    def __init__(self, database: OpenDatabase, lease: Lease) -> None:
        self.database = database
        self.lease = lease
        self.over = False


_current: ContextVar[CurrentTurn | None] = ContextVar("sessionsdb_turn", default=None)


def enter(database: OpenDatabase, lease: Lease) -> CurrentTurn:
    """Make this the turn of the current task, until the task ends or ``over`` is set."""
    turn = CurrentTurn(database, lease)
    _current.set(turn)
    return turn


def message_bytes() -> int | None:
    """Return ``Limits.message_bytes`` for the handler that runs. ``None`` outside of a handler."""
    turn = _current.get()
    return None if turn is None else turn.database.limits.message_bytes


def is_inside(database: object, key: SessionKey) -> bool:
    """Return whether the caller is the handler of a turn of this session."""
    return _turn_inside(database, key) is not None


def refuse_to_stop(database: object, key: SessionKey, position: int | None = None) -> None:
    """Raise ``InvalidArgument`` if the caller is the handler of the turn that would be stopped.

    That is the turn of this session. With ``position`` the turn must have that message.
    """
    turn = _turn_inside(database, key)
    if turn is not None and (position is None or position in turn.lease.positions):
        raise InvalidArgument(
            f"session {key[1]} can't stop its own turn from inside the handler: return from the "
            "handler, or raise an error"
        )


def _turn_inside(database: object, key: SessionKey) -> CurrentTurn | None:
    turn = _current.get()
    if turn is None or turn.over or turn.database is not database or turn.lease.key != key:
        return None
    return turn

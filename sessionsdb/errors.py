"""What can go wrong, each with the id, the limit and what to do in its message."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise


class SessionsDBError(Exception):
    """Base of everything this package raises on purpose."""


class InvalidArgument(SessionsDBError, ValueError):
    """An argument that no call could serve; nothing was written."""


class InvalidSessionId(InvalidArgument):
    """An id that is empty, too long, or holds a character no database can keep."""


class InvalidMessage(InvalidArgument):
    """A message that is not a JSON object, is empty, or is too large; nothing was written."""


class UnknownSession(SessionsDBError, LookupError):
    """No such session in this namespace."""

    def __init__(self, session_id: str) -> None:
        super().__init__(f"unknown session: {session_id}")
        self.session_id = session_id


class UnknownReceipt(SessionsDBError, LookupError):
    """No such message: never sent, rolled back, deleted with its session, or past its retention."""

    def __init__(self, session_id: str, position: int) -> None:
        super().__init__(
            f"unknown receipt: message {position} of session {session_id} was never committed, "
            "was deleted with its session, or is past its retention"
        )
        self.session_id = session_id
        self.position = position


class SessionExists(SessionsDBError):
    def __init__(self, session_id: str) -> None:
        super().__init__(
            f"session exists already: {session_id}; pass exist_ok=True to take it as it is, "
            "or update() to change it"
        )
        self.session_id = session_id


class SessionEnded(SessionsDBError):
    def __init__(self, session_id: str) -> None:
        super().__init__(
            f"session has ended: {session_id}; it takes no messages and spawns no children, "
            "register a new session to go on"
        )
        self.session_id = session_id


class SessionHasChildren(SessionsDBError):
    """Refused by ``delete(children="refuse")``."""

    def __init__(self, session_id: str) -> None:
        super().__init__(
            f"session has children: {session_id}; delete them first, "
            'or pass children="cascade" or children="detach"'
        )
        self.session_id = session_id


class VersionConflict(SessionsDBError):
    """Somebody else changed the transcript; nothing was written."""

    def __init__(self, session_id: str, expected: int, actual: int) -> None:
        super().__init__(
            f"session {session_id} is at version {actual}, not {expected}; "
            "load it again and repeat the change"
        )
        self.session_id = session_id
        self.expected = expected
        self.actual = actual


class InboxFull(SessionsDBError):
    """Back-pressure: nothing was written."""

    def __init__(self, session_id: str, limit: int) -> None:
        super().__init__(
            f"inbox of session {session_id} is full: {limit} messages wait already; "
            "try again when its worker has caught up, or raise Limits.pending"
        )
        self.session_id = session_id
        self.limit = limit


class HopLimitReached(SessionsDBError):
    """Sessions would go on answering one another without end: nothing was written."""

    def __init__(self, session_id: str, sender: str, limit: int, origin: str | None = None) -> None:
        begun = f", which began at session {origin}," if origin is not None else ""
        super().__init__(
            f"message from session {sender} to session {session_id} refused: its chain of "
            f"messages{begun} has been handed on {limit} times from session to session, the limit; "
            "finish the turn with an answer instead of a message, or raise Limits.hops"
        )
        self.session_id = session_id
        self.sender = sender
        self.limit = limit
        self.origin = origin


class CircularWait(SessionsDBError):
    """Sessions would wait for one another, and none of them would ever answer."""

    def __init__(self, circle: Sequence[str]) -> None:
        waiter, target = circle[0], circle[1]
        steps = ", and ".join(f"{a} waits for {b}" for a, b in pairwise(circle[1:]))
        why = f"{steps} already" if steps else "its messages are handled after this turn"
        super().__init__(
            f"session {waiter} can't wait for session {target}: {why}; finish the turn without "
            "waiting, the answer can come as a message"
        )
        self.circle = list(circle)
        """The sessions in order, each waiting for the next; the first stands at the end again."""


class IdempotencyConflict(SessionsDBError):
    def __init__(self, session_id: str, key: str) -> None:
        super().__init__(
            f"idempotency key {key!r} was used for session {session_id} with other arguments; "
            "a key names one request, use a new one"
        )
        self.session_id = session_id
        self.key = key


class SpawnDenied(SessionsDBError):
    def __init__(self, parent: str, reason: str) -> None:
        super().__init__(f"session {parent} may not spawn: {reason}")
        self.parent = parent
        self.reason = reason


class LeaseLost(SessionsDBError):
    """The turn was taken away (lease expired, session ended or deleted); nothing was committed."""

    def __init__(self, session_id: str) -> None:
        super().__init__(
            f"lease lost on session {session_id}: it expired, or the session was ended or "
            "deleted; nothing of this turn was committed"
        )
        self.session_id = session_id


class SchemaOutOfDate(SessionsDBError):
    """The database's tables are not at the revision this package works with."""

    def __init__(self, found: str | None, expected: str, *, newer: bool = False) -> None:
        state = "has no sessionsdb tables" if found is None else f"is at revision {found}"
        mend = "upgrade the sessionsdb package" if newer else "run: sessionsdb migrate"
        super().__init__(
            f"the database {state}, this version of sessionsdb needs revision {expected}; {mend}"
        )
        self.found = found
        self.expected = expected


class StorageError(SessionsDBError):
    """The database failed; the driver's error is its ``__cause__``."""

"""Which sessions a caller can see and act on."""

from __future__ import annotations

from typing import Literal, NamedTuple

from sessionsdb.errors import UnknownSession
from sessionsdb.protocols import SessionBroker
from sessionsdb.types import SessionDetails, SessionId, SessionSummary

Visibility = Literal["self", "tree", "namespace"]
"""``self``: the caller's own session. ``tree``: the top of the caller's tree and all below it.
``namespace``: every session of the broker's namespace."""


class NoCaller(Exception):
    """Nobody knows who calls, and for a caller that is not known nothing is in scope."""

    def __init__(self) -> None:
        super().__init__(
            "the caller's session is not known, so nothing is in its scope: the host must set "
            'context.metadata["session_id"] or pass current_session_id to SessionsTool, or '
            'choose visibility="namespace"'
        )


class ScopePage(NamedTuple):
    sessions: list[SessionSummary]
    more: bool


class Scope:
    """What one caller can see. Every tool asks ``session`` or ``page``, and both ask ``holds``
    or give the database its equal: there is no other way to a session."""

    def __init__(
        self, broker: SessionBroker, visibility: Visibility, caller: SessionDetails | None
    ) -> None:
        self._broker = broker
        self.visibility = visibility
        self._caller = caller

    @classmethod
    async def of(
        cls, broker: SessionBroker, visibility: Visibility, caller: SessionId | None
    ) -> Scope:
        """The scope of a caller. Raises ``NoCaller``, and ``UnknownSession`` for a caller that
        does not exist."""
        if visibility == "namespace":
            return cls(broker, visibility, None)
        if caller is None:
            raise NoCaller
        return cls(broker, visibility, await broker.get(caller))

    def holds(self, session: SessionDetails) -> bool:
        """Whether the caller can see this session."""
        if self.visibility == "namespace":
            return True
        if self._caller is None:
            return False
        if self.visibility == "tree":
            return _top(session) == _top(self._caller)
        return session.id == self._caller.id

    async def session(self, id: str) -> SessionDetails:
        """A session in scope. Raises ``UnknownSession`` for one outside, as for one that does
        not exist."""
        session = await self._broker.get(id)
        if not self.holds(session):
            raise UnknownSession(id)
        return session

    async def page(
        self, *, limit: int, after: SessionSummary | None, include_ended: bool
    ) -> ScopePage:
        """The sessions in scope by when they were last active, the longest ago first."""
        root: SessionId | None = None
        if self._caller is not None:
            root = _top(self._caller) if self.visibility == "tree" else self._caller.id
        if self._caller is not None and self.visibility == "self":
            own = [] if after is not None else [(await self._broker.get(self._caller.id)).summary]
            return ScopePage(own[:limit], more=len(own) > limit)
        found = await self._broker.list(
            root=root, include_ended=include_ended, limit=limit + 1, after=after
        )
        return ScopePage(found[:limit], more=len(found) > limit)


def _top(session: SessionDetails) -> SessionId:
    return session.root or session.id

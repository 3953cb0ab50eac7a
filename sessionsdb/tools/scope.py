"""The scope of a caller: the sessions that it can see and act on."""

from __future__ import annotations

from typing import Literal, NamedTuple

from sessionsdb.errors import UnknownSession
from sessionsdb.protocols import SessionBroker
from sessionsdb.types import SearchHit, SessionDetails, SessionId, SessionSummary

Visibility = Literal["self", "below", "tree", "namespace"]
"""``self``: the session of the caller. ``below``: that session and all sessions below it. ``tree``:
the root of the tree of the caller and all sessions below it. ``namespace``: all sessions of the
namespace of the broker."""

OWN_HITS = 100
"""The hits of one query at least, of which only those of the caller's session are shown."""


class NoCaller(Exception):
    """The session of the caller is not known, so no session is in its scope."""

    def __init__(self) -> None:
        super().__init__(
            "the caller's session is not known, so no session is in its scope: the host must set "
            'context.metadata["session_id"], pass current_session_id to SessionsTool, or '
            'choose visibility="namespace"'
        )


class ScopePage(NamedTuple):
    sessions: list[SessionSummary]
    more: bool


class HitPage(NamedTuple):
    hits: list[SearchHit]
    more: bool


class Scope:
    """The sessions that one caller can see and act on.

    Every tool gets its sessions from ``session``, ``page`` or ``search``. ``session`` checks
    ``includes``, and the other two give the database an equal filter.
    """

    def __init__(
        self, broker: SessionBroker, visibility: Visibility, caller: SessionDetails | None
    ) -> None:
        self._broker = broker
        self.visibility = visibility
        self._caller = caller

    @classmethod
    async def of_caller(
        cls, broker: SessionBroker, visibility: Visibility, caller: SessionId | None
    ) -> Scope:
        """Return the scope of a caller.

        Raises ``NoCaller`` without a caller, and ``UnknownSession`` if its session does not exist.
        """
        if visibility == "namespace":
            return cls(broker, visibility, None)
        if caller is None:
            raise NoCaller
        return cls(broker, visibility, await broker.get(caller))

    async def includes(self, session: SessionDetails) -> bool:
        """Return whether the caller can see and act on this session."""
        if self.visibility == "namespace":
            return True
        if self._caller is None:
            return False
        if self.visibility == "tree":
            return _root_id(session) == _root_id(self._caller)
        if session.id == self._caller.id:
            return True
        return self.visibility == "below" and await self.is_below(session, self._caller.id)

    async def is_below(self, session: SessionDetails, ancestor: SessionId) -> bool:
        """Return whether ``ancestor`` is above this session in its tree."""
        parent = session.parent
        passed: set[SessionId] = set()
        while parent is not None and parent != ancestor:
            if parent in passed:  # other code has made a circle of parents
                return False
            passed.add(parent)
            try:
                parent = (await self._broker.get(parent)).parent
            except UnknownSession:  # deleted meanwhile, so nothing is above its children any more
                return False
        return parent is not None

    async def session(self, id: str) -> SessionDetails:
        """Return a session in scope.

        Raises ``UnknownSession`` for a session outside the scope and for one that does not exist.
        """
        session = await self._broker.get(id)
        if not await self.includes(session):
            raise UnknownSession(id)
        return session

    async def page(
        self,
        *,
        limit: int,
        after: SessionSummary | None,
        include_ended: bool,
        newest_first: bool = False,
    ) -> ScopePage:
        """Return a page of the sessions in scope by ``last_active``."""
        root = self._root()
        if self._caller is not None and self.visibility == "self":
            own = [] if after is not None else [(await self._broker.get(self._caller.id)).summary]
            return ScopePage(own[:limit], more=len(own) > limit)
        found = await self._broker.list(
            root=root,
            include_ended=include_ended,
            limit=limit + 1,
            after=after,
            newest_first=newest_first,
        )
        return ScopePage(found[:limit], more=len(found) > limit)

    async def search(self, query: str, *, limit: int, after: str | None) -> HitPage:
        """Return a page of the messages in scope that have the words of ``query``."""
        hits: list[SearchHit] = []
        # With "self" the hits of the sessions below are read too, and left out here.
        count = max(limit + 1, OWN_HITS) if self.visibility == "self" else limit + 1
        while True:
            found = await self._broker.search(query, root=self._root(), limit=count, after=after)
            hits += [hit for hit in found if self._shows(hit)]
            if len(found) < count or len(hits) > limit:
                return HitPage(hits[:limit], more=len(hits) > limit)
            after = found[-1].cursor

    def _shows(self, hit: SearchHit) -> bool:
        """Whether a message below the root of the scope is in it."""
        return self.visibility != "self" or (
            self._caller is not None and hit.session_id == self._caller.id
        )

    def _root(self) -> SessionId | None:
        """The session that all sessions in scope are below, ``None`` for the namespace."""
        if self._caller is None:
            return None
        return _root_id(self._caller) if self.visibility == "tree" else self._caller.id


def _root_id(session: SessionDetails) -> SessionId:
    return session.root or session.id

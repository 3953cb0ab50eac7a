"""SessionsDB: one database of sessions, opened."""

from __future__ import annotations

from types import TracebackType

from sqlalchemy.ext.asyncio import AsyncEngine

from sessionsdb import arguments
from sessionsdb.broker import SqlSessionBroker
from sessionsdb.engine import core, urls
from sessionsdb.engine.core import Core
from sessionsdb.engine.sqlite import Clock, Durability
from sessionsdb.errors import InvalidArgument
from sessionsdb.store import SqlSessionStore
from sessionsdb.types import DEFAULT_NAMESPACE, Limits


class SessionsDB:
    """A database of sessions, as one namespace of it sees it.

    ::

        async with SessionsDB("sqlite:///sessions.db") as db:
            await db.store.append("chat-1", [{"role": "user", "content": "hello"}])
            await db.broker.history("chat-1")

    ``url`` is ``sqlite:///FILE`` (created when it does not exist), ``sqlite://`` (in memory, for
    tests), ``postgresql://USER@HOST/NAME``, or an SQLAlchemy ``AsyncEngine`` over aiosqlite or
    asyncpg, which stays the caller's to dispose of.

    ``migrate``: ``True`` brings the schema up on entry, ``False`` only checks it, ``None`` is
    ``True`` for SQLite and ``False`` for PostgreSQL. Entering raises ``SchemaOutOfDate`` when the
    tables are not what this version needs, and ``StorageError`` when the database can't be opened.

    ``durability``: ``"full"`` survives power loss. ``"normal"`` is faster, and a power loss (not
    a crash of the process) may take the last commits with it: ``synchronous=NORMAL`` on SQLite,
    ``synchronous_commit=off`` on PostgreSQL.

    ``transaction_pooler=True`` is for a PostgreSQL behind pgbouncer in transaction mode.

    A handle belongs to the event loop it was entered in.
    """

    store: SqlSessionStore
    """Load and save transcripts."""
    broker: SqlSessionBroker
    """List, history, send, spawn."""

    def __init__(
        self,
        url: str | AsyncEngine,
        *,
        namespace: str = DEFAULT_NAMESPACE,
        migrate: bool | None = None,
        limits: Limits = Limits(),
        durability: Durability = "full",
        transaction_pooler: bool = False,
        clock: Clock | None = None,
    ) -> None:
        if durability not in ("full", "normal"):
            raise InvalidArgument(f'durability must be "full" or "normal", not {durability!r:.60}')
        self._own = not isinstance(url, AsyncEngine)
        if isinstance(url, AsyncEngine):
            engine = core.adopt_engine(url, durability)
        else:
            engine = core.create_engine(url, durability, transaction_pooler=transaction_pooler)
        if migrate is None:
            migrate = urls.kind(engine.url) == "sqlite"
        self._migrate = migrate
        self._bind(Core(engine, limits, clock), namespace)

    def _bind(self, core: Core, namespace: str) -> None:
        self._core = core
        self.namespace = arguments.namespace(namespace)
        self.store = SqlSessionStore(core, self.namespace)
        self.broker = SqlSessionBroker(core, self.namespace)

    @property
    def engine(self) -> AsyncEngine:
        """The engine, for a caller's own statements beside ours."""
        return self._core.engine

    @property
    def limits(self) -> Limits:
        return self._core.limits

    def in_namespace(self, namespace: str) -> SessionsDB:
        """A handle on another namespace over the same connections; open while this one is.

        Raises ``InvalidArgument`` for a namespace that is not 1 to 64 characters.
        """
        other = SessionsDB.__new__(SessionsDB)
        other._own = False
        other._migrate = False
        other._bind(self._core, namespace)
        return other

    async def __aenter__(self) -> SessionsDB:
        await self._core.enter(upgrade=self._migrate)
        return self

    async def __aexit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        await self._core.leave()
        if self._own:
            await self._core.engine.dispose()

"""SessionsDB: one database of sessions, opened."""

from __future__ import annotations

from collections.abc import Collection
from types import TracebackType
from typing import Literal, cast, get_args

from sqlalchemy.ext.asyncio import AsyncEngine

from sessionsdb import validation
from sessionsdb.broker import SqlSessionBroker
from sessionsdb.engine import urls
from sessionsdb.engine.sqlite.connection import Clock
from sessionsdb.errors import InvalidArgument
from sessionsdb.protocols import SessionBroker, SessionStore
from sessionsdb.runtime import open_database
from sessionsdb.runtime.open_database import OpenDatabase
from sessionsdb.store import SqlSessionStore
from sessionsdb.types import DEFAULT_NAMESPACE, Durability, Limits
from sessionsdb.worker import Handler, Worker
from sessionsdb.worker.options import WorkerOptions
from sessionsdb.worker.retry import Retry


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

    ``transaction_pooler=True`` is for a PostgreSQL behind pgbouncer in transaction mode: nothing is
    kept on a connection. Hints from other processes don't pass such a pooler; polling serves. An
    engine of yours must have been made for it; with it this only leaves out the listener.

    ``limits`` are this handle's, not the database's: give all processes the same. ``clock`` is for
    tests, on SQLite: a function that returns the time.

    A handle belongs to the event loop it was entered in, and serves any number of tasks there.
    """

    store: SessionStore
    """Load and save transcripts."""
    broker: SessionBroker
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
        validation.one_of(durability, get_args(Durability), "durability")
        validation.boolean(transaction_pooler, "transaction_pooler")
        if migrate is not None:
            validation.boolean(migrate, "migrate")
        if clock is not None and not callable(clock):
            raise InvalidArgument(
                "clock must be a function that returns the time, not "
                f"{validation.short_repr(clock)}"
            )
        # Before the engine: what is refused here leaves nothing open.
        limits = validation.limits(limits)
        namespace = validation.namespace(namespace)
        own_engine = not isinstance(url, AsyncEngine)
        if isinstance(url, AsyncEngine):
            engine = open_database.adopt_engine(url, durability)
            if transaction_pooler and urls.kind(engine.url) == "sqlite":
                raise InvalidArgument("transaction_pooler is for PostgreSQL, not for SQLite")
        else:
            engine = open_database.create_engine(
                url, durability, transaction_pooler=transaction_pooler
            )
        if migrate is None:
            migrate = urls.kind(engine.url) == "sqlite"
        self._migrate = migrate
        opened = OpenDatabase(
            engine, limits, clock, own_engine=own_engine, transaction_pooler=transaction_pooler
        )
        self._bind(opened, namespace)

    def _bind(self, database: OpenDatabase, namespace: str) -> None:
        self._database = database
        self.namespace = namespace
        self.store = SqlSessionStore(database, self.namespace)
        self.broker = SqlSessionBroker(database, self.namespace)

    @property
    def engine(self) -> AsyncEngine:
        """The engine, for a caller's own statements beside ours."""
        return self._database.engine

    @property
    def limits(self) -> Limits:
        return self._database.limits

    def in_namespace(self, namespace: str) -> SessionsDB:
        """A handle on another namespace over the same connections; open while this one is.

        Raises ``InvalidArgument`` for a namespace that is not 1 to 64 characters.
        """
        other = SessionsDB.__new__(SessionsDB)
        other._migrate = False
        other._bind(self._database, validation.namespace(namespace))
        return other

    def worker(
        self,
        handler: Handler,
        *,
        concurrency: int = 8,
        batch: int = 1,
        lease_seconds: float = 30.0,
        poll_interval: float = 1.0,
        max_attempts: int = 5,
        retry: Retry | None = None,
        turn_timeout: float | None = None,
        name: str | None = None,
        namespaces: Collection[str] | Literal["*"] | None = None,
    ) -> Worker:
        """A worker that runs ``handler`` over the inboxes of this database.

        ``concurrency``: how many sessions are run at once. ``batch``: how many messages that wait
        in one session a turn is given at most; they are acknowledged together. ``lease_seconds``:
        how long a session is held without a heartbeat, so how long a worker that died delays it.
        ``poll_interval``: seconds between polls when no hint comes. ``max_attempts``: turns begun
        over a message before it is dead. ``retry``: when a failed turn is tried again, by default
        ``Backoff()``. ``turn_timeout``: seconds after which a turn fails, none by default.
        ``name``: how the worker's id begins in logs and tables. ``namespaces``: this handle's
        (``None``), a list of them, or ``"*"`` for every one of the database.

        Raises ``InvalidArgument``.
        """
        scope: list[str] | None = [self.namespace]
        if validation.is_instance(namespaces, str):
            if str.__str__(cast(str, namespaces)) != "*":
                raise InvalidArgument(
                    f'namespaces must be a list, or "*", not {validation.short_repr(namespaces)}'
                )
            scope = None
        elif namespaces is not None:
            scope = validation.namespaces(namespaces)
        options = WorkerOptions.checked(
            handler,
            concurrency=concurrency,
            batch=batch,
            lease_seconds=lease_seconds,
            poll_interval=poll_interval,
            max_attempts=max_attempts,
            retry=retry,
            turn_timeout=turn_timeout,
            name=name,
            namespaces=scope,
        )
        return Worker(self._database, options)

    async def __aenter__(self) -> SessionsDB:
        await self._database.enter(upgrade=self._migrate)
        return self

    async def __aexit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        await self._database.leave()


def open_database_of(db: SessionsDB) -> OpenDatabase:
    """Return the open database behind a handle.

    For ``sessionsdb.admin``, tests and benchmarks: it reads and writes all namespaces. It is no
    part of the public API.
    """
    return db._database

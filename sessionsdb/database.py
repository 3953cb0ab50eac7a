"""``SessionsDB``: the handle on a database of sessions."""

from __future__ import annotations

from collections.abc import Collection
from functools import cached_property, partial
from types import TracebackType
from typing import TYPE_CHECKING, Literal, cast, get_args

from sessionsdb import runtime, validation
from sessionsdb.broker import SqlSessionBroker
from sessionsdb.engine import urls
from sessionsdb.engine.postgresql.search_path import schema_of
from sessionsdb.engine.sqlite.connection import Clock
from sessionsdb.errors import InvalidArgument
from sessionsdb.protocols import SessionBroker, SessionStore
from sessionsdb.runtime import open_database
from sessionsdb.runtime.open_database import OpenDatabase
from sessionsdb.runtime.read_after import ReadAfter, seen_writes
from sessionsdb.runtime.reads import Reads
from sessionsdb.types import DEFAULT_LIMITS, DEFAULT_NAMESPACE, Durability, Limits
from sessionsdb.untrusted_values import short_repr

if TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy.ext.asyncio import AsyncEngine

    from sessionsdb.worker import Handler, Worker
    from sessionsdb.worker.retry import Retry


class SessionsDB:
    """A handle on one namespace of a database of sessions.

    ::

        async with SessionsDB("sqlite:///sessions.db") as db:
            await db.store.append("chat-1", [{"role": "user", "content": "hello"}])
            messages = await db.broker.history("chat-1")

    A handle is used between ``async with`` and its end. Where no such block fits, make the handle
    and use it: it opens at its first use, and ``close`` closes it. It belongs to the event loop in
    which it was opened. Any number of tasks may use it at the same time.

    Arguments:

    ``url``: ``sqlite:///FILE`` (created when it does not exist), ``sqlite://`` (in memory, for
    tests) or ``postgresql://USER@HOST/NAME``. An SQLAlchemy ``AsyncEngine`` over aiosqlite or
    asyncpg also works. The handle does not dispose of such an engine.

    ``namespace``: the tenant, 1 to 64 characters. The store and the broker never read or write
    the rows of another namespace.

    ``migrate``: ``True`` upgrades the schema when the handle is opened, ``False`` only checks it.
    ``None`` is ``True`` for SQLite and ``False`` for PostgreSQL.

    ``limits``: the limits of this handle, which are not stored in the database. Give all processes
    the same ones.

    ``durability``: with ``"full"`` every commit survives a power loss. ``"normal"`` is faster, and
    a power loss may undo the last commits, but a crash of the process does not. It sets
    ``synchronous=NORMAL`` on SQLite and ``synchronous_commit=off`` on PostgreSQL.

    ``transaction_pooler``: ``True`` for a PostgreSQL behind pgbouncer in transaction mode. Then no
    state is kept on a connection. Wake-ups from other processes can't pass such a pooler, so
    polling takes their place. An engine of your own must have been made for the pooler. For it,
    this argument only turns the listener off.

    ``schema``: the PostgreSQL schema that holds all tables, 1 to 63 bytes. ``?schema=NAME`` in the
    URL says the same. Two schemas of one database are two installations. Without a schema the
    ``search_path`` of the role decides. Processes hear each other's wake-ups only if all of them
    name the schema, or none does. SQLite has files in place of schemas.

    ``clock``: for tests, on SQLite: a function that returns the time.

    ``read_url``: standbys of the PostgreSQL server, for the handles that ``on_standby`` returns.
    No other handle reads there. Several hosts are allowed, and a standby is preferred.

    Raises ``InvalidArgument`` for arguments that can't be used. Entering the handle, ``open`` and
    the first use raise ``SchemaOutOfDate`` when the tables do not fit this version of the package.
    They raise ``StorageError`` when the database can't be opened.
    """

    namespace: str
    """The namespace of this handle."""
    broker: SessionBroker
    """Register and list sessions, read history, send messages, spawn children, wait for replies."""

    def __init__(
        self,
        url: str | AsyncEngine,
        *,
        namespace: str = DEFAULT_NAMESPACE,
        migrate: bool | None = None,
        limits: Limits = DEFAULT_LIMITS,
        durability: Durability = "full",
        transaction_pooler: bool = False,
        schema: str | None = None,
        clock: Clock | None = None,
        read_url: str | None = None,
    ) -> None:
        validation.one_of(durability, get_args(Durability), "durability")
        validation.boolean(transaction_pooler, "transaction_pooler")
        if migrate is not None:
            validation.boolean(migrate, "migrate")
        if clock is not None and not callable(clock):
            raise InvalidArgument(
                f"clock must be a function that returns the time, not {short_repr(clock)}"
            )
        # Checked before the engine is created, so that a refused argument leaves nothing open.
        limits = validation.limits(limits)
        namespace = validation.namespace(namespace)
        given = urls.engine_of(url)
        engine: Engine | AsyncEngine
        if given is not None:
            engine = open_database.adopt_engine(given, durability, schema=schema)
            if transaction_pooler and urls.kind(engine.url) == "sqlite":
                raise InvalidArgument("transaction_pooler is for PostgreSQL, not for SQLite")
        else:
            engine = open_database.engine_for(
                cast(str, url), durability, transaction_pooler=transaction_pooler, schema=schema
            )
        read_engine = None
        if read_url is not None:
            read_engine = open_database.create_read_engine(
                read_url, engine, transaction_pooler=transaction_pooler
            )
        if migrate is None:
            migrate = urls.kind(engine.url) == "sqlite"
        opened = OpenDatabase(
            engine,
            limits,
            clock,
            own_engine=given is None,
            upgrade=migrate,
            transaction_pooler=transaction_pooler,
            read_engine=read_engine,
        )
        self._bind(opened, namespace)

    def _bind(
        self,
        database: OpenDatabase,
        namespace: str,
        *,
        on_standby: bool = False,
        after: ReadAfter = None,
    ) -> None:
        self._database = database
        self._on_standby = on_standby
        self.namespace = namespace
        self._reads: Reads = database
        if on_standby and database.standby is not None:
            self._reads = database.standby.view(namespace, after)
        self.broker = SqlSessionBroker(database, self.namespace, self._reads)

    @cached_property
    def store(self) -> SessionStore:
        """Load and save transcripts."""
        # Many commands only read, by the broker, and start faster without its modules.
        from sessionsdb.store import SqlSessionStore

        return SqlSessionStore(self._database, self.namespace, self._reads)

    @property
    def engine(self) -> AsyncEngine:
        """The SQLAlchemy engine, for SQL statements of your own.

        With a ``schema`` its transactions find the tables of that schema. Name the schema of all
        other tables, as in ``public.orders``.
        """
        return self._database.engine

    @property
    def schema(self) -> str | None:
        """The schema that was given, on PostgreSQL."""
        return schema_of(self._database.sync_engine)

    @property
    def limits(self) -> Limits:
        """The limits of this handle."""
        return self._database.limits

    def in_namespace(self, namespace: str) -> SessionsDB:
        """Return a handle on another namespace that shares the connections of this one.

        It opens and closes with this one, and need not be entered. Raises ``InvalidArgument`` for a
        namespace that is not 1 to 64 characters long.
        """
        other = SessionsDB.__new__(SessionsDB)
        other._bind(self._database, validation.namespace(namespace), on_standby=self._on_standby)
        return other

    def on_standby(self, *, after: ReadAfter = None) -> SessionsDB:
        """Return a handle on this namespace that reads pages and lists from the standby.

        These reads may be older than the last commits: ``broker.history``, ``list``, ``search``,
        ``inbox``, ``dead_letters``, ``questions``, ``schedules``, ``store.entries``, ``list``,
        ``list_paginated``, and reports. ``broker.follow`` reads there, and is at most some seconds
        behind the primary. All other methods use the primary as ever: writes, and
        the reads by which a caller decides, such as ``get``, ``load``, ``version`` and ``outcome``.

        ``after``: a write that each of these reads must see. A ``Receipt`` is its message in the
        inbox. A final ``Outcome`` is the end of its message, with the reply. A dict has versions of
        transcripts by id, as ``save`` and ``append`` return them. A read waits up to 1 second for
        the standby to have the write, and then goes to the primary. It goes there at once while the
        standby can't be reached, and where the standby gives an error.

        Without ``read_url`` all reads go to the primary. The handle opens and closes with this one.
        Raises ``InvalidArgument``.
        """
        seen_writes(after)
        other = SessionsDB.__new__(SessionsDB)
        other._bind(self._database, self.namespace, on_standby=True, after=after)
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
        index_search: bool = False,
    ) -> Worker:
        """Return a worker that runs ``handler`` for the sessions that have messages.

        ``concurrency``: how many sessions run at the same time.

        ``batch``: how many messages of one session a turn gets at most. They are committed
        together.

        ``lease_seconds``: how long a session is leased without a heartbeat, so how long a dead
        worker delays it. A heartbeat is sent every third of this.

        ``poll_interval``: seconds between two polls when no wake-up comes.

        ``max_attempts``: how many turns may be started for a message before it is dead.

        ``retry``: the delay before a failed turn is tried again, by default ``Backoff()``.

        ``turn_timeout``: seconds after which a turn fails, by default never.

        ``name``: the beginning of the worker's id in logs and tables.

        ``namespaces``: a list of namespaces, or ``"*"`` for all namespaces of the database. By
        default the namespace of this handle.

        ``index_search``: keep the index of ``broker.search`` up to date, with half of the time at
        most, and 3% while turns run. ``run_until_idle`` returns with an index that has all
        messages. One worker with it is enough.

        Raises ``InvalidArgument``.
        """
        # Most processes run no worker, and start faster without its modules.
        from sessionsdb.worker import Worker
        from sessionsdb.worker.options import WorkerOptions

        scope = [self.namespace] if namespaces is None else validation.namespaces(namespaces)
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
            index_search=index_search,
            broker_of=partial(SqlSessionBroker, self._database),
        )
        return Worker(self._database, options)

    async def index_search(self, *, all_namespaces: bool = False) -> int:
        """Bring the index of ``broker.search`` up to date, and return how many messages it got.

        It then has every message that was committed before the call. 10,000 unchanged sessions take
        about 0.1 s. With ``all_namespaces`` the whole database is indexed. A
        worker with ``index_search=True`` does the same in the background.

        Raises ``SearchUnavailable`` if SQLite has no FTS5.
        """
        everywhere = validation.boolean(all_namespaces, "all_namespaces")
        namespace = None if everywhere else self.namespace
        return await runtime.search_indexer.index_all(self._database, namespace)

    async def open(self) -> SessionsDB:
        """Open the database now, and return this handle. It stays open until ``close``.

        Does nothing if it is open. Raises ``SchemaOutOfDate``, and ``StorageError`` when the
        database can't be opened. Afterwards the handle can be used as if it had never been opened.
        """
        await self._database.open()
        return self

    async def close(self) -> None:
        """Close the database, for this handle and for its handles of other namespaces.

        Waits for the writes under way. Waits and followers under way, and later calls, raise
        ``SessionsDBError``, until the handle is opened or entered again. Does nothing if it is
        closed.
        """
        await self._database.close()

    async def __aenter__(self) -> SessionsDB:
        await self._database.enter()
        return self

    async def __aexit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        await self._database.leave()


def reads_of(db: SessionsDB) -> Reads | None:
    """Return the reads of a handle from ``on_standby`` with a standby, ``None`` for all others."""
    return None if db._reads is db._database else db._reads


def open_database_of(db: SessionsDB) -> OpenDatabase:
    """Return the open database of a handle: it runs operations on the rows of all namespaces.

    It is for ``sessionsdb.admin``, ``sessionsdb.adapters``, tests and benchmarks, and no part of
    the public API.
    """
    return db._database

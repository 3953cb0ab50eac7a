"""A handle for code without an event loop: Flask, Django, scripts, notebooks.

The methods have the names, the arguments and the answers of the asynchronous ones. Each of them
blocks its thread until the answer is there. The work runs in an event loop in a thread of its own.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Mapping
from datetime import datetime
from types import TracebackType
from typing import Any, Concatenate, Literal, ParamSpec, Protocol, TypeVar, cast, overload

from sessionsdb.database import SessionsDB as AsyncSessionsDB
from sessionsdb.engine.sqlite.connection import Clock
from sessionsdb.errors import InvalidArgument
from sessionsdb.events import Event
from sessionsdb.protocols import SessionBroker, SessionStore
from sessionsdb.runtime.loop_thread import LoopThread
from sessionsdb.runtime.read_after import ReadAfter
from sessionsdb.types import (
    DEFAULT_LIMITS,
    DEFAULT_NAMESPACE,
    Durability,
    Limits,
    SessionDetails,
    SessionSummary,
)
from sessionsdb.untrusted_values import short_repr

__all__ = ["BlockingSessionBroker", "BlockingSessionStore", "SessionsDB"]

P = ParamSpec("P")
R = TypeVar("R")


class _Blocking:
    """The blocking form of an object with coroutine methods."""

    def __init__(self, target: SessionStore | SessionBroker, thread: LoopThread) -> None:
        self._target = target
        self._thread = thread


def _blocking(
    method: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[Any, P], R]:
    """Return the blocking form of a coroutine method, with its signature and its docstring."""

    def call(self: _Blocking, /, *args: P.args, **kwargs: P.kwargs) -> R:
        bound: Callable[P, Coroutine[Any, Any, R]] = getattr(self._target, method.__name__)
        return self._thread.run(lambda: bound(*args, **kwargs))

    functools.update_wrapper(call, method)
    return call


class _ListSessions(Protocol):
    """The type of the blocking ``list``. ``ParamSpec`` holds one signature, not three."""

    @overload
    def __call__(
        self,
        *,
        channel: str | None = None,
        peer: str | None = None,
        parent: str | None = None,
        root: str | None = None,
        active_since: datetime | None = None,
        include_ended: bool = False,
        limit: int | None = None,
        after: SessionSummary | str | None = None,
        newest_first: bool = False,
        details: Literal[False] = False,
    ) -> list[SessionSummary]: ...

    @overload
    def __call__(
        self,
        *,
        channel: str | None = None,
        peer: str | None = None,
        parent: str | None = None,
        root: str | None = None,
        active_since: datetime | None = None,
        include_ended: bool = False,
        limit: int | None = None,
        after: SessionSummary | str | None = None,
        newest_first: bool = False,
        details: Literal[True],
    ) -> list[SessionDetails]: ...

    @overload
    def __call__(
        self,
        *,
        channel: str | None = None,
        peer: str | None = None,
        parent: str | None = None,
        root: str | None = None,
        active_since: datetime | None = None,
        include_ended: bool = False,
        limit: int | None = None,
        after: SessionSummary | str | None = None,
        newest_first: bool = False,
        details: bool,
    ) -> list[SessionSummary] | list[SessionDetails]: ...


class BlockingSessionStore(_Blocking):
    """The blocking form of ``SessionStore``. ``SessionStore`` documents each method."""

    load = _blocking(SessionStore.load)
    save = _blocking(SessionStore.save)
    append = _blocking(SessionStore.append)
    entries = _blocking(SessionStore.entries)
    find = _blocking(SessionStore.find)
    edit = _blocking(SessionStore.edit)
    pop = _blocking(SessionStore.pop)
    truncate = _blocking(SessionStore.truncate)
    replace = _blocking(SessionStore.replace)
    state = _blocking(SessionStore.state)
    update_state = _blocking(SessionStore.update_state)
    version = _blocking(SessionStore.version)
    list = _blocking(SessionStore.list)
    list_paginated = _blocking(SessionStore.list_paginated)
    delete = _blocking(SessionStore.delete)


class BlockingSessionBroker(_Blocking):
    """The blocking form of ``SessionBroker``. ``SessionBroker`` documents each method.

    ``send`` takes no ``connection``: a transaction of another event loop can't be used here.
    """

    register = _blocking(SessionBroker.register)
    get = _blocking(SessionBroker.get)
    update = _blocking(SessionBroker.update)
    list = cast(_ListSessions, _blocking(SessionBroker.list))
    fork = _blocking(SessionBroker.fork)
    end = _blocking(SessionBroker.end)
    reopen = _blocking(SessionBroker.reopen)
    history = _blocking(SessionBroker.history)
    search = _blocking(SessionBroker.search)
    send = _blocking(SessionBroker.send)
    spawn = _blocking(SessionBroker.spawn)
    outcome = _blocking(SessionBroker.outcome)
    wait = _blocking(SessionBroker.wait)
    cancel = _blocking(SessionBroker.cancel)
    interrupt = _blocking(SessionBroker.interrupt)
    questions = _blocking(SessionBroker.questions)
    answer = _blocking(SessionBroker.answer)
    schedule = _blocking(SessionBroker.schedule)
    schedules = _blocking(SessionBroker.schedules)
    unschedule = _blocking(SessionBroker.unschedule)
    inbox = _blocking(SessionBroker.inbox)
    dead_letters = _blocking(SessionBroker.dead_letters)
    requeue = _blocking(SessionBroker.requeue)
    requeue_all = _blocking(SessionBroker.requeue_all)

    def follow(
        self,
        id: str,
        *,
        after: str | int | Mapping[str, str] | None = None,
        subtree: bool = False,
    ) -> Generator[Event, None, None]:
        """Iterate over the events of a session, as ``SessionBroker.follow`` documents.

        Each step blocks until the next event. Closing or dropping the iterator frees everything.
        """
        assert isinstance(self._target, SessionBroker)
        events = self._target.follow(id, after=after, subtree=subtree)
        try:
            while (event := self._thread.run(lambda: _next_event(events))) is not None:
                yield event
        finally:
            self._thread.release(lambda: _close_events(events))


def run_in_loop(db: SessionsDB, call: Callable[[AsyncSessionsDB], Coroutine[Any, Any, R]]) -> R:
    """Run a coroutine over the asynchronous handle of ``db``, in its loop, and return its answer.

    For other parts of this package. Applications have no use of that handle.
    """
    return db._thread.run(lambda: call(db._handle))


async def _next_event(events: AsyncGenerator[Event, None]) -> Event | None:
    return await anext(events, None)


async def _close_events(events: AsyncGenerator[Event, None]) -> None:
    # "Already running": Ctrl-C has cancelled a step that has not ended yet. Its end closes it.
    with contextlib.suppress(RuntimeError):
        await events.aclose()


class SessionsDB:
    """A blocking handle on one namespace of a database of sessions.

    ::

        with SessionsDB("sqlite:///sessions.db") as db:
            db.store.append("chat-1", [{"role": "user", "content": "hello"}])
            messages = db.broker.history("chat-1")

    ``url`` is a text: an engine of your own belongs to its own event loop. All other arguments are
    those of ``sessionsdb.SessionsDB``. The errors are the same, too.

    The handle opens at its first use, and ``close`` closes it. Any number of threads may use it at
    the same time. A process that forks makes the handle before the fork and uses it only after, or
    makes it after the fork. A handle that was opened before the fork raises
    ``HandleOpenedElsewhere`` in the child.

    Handlers are asynchronous, so there is no ``worker`` here. Run ``sessionsdb worker``, or a
    ``Worker`` of the asynchronous handle in its own process.
    """

    namespace: str
    """The namespace of this handle."""
    store: BlockingSessionStore
    """Load and save transcripts."""
    broker: BlockingSessionBroker
    """Register and list sessions, read history, send messages, spawn children, wait for replies."""

    def __init__(
        self,
        url: str,
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
        if not isinstance(url, str):
            raise InvalidArgument(f"url must be a text, not {short_repr(url)}")
        handle = AsyncSessionsDB(
            url,
            namespace=namespace,
            migrate=migrate,
            limits=limits,
            durability=durability,
            transaction_pooler=transaction_pooler,
            schema=schema,
            clock=clock,
            read_url=read_url,
        )
        self._bind(handle, LoopThread())

    def _bind(self, handle: AsyncSessionsDB, thread: LoopThread) -> None:
        self._handle = handle
        self._thread = thread
        self.namespace = handle.namespace
        self.store = BlockingSessionStore(handle.store, thread)
        self.broker = BlockingSessionBroker(handle.broker, thread)

    @property
    def schema(self) -> str | None:
        """The schema that was given, on PostgreSQL."""
        return self._handle.schema

    @property
    def limits(self) -> Limits:
        """The limits of this handle."""
        return self._handle.limits

    def in_namespace(self, namespace: str) -> SessionsDB:
        """Return a handle on another namespace that shares the connections of this one.

        It opens and closes with this one. Raises ``InvalidArgument`` for a namespace that is not 1
        to 64 characters long.
        """
        other = SessionsDB.__new__(SessionsDB)
        other._bind(self._handle.in_namespace(namespace), self._thread)
        return other

    def on_standby(self, *, after: ReadAfter = None) -> SessionsDB:
        """Return a handle that reads pages and lists from the standby.

        The same as in ``sessionsdb.SessionsDB``.
        """
        other = SessionsDB.__new__(SessionsDB)
        other._bind(self._handle.on_standby(after=after), self._thread)
        return other

    def index_search(self, *, all_namespaces: bool = False) -> int:
        """Bring the index of ``broker.search`` up to date, and return how many messages it got.

        The same as in ``sessionsdb.SessionsDB``.
        """
        return self._thread.run(lambda: self._handle.index_search(all_namespaces=all_namespaces))

    def open(self) -> SessionsDB:
        """Open the database now, and return this handle. It stays open until ``close``.

        Does nothing if it is open. Raises ``SchemaOutOfDate``, and ``StorageError`` when the
        database can't be opened.
        """
        self._thread.open(self._handle.open)
        return self

    def close(self) -> None:
        """Close the database, for this handle and for its handles of other namespaces.

        Waits for the writes under way. Other calls under way and later calls raise
        ``SessionsDBError``, until the handle is opened or entered again. Does nothing if it is
        closed.
        """
        self._thread.close(self._handle.close)

    def __enter__(self) -> SessionsDB:
        return self.open()

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.close()

"""Run the calls of a blocking handle in an event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

from sessionsdb.errors import HandleOpenedElsewhere, SessionsDBError, StorageError

R = TypeVar("R")


class _Call(Generic[R]):
    """A coroutine in the loop, and the wait of its caller's thread.

    A handler of signals may interrupt its caller anywhere and make another call. So the wait holds
    no lock that the loop's thread takes, as that of a ``concurrent.futures.Future`` does.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, R]) -> None:
        self._coroutine = coroutine
        self._task: asyncio.Task[R] | None = None
        self._running = threading.Lock()
        self._running.acquire()

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(self._start)
        if loop.is_closed() and self._task is None:
            self._coroutine.close()
            self._running.release()

    def _start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._coroutine)
        self._task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[R]) -> None:
        if not task.cancelled():
            task.exception()  # marks it as retrieved: its caller may have been interrupted
        self._running.release()

    def result(self, loop: asyncio.AbstractEventLoop) -> R:
        """Wait for the answer. Where the wait is interrupted, the coroutine is cancelled."""
        try:
            self._running.acquire()
        except BaseException:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._cancel)
            raise
        if self._task is None or self._task.cancelled():
            raise SessionsDBError("this handle was closed during the call")
        return self._task.result()

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()


class LoopThread:
    """An event loop in a thread. It starts with the first call, and ends with ``close``.

    A handler of signals may interrupt any method in the main thread and call each of them. So the
    one lock is reentrant.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._stopped = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._process = os.getpid()
        self._releases: set[asyncio.Task[None]] = set()

    def run(self, call: Callable[[], Coroutine[Any, Any, R]]) -> R:
        """Run the coroutine in the loop, and return its answer.

        Where the waiting thread is interrupted, as by ``KeyboardInterrupt``, the coroutine is
        cancelled. Raises ``SessionsDBError`` after ``close``.
        """
        self._check_place()
        # ``close`` takes the lock too: no other thread stops the loop before it has the call.
        with self._lock:
            loop = self._started()
            one = _Call(call())
            one.start(loop)
        return one.result(loop)

    def release(self, call: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Start a coroutine that frees something, where the loop still runs. Return at once.

        The end of the loop frees everything. The garbage collector may call this at any moment: in
        the loop's own thread, or in a thread that holds the lock. At the end of the program no
        other thread runs. So this takes no lock and waits for nothing.
        """
        loop = self._loop
        if loop is None or sys.is_finalizing() or self._process != os.getpid():
            return
        with contextlib.suppress(RuntimeError):  # the loop was closed by another thread
            loop.call_soon_threadsafe(self._start_release, call)

    def _start_release(self, call: Callable[[], Coroutine[Any, Any, None]]) -> None:
        # The loop itself keeps no task alive.
        task = asyncio.ensure_future(call())
        self._releases.add(task)
        task.add_done_callback(self._releases.discard)

    def open(self, call: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        """Run a coroutine that opens the database, also after ``close``."""
        self._check_place()
        with self._lock:
            self._stopped = False
            self.run(call)

    def close(self, call: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run a coroutine that closes the database, and stop. Do nothing if it has stopped."""
        self._check_place()
        with self._lock:
            if self._loop is not None:
                try:
                    self.run(call)
                except SessionsDBError:
                    if not self._stopped:  # a handler of signals has closed it meanwhile
                        raise
            self._stop()

    def _check_place(self) -> None:
        if self._loop is not None and self._process != os.getpid():
            raise HandleOpenedElsewhere(self._process)
        if threading.current_thread() is self._thread:
            raise SessionsDBError(
                "a blocking call inside of the handle's own event loop would wait for itself; use "
                "sessionsdb.SessionsDB there"
            )

    def _started(self) -> asyncio.AbstractEventLoop:
        """Return the loop, and start one if there is none. Raises ``SessionsDBError`` after
        ``close``."""
        if self._loop is None and not self._stopped:
            self._start()
        loop = self._loop
        if loop is None:
            raise SessionsDBError(
                "this handle was closed; use it inside `with db`, or open it again with `db.open()`"
            )
        return loop

    def _start(self) -> None:
        ready: Future[asyncio.AbstractEventLoop] = Future()
        try:
            # A daemon: a program that does not close its handle ends all the same.
            thread = threading.Thread(target=_serve, args=(ready,), name="sessionsdb", daemon=True)
            thread.start()
            loop, process = ready.result(), os.getpid()
        except OSError as error:
            raise StorageError(f"no event loop could be started: {error}") from error
        except BaseException:
            ready.add_done_callback(_stop_loop)
            raise
        # A handler of signals may have closed the handle meanwhile, or opened it again. None runs
        # between this look and the next line, since no function is called there.
        if self._loop is None and not self._stopped:
            self._loop, self._thread, self._process = loop, thread, process
        else:
            _stop_loop(ready)

    def _stop(self) -> None:
        """Cancel the calls under way, and end the thread."""
        with self._lock:
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
            self._stopped = True
            if loop is not None:
                loop.call_soon_threadsafe(loop.stop)
            if thread is not None:
                thread.join()


def _serve(ready: Future[asyncio.AbstractEventLoop]) -> None:
    runner = asyncio.Runner()
    try:
        loop = runner.get_loop()
    except BaseException as error:  # for example no file descriptor is left
        ready.set_exception(error)
        return
    with runner:
        ready.set_result(loop)
        loop.run_forever()


def _stop_loop(ready: Future[asyncio.AbstractEventLoop]) -> None:
    if ready.exception() is None:
        loop = ready.result()
        loop.call_soon_threadsafe(loop.stop)

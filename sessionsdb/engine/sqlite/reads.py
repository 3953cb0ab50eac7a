"""Run reads on a few connections. Reads that wait for one run as a group, in one hop."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

from sessionsdb.engine.fair_turns import FairTurns
from sessionsdb.engine.runner import NotOpen, Operation
from sessionsdb.engine.sqlite.connection import SqliteConnection
from sessionsdb.engine.sqlite.transaction import run_read
from sessionsdb.engine.tasks import BackgroundTasks

T = TypeVar("T")

GROUP_SECONDS = 0.002
"""A group begins no further read after this time, so that its callers get their answers.

A page of 50 entries takes 169 µs of processor time in groups of 1 to 3 ms, and 212 µs in groups of
10 ms: the values that wait for their callers no longer fit into the processor's cache.
"""


class _Waiting(NamedTuple):
    """A read that waits for a connection."""

    operation: Operation[Any]
    answer: asyncio.Future[Any]


class _Finished(NamedTuple):
    """The result of a read, or its error."""

    answer: asyncio.Future[Any]
    result: Any
    error: BaseException | None


class _Group:
    """Reads that run one after the other in one hop, each in a transaction of its own.

    The thread of the connection takes them out of the list and puts their results into another.
    The event loop may do both at the same time, so each step is one call of a deque.
    """

    def __init__(self, reads: deque[_Waiting]) -> None:
        self._waiting = reads
        self._finished: deque[_Finished] = deque()

    def run(
        self, reader: SqliteConnection, in_memory: bool, note_progress: Callable[[], None]
    ) -> None:
        """Run the reads, on the thread of the connection, until the time of a group is over."""
        end = time.monotonic() + GROUP_SECONDS
        while True:
            try:
                operation, answer = self._waiting.popleft()
            except IndexError:
                return
            if answer.cancelled():
                continue
            try:
                result = run_read(reader, operation, in_memory)
            except BaseException as error:
                self._finished.append(_Finished(answer, None, error))
            else:
                self._finished.append(_Finished(answer, result, None))
            note_progress()
            if reader.is_distrusted or time.monotonic() > end:
                return

    def answer_finished(self) -> None:
        """Answer the callers whose reads are finished, on the event loop."""
        while self._finished:
            answer, result, error = self._finished.popleft()
            if answer.done():  # cancelled
                continue
            if error is None:
                answer.set_result(result)
            else:
                answer.set_exception(error)

    def take_rest(self) -> list[_Waiting]:
        """Take out the reads that have not begun, in the order of the calls."""
        rest = []
        with contextlib.suppress(IndexError):
            while True:
                rest.append(self._waiting.pop())
        return rest[::-1]


class Readers:
    """The connections that read, and the reads that wait for them.

    A lone read has a hop to the thread of a connection for itself: 25 µs, as much as half a page of
    50 rows. Of many callers the waiting reads share a hop. The callers of a group are answered
    together, so the event loop and the thread seldom contend for Python's lock. For 64 callers a
    page of 50 entries takes 169 µs of processor time in groups, and 313 µs in a hop each.
    """

    def __init__(
        self, connections: list[SqliteConnection], *, in_memory: bool, is_open: Callable[[], bool]
    ) -> None:
        self._idle = connections
        self._in_memory = in_memory
        self._is_open = is_open
        # Two concurrent readers contend for Python's lock. The second is for slow statements.
        self._turns = FairTurns(usual=1, most=len(connections))
        self._waiting: deque[_Waiting] = deque()
        self._is_collecting = False
        """Whether a task waits for a connection to run the waiting reads on."""
        self._groups: list[_Group] = []
        self._tasks = BackgroundTasks()

    async def run(self, operation: Operation[T]) -> T:
        """Run a read, in the order of the calls."""
        if self._waiting or not self._turns.enter_at_once():
            return await self._wait(operation)
        is_over = True
        try:
            reader = self._idle.pop()
            try:
                result = await reader.run(partial(run_read, reader, operation, self._in_memory))
            except asyncio.CancelledError:
                is_over = False
                self._tasks.start(self._give_back(reader))
                raise
            except BaseException:
                self._idle.insert(0, reader)
                raise
            self._idle.append(reader)
            return result
        finally:
            if is_over:
                self._turns.leave()

    async def drain(self) -> None:
        """Wait until no group runs, and no read that was given up. Reads that wait then raise
        ``NotOpen``."""
        await self._tasks.drain()

    async def _give_back(self, reader: SqliteConnection) -> None:
        """Leave the turn of a cancelled read at its end. It may still run on its thread.

        Otherwise callers that try a slow read again and again would pile up reads there.
        """
        try:
            await reader.settle()
        finally:
            self._idle.insert(0, reader)
            self._turns.leave()

    async def _wait(self, operation: Operation[T]) -> T:
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(operation, answer))
        self._collect()
        return await answer

    def _collect(self) -> None:
        """Have the waiting reads run as a group when there is a connection for them."""
        if not self._is_collecting:
            self._is_collecting = True
            self._tasks.start(self._run_group())

    async def _run_group(self) -> None:
        try:
            if not self._turns.enter_at_once():
                await self._turns.enter()
        finally:
            self._is_collecting = False
        try:
            for stalled in self._groups:  # its read is slow: the others need not wait for it
                stalled.answer_finished()
                self._wait_again(stalled.take_rest())
            if not self._waiting:
                return
            group, self._waiting = _Group(self._waiting), deque()
            # The next one is admitted when this group ends or stalls. So it gets the connection
            # before the callers that come again, and none of them takes it for one read.
            self._collect()
            await self._run(group)
        finally:
            self._turns.leave()
            if self._waiting:
                self._collect()

    async def _run(self, group: _Group) -> None:
        self._groups.append(group)
        try:
            if not self._is_open():  # it may have been closed during the wait
                raise NotOpen
            reader = self._idle.pop()
            try:
                await reader.run(
                    partial(group.run, reader, self._in_memory, self._turns.note_progress)
                )
            except BaseException:
                self._idle.insert(0, reader)
                raise
            self._idle.append(reader)
        except Exception as error:  # no read has begun
            for _, answer in group.take_rest():
                if not answer.done():
                    answer.set_exception(error)
        finally:
            self._groups.remove(group)
            group.answer_finished()
            self._wait_again(group.take_rest())

    def _wait_again(self, reads: list[_Waiting]) -> None:
        """Put reads back to the front."""
        self._waiting.extendleft(reversed(reads))

"""The greenlet that runs the operations of a connection to PostgreSQL."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import weakref
from typing import Any

import pytest
from greenlet import getcurrent, greenlet
from sqlalchemy.util import await_only

from sessionsdb.engine.postgresql.operation_greenlet import OperationGreenlet

CONNECTION: Any = "the connection"

request_id = contextvars.ContextVar[Any]("request_id", default=None)


class Value:
    """An object to which a weak reference can be made."""


async def test_operations_run_in_one_greenlet_and_may_await() -> None:
    operations = OperationGreenlet()

    def operation(connection: Any) -> tuple[Any, str, int]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[str] = loop.create_future()
        loop.call_soon(future.set_result, "answered")

        async def answer() -> str:
            return await future

        return connection, await_only(answer()), id(getcurrent())

    first = await operations.run(operation, CONNECTION)
    second = await operations.run(operation, CONNECTION)
    assert first == second == (CONNECTION, "answered", first[2])
    assert first[2] != id(getcurrent())


async def test_an_error_is_raised_and_the_next_operation_runs() -> None:
    operations = OperationGreenlet()

    async def fail() -> None:
        raise LookupError("in the driver")

    def raises_late(connection: Any) -> None:
        await_only(fail())

    def raises(connection: Any) -> None:
        raise ValueError(connection)

    with pytest.raises(LookupError, match="in the driver"):
        await operations.run(raises_late, CONNECTION)
    with pytest.raises(ValueError, match=CONNECTION):
        await operations.run(raises, CONNECTION)
    with pytest.raises(KeyboardInterrupt):
        await operations.run(lambda connection: await_only(_interrupt()), CONNECTION)
    assert await operations.run(str.upper, CONNECTION) == "THE CONNECTION"


async def _interrupt() -> None:
    raise KeyboardInterrupt


async def test_a_cancelled_operation_cleans_up_before_the_next_one() -> None:
    operations = OperationGreenlet()
    waits = asyncio.Event()
    cleaned: list[str] = []

    async def wait() -> None:
        waits.set()
        await asyncio.Event().wait()

    async def clean() -> str:
        await asyncio.sleep(0)
        return "cleaned"

    def operation(connection: Any) -> None:
        try:
            await_only(wait())
        finally:
            cleaned.append(await_only(clean()))

    task = asyncio.create_task(operations.run(operation, CONNECTION))
    await waits.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cleaned == ["cleaned"]
    assert await operations.run(len, CONNECTION) == len(CONNECTION)


async def test_an_operation_sees_the_context_of_its_caller() -> None:
    operations = OperationGreenlet()

    async def caller(number: int) -> Any:
        request_id.set(number)
        return await operations.run(lambda connection: request_id.get(), CONNECTION)

    for number in (1, 2):
        assert await asyncio.create_task(caller(number)) == number
    assert await operations.run(lambda connection: request_id.get(), CONNECTION) is None


async def test_nothing_of_an_operation_is_kept() -> None:
    operations = OperationGreenlet()
    kept: list[weakref.ref[Value]] = []

    def operation(connection: Value) -> Value:
        answer = Value()
        kept.extend(weakref.ref(value) for value in (connection, answer, request_id.get()))
        return answer

    async def caller() -> None:
        request_id.set(Value())
        connection: Any = Value()
        await operations.run(operation, connection)

    await asyncio.create_task(caller())
    await asyncio.sleep(0)  # the task is freed
    assert [reference() for reference in kept] == [None, None, None]


async def test_the_greenlet_is_freed_with_its_last_reference() -> None:
    operations = OperationGreenlet()
    current = await operations.run(lambda connection: weakref.ref(getcurrent()), CONNECTION)
    assert current() is not None
    del operations
    assert current() is None


async def test_an_error_keeps_nothing_of_its_operation() -> None:
    operations = OperationGreenlet()
    connection: Any = Value()
    kept = weakref.ref(connection)

    def operation(connection: Any) -> None:
        raise ValueError

    with pytest.raises(ValueError):
        await operations.run(operation, connection)
    del connection
    assert kept() is None


def test_operations_run_in_the_thread_that_runs_the_loop() -> None:
    """A loop is run by several threads in turns. The identity of a thread that has ended is used
    again by the next one."""
    operations = OperationGreenlet()
    loop = asyncio.new_event_loop()
    seen: list[tuple[int, int]] = []

    def run() -> None:
        there = loop.run_until_complete(operations.run(lambda connection: _thread(), CONNECTION))
        seen.append((threading.get_ident(), there))

    for _ in range(6):
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    run()
    loop.close()
    assert len(seen) == 7
    assert all(here == there for here, there in seen)


def _thread() -> int:
    return await_only(_thread_later())


async def _thread_later() -> int:
    await asyncio.sleep(0)
    return threading.get_ident()


def test_a_loop_inside_another_greenlet_awaits_for_its_operations() -> None:
    operations = OperationGreenlet()

    def run() -> int:
        return asyncio.run(operations.run(lambda connection: _thread(), CONNECTION))

    assert run() == greenlet(run).switch() == run() == threading.get_ident()

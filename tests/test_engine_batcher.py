"""The batcher: which requests are served at once, which together, and which fail alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import pytest

from sessionsdb import StorageError
from sessionsdb.engine import batcher
from sessionsdb.engine.batcher import Batcher
from sessionsdb.engine.storage_errors import StatementRefused
from tests.support.waiting import until


class Server:
    """Doubles numbers in batches, while its gate is open."""

    def __init__(
        self,
        *,
        held: bool = False,
        max_batch: int = 500,
        weight: Callable[[int], int] | None = None,
        max_weight: int = 0,
    ) -> None:
        self.batches: list[list[int]] = []
        self.error: BaseException | None = None
        self.bad: set[int] = set()
        self.gate = asyncio.Event()
        if not held:
            self.gate.set()
        self.batcher: Batcher[int, int] = Batcher(
            self.serve, max_batch=max_batch, weight=weight, max_weight=max_weight
        )

    async def serve(self, requests: list[int]) -> Sequence[int | Exception]:
        self.batches.append(requests)
        await self.gate.wait()
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        if self.bad.intersection(requests):
            raise StatementRefused("the database refused a statement")
        return [ValueError(f"{n} is negative") if n < 0 else 2 * n for n in requests]

    def submit(self, *numbers: int) -> list[asyncio.Task[int]]:
        return [asyncio.create_task(self.batcher.submit(n)) for n in numbers]

    async def in_flight(self, batches: int = 1) -> None:
        await until(lambda: len(self.batches) == batches)


async def test_a_lone_request_is_served_at_once() -> None:
    server = Server()
    assert [await server.batcher.submit(n) for n in range(3)] == [0, 2, 4]
    assert server.batches == [[0], [1], [2]]


async def test_requests_wait_for_the_batch_in_flight_and_keep_their_order() -> None:
    server = Server(held=True)
    first = server.submit(1)
    await server.in_flight()
    others = server.submit(5, 3, 4, 3)
    await asyncio.sleep(0)
    assert server.batches == [[1]]
    server.gate.set()
    assert await asyncio.gather(*first, *others) == [2, 10, 6, 8, 6]
    assert server.batches == [[1], [5, 3, 4, 3]]


async def test_a_batch_has_a_maximum_size() -> None:
    server = Server(held=True, max_batch=3)
    tasks = server.submit(*range(7))
    await server.in_flight()
    server.gate.set()
    assert await asyncio.gather(*tasks) == [0, 2, 4, 6, 8, 10, 12]
    assert server.batches == [[0, 1, 2], [3, 4, 5], [6]]


async def test_a_batch_has_a_maximum_weight_which_only_a_lone_request_exceeds() -> None:
    server = Server(held=True, weight=abs, max_weight=10)
    tasks = server.submit(1, 11, 2, 8, 1, 9, 1, 12, 13, 5)
    await server.in_flight()
    tasks[3].cancel()
    server.gate.set()
    await asyncio.wait(tasks)
    assert server.batches == [[1], [11], [2, 1], [9, 1], [12], [13], [5]]


async def test_a_full_batch_begins_before_the_answered_callers_go_on() -> None:
    server = Server(held=True, max_batch=2)
    served_when_answered: list[int] = []

    async def call(number: int) -> None:
        await server.batcher.submit(number)
        served_when_answered.append(len(server.batches))

    calls = [asyncio.create_task(call(number)) for number in range(4)]
    await server.in_flight()
    server.gate.set()
    await asyncio.gather(*calls)
    assert server.batches == [[0, 1], [2, 3]]
    assert served_when_answered[:2] == [2, 2]


async def test_an_exception_in_place_of_a_result_reaches_its_caller_only() -> None:
    server = Server()
    answers = await asyncio.gather(*server.submit(1, -1, 2), return_exceptions=True)
    assert (answers[0], answers[2]) == (2, 4)
    assert isinstance(answers[1], ValueError)


async def test_a_refused_request_fails_alone() -> None:
    server = Server()
    server.bad = {2}
    answers = await asyncio.gather(*server.submit(1, 2, 3), return_exceptions=True)
    assert (answers[0], answers[2]) == (2, 6)
    assert isinstance(answers[1], StatementRefused)


async def test_each_caller_of_a_failed_batch_gets_its_own_copy_of_the_error() -> None:
    server = Server()
    server.error = StorageError("the database failed")
    server.error.__cause__ = cause = OSError("gone")
    answers = await asyncio.gather(*server.submit(1, 2, 3), return_exceptions=True)
    assert [str(a) for a in answers] == ["the database failed"] * 3
    assert all(isinstance(a, StorageError) and a.__cause__ is cause for a in answers)
    assert len({id(a) for a in answers}) == 3
    assert await server.batcher.submit(4) == 8


async def test_an_error_of_one_batch_does_not_reach_the_next() -> None:
    server = Server(held=True)
    server.error = StorageError("the database failed")
    [first] = server.submit(1)
    await server.in_flight()
    [second] = server.submit(2)
    server.gate.set()
    with pytest.raises(StorageError):
        await first
    assert await second == 4


async def test_a_request_cancelled_while_it_waits_is_not_served() -> None:
    server = Server(held=True)
    [first] = server.submit(1)
    await server.in_flight()
    second, third = server.submit(2, 3)
    await asyncio.sleep(0)
    second.cancel()
    server.gate.set()
    assert await asyncio.gather(first, third) == [2, 6]
    assert server.batches == [[1], [3]]


async def test_a_request_cancelled_in_flight_does_not_affect_others() -> None:
    server = Server(held=True)
    first, second = server.submit(1, 2)
    await server.in_flight()
    first.cancel()
    [third] = server.submit(3)
    server.gate.set()
    assert await asyncio.gather(second, third) == [4, 6]
    assert first.cancelled()
    assert server.batches == [[1, 2], [3]]


def _of_the_batcher() -> list[asyncio.Task[object]]:
    """The tasks that serve the batches."""
    return [one for one in asyncio.all_tasks() if "_serve_all" in repr(one.get_coro())]


async def test_a_request_behind_a_server_that_was_cancelled_before_it_began_is_served() -> None:
    """As ``asyncio.run`` cancels all tasks at its end, and a ``finally`` block writes then."""
    server = Server()
    first = server.batcher.enqueue(1)
    [task] = _of_the_batcher()
    task.cancel()
    second = server.batcher.enqueue(2)
    assert [await asyncio.wait_for(one, 5) for one in (first, second)] == [2, 4]
    await asyncio.wait((task,))
    assert await asyncio.wait_for(server.batcher.submit(3), 5) == 6
    assert server.batches == [[1, 2], [3]]


async def test_a_request_behind_a_server_that_was_cancelled_in_flight_is_served() -> None:
    server = Server(held=True)
    first = server.batcher.enqueue(1)
    await server.in_flight()
    [task] = _of_the_batcher()
    task.cancel()
    second = server.batcher.enqueue(2)
    await asyncio.wait((task,))
    assert first.cancelled()
    await server.in_flight(batches=2)
    third = server.batcher.enqueue(3)
    assert len(_of_the_batcher()) == 1, "two batches are in flight"
    server.gate.set()
    assert [await asyncio.wait_for(one, 5) for one in (second, third)] == [4, 6]
    assert server.batches == [[1], [2], [3]]


def test_a_batch_is_found_stuck_in_a_second_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    async def serve(requests: list[int]) -> Sequence[int]:
        await gate.wait()
        return requests

    def on_stuck(stuck: Batcher[int, int]) -> None:
        assert [request for request, _ in stuck.in_flight] == [1]
        assert [request for request, _ in stuck.waiting] == [2]
        gate.set()

    async def submit_together() -> None:
        """Set the timer, which never rings."""
        assert await asyncio.gather(batched.submit(1), batched.submit(2)) == [1, 2]
        assert batched._timer is not None

    async def submit_two() -> None:
        first = asyncio.create_task(batched.submit(1))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert await asyncio.wait_for(asyncio.gather(first, batched.submit(2)), 10) == [1, 2]

    batched: Batcher[int, int] = Batcher(serve, on_stuck=on_stuck)
    gate = asyncio.Event()
    gate.set()
    monkeypatch.setattr(batcher, "STUCK_SECONDS", 3600.0)
    asyncio.run(submit_together())
    gate = asyncio.Event()
    monkeypatch.setattr(batcher, "STUCK_SECONDS", 0.0)
    asyncio.run(submit_two())


async def test_drain_waits_for_the_requests_in_flight() -> None:
    server = Server(held=True)
    tasks = server.submit(1, 2)
    await server.in_flight()
    draining = asyncio.create_task(server.batcher.drain())
    await asyncio.sleep(0)
    assert not draining.done()
    server.gate.set()
    await draining
    assert await asyncio.gather(*tasks) == [2, 4]
    await server.batcher.drain()


async def test_a_wrong_number_of_results_is_an_error_for_every_caller() -> None:
    async def miscount(requests: list[int]) -> Sequence[int | Exception]:
        return [0] * (len(requests) + 1)

    batcher: Batcher[int, int] = Batcher(miscount)
    with pytest.raises(ValueError, match="zip"):
        await asyncio.wait_for(batcher.submit(1), 5)

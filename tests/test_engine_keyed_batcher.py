"""The keyed batcher: few requests in one batch, many in two, and one key's in order."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from operator import itemgetter

import pytest

from sessionsdb.engine import batcher, keyed_batcher
from sessionsdb.engine.keyed_batcher import KeyedBatcher
from tests.support.waiting import until

SPILL_AT = 3


@pytest.fixture(autouse=True)
def _never_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batcher, "STUCK_SECONDS", 3600.0)


class Server:
    """Answers each request with itself. Each batch has a gate of its own."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.gates: list[asyncio.Event] = []
        self.apart: set[str] = set()
        self.batcher: KeyedBatcher[str, str] = KeyedBatcher(
            self.serve, key=itemgetter(0), count=2, spill_at=SPILL_AT, apart=self.apart
        )

    async def serve(self, requests: list[str]) -> Sequence[str | Exception]:
        gate = asyncio.Event()
        self.batches.append(requests)
        self.gates.append(gate)
        await gate.wait()
        return [ValueError(one) if one.endswith("bad") else one for one in requests]

    async def submit(self, *requests: str) -> list[asyncio.Task[str]]:
        """Submit requests. The key of each is its first letter."""
        tasks = [asyncio.create_task(self.batcher.submit(one)) for one in requests]
        for _ in range(3):
            await asyncio.sleep(0)
        return tasks

    async def answer(self, batch: int) -> None:
        self.gates[batch].set()
        for _ in range(6):
            await asyncio.sleep(0)


async def test_few_requests_go_in_one_batch_and_later_ones_wait() -> None:
    server = Server()
    first = await server.submit("a", "b")
    second = await server.submit("c")
    assert server.batches == [["a", "b"]]
    await server.answer(0)
    assert server.batches == [["a", "b"], ["c"]]
    await server.answer(1)
    assert await asyncio.gather(*first, *second) == ["a", "b", "c"]


async def test_many_requests_go_in_two_batches_of_similar_size() -> None:
    server = Server()
    tasks = await server.submit(*"abcdefgh")
    assert [len(batch) for batch in server.batches] == [4, 4]
    await server.answer(1)
    await server.answer(0)
    assert await asyncio.gather(*tasks) == list("abcdefgh")


async def test_new_requests_go_while_another_batch_is_in_flight() -> None:
    server = Server()
    await server.submit(*"abcdefgh")
    await server.answer(0)
    await server.submit(*server.batches[0])
    assert [len(batch) for batch in server.batches] == [4, 4, 4]
    assert server.batches[2] == server.batches[0]


async def test_requests_of_one_key_are_never_in_two_batches_in_flight() -> None:
    server = Server()
    tasks = await server.submit("a1", "b", "c", "d", "e", "f")
    [ahead] = [number for number, batch in enumerate(server.batches) if "a1" in batch]
    other = 1 - ahead
    tasks += await server.submit("a2")
    await server.answer(other)  # this batcher is free now, and must not overtake
    tasks += await server.submit("a3")
    assert sum("a2" in batch or "a3" in batch for batch in server.batches) == 0
    await server.answer(ahead)
    assert server.batches[-1] == ["a2", "a3"]
    await server.answer(len(server.batches) - 1)
    assert await asyncio.gather(*tasks) == ["a1", "b", "c", "d", "e", "f", "a2", "a3"]


async def test_a_key_whose_requests_are_answered_may_go_through_any_batcher() -> None:
    server = Server()
    await server.submit("a", "b", "c", "d", "e", "f")
    await server.answer(0)
    await server.answer(1)
    await server.submit("f")
    assert server.batches[-1] == ["f"]
    assert server.batcher._in_flight_by_key.keys() == {"f"}


async def test_a_request_that_fails_or_is_cancelled_frees_its_key() -> None:
    server = Server()
    bad, cancelled = await server.submit("a-bad", "b")
    cancelled.cancel()
    await server.answer(0)
    with pytest.raises(ValueError, match="a-bad"):
        await bad
    assert cancelled.cancelled()
    assert not server.batcher._in_flight_by_key


async def test_a_request_cancelled_while_it_waits_frees_its_key() -> None:
    server = Server()
    await server.submit("a")
    [cancelled] = await server.submit("b")
    cancelled.cancel()
    await server.answer(0)
    assert server.batches == [["a"]]
    assert not server.batcher._in_flight_by_key


async def test_a_request_cancelled_in_flight_is_not_overtaken_by_the_next_of_its_key() -> None:
    server = Server()
    tasks = await server.submit("a1", "b", "c", "d", "e", "f")
    [ahead] = [number for number, batch in enumerate(server.batches) if "a1" in batch]
    tasks[0].cancel()
    await server.answer(1 - ahead)  # the other batcher is free now
    await server.submit("a2")
    assert len(server.batches) == 2
    await server.answer(ahead)
    assert server.batches[2:] == [["a2"]]
    await server.answer(2)
    assert not server.batcher._in_flight_by_key


async def test_a_key_that_is_apart_shares_no_batch_and_holds_up_no_other_key() -> None:
    server = Server()
    server.apart.add("a")
    tasks = await server.submit("a1", "b1")
    assert server.batches == [["a1"], ["b1"]]
    await server.answer(1)
    tasks += await server.submit("a2", "b2")
    assert server.batches == [["a1"], ["b1"], ["b2"]]
    await server.answer(0)
    assert server.batches[3:] == [["a2"]]
    await server.answer(2)
    await server.answer(3)
    assert await asyncio.gather(*tasks) == ["a1", "b1", "a2", "b2"]
    assert not server.batcher._in_flight_by_key


async def test_requests_that_wait_are_set_apart_in_their_order_before_the_next_batch() -> None:
    server = Server()
    tasks = await server.submit("a1", "b1")
    tasks += await server.submit("a2", "b2", "a3")
    tasks[-1].cancel()
    server.apart.add("a")
    tasks += await server.submit("a4")
    assert server.batches == [["a1", "b1"]]
    await server.answer(0)
    assert server.batches[1:] == [["b2"], ["a2", "a4"]]
    tasks += await server.submit("a5", "b3")
    await server.answer(1)
    assert server.batches[3:] == [["b3"]]
    draining = asyncio.create_task(server.batcher.drain())
    await server.answer(3)
    assert not draining.done()
    await server.answer(2)
    await server.answer(4)
    await asyncio.wait_for(draining, 5)
    assert [task.result() for task in tasks if not task.cancelled()] == [
        "a1", "b1", "a2", "b2", "a4", "a5", "b3"
    ]  # fmt: skip
    assert not server.batcher._in_flight_by_key


async def test_a_stuck_batch_holds_up_only_its_own_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batcher, "STUCK_SECONDS", 0.0)
    server = Server()
    tasks = await server.submit("a1", "b1")
    tasks += await server.submit("c1", "a2", "c2")
    await until(lambda: len(server.batches) == 2)
    assert server.batches == [["a1", "b1"], ["c1", "c2"]]
    tasks += await server.submit("c3", "b2")
    draining = asyncio.create_task(server.batcher.drain())
    await server.answer(1)
    await until(lambda: len(server.batches) == 3)
    assert server.batches[2] == ["c3"]
    await server.answer(2)
    tasks += await server.submit("c4")  # the successor's, like every other key
    assert server.batches[3] == ["c4"]
    await server.answer(3)
    assert not draining.done()
    await server.answer(0)
    assert server.batches[4] == ["a2", "b2"]
    await server.answer(4)
    await asyncio.wait_for(draining, 5)
    assert await asyncio.gather(*tasks) == ["a1", "b1", "c1", "a2", "c2", "c3", "b2", "c4"]
    assert not server.batcher._in_flight_by_key


async def test_requests_cancelled_behind_a_stuck_batch_free_their_keys(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batcher, "STUCK_SECONDS", 0.0)
    server = Server()
    tasks = await server.submit("a1")
    tasks += [asyncio.create_task(server.batcher.submit(one)) for one in ("a2", "b1", "b2")]
    await asyncio.sleep(0)
    tasks[1].cancel()
    tasks[2].cancel()
    await until(lambda: len(server.batches) == 2)
    assert server.batches == [["a1"], ["b2"]]
    await server.answer(1)
    await server.answer(0)
    await asyncio.wait_for(server.batcher.drain(), 5)
    assert len(server.batches) == 2
    assert not server.batcher._in_flight_by_key


async def test_only_some_batches_are_left_behind_as_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batcher, "STUCK_SECONDS", 0.0)
    monkeypatch.setattr(keyed_batcher, "MAX_STUCK", 2)
    server = Server()
    tasks = await server.submit("a")
    for count, one in enumerate("bc", start=2):
        tasks += await server.submit(one)
        await until(lambda count=count: len(server.batches) == count)
    tasks += await server.submit("d")
    await server.submit()
    assert server.batches == [["a"], ["b"], ["c"]]
    await server.answer(0)  # one of them less
    await until(lambda: len(server.batches) == 4)
    for number in range(1, 4):
        await server.answer(number)
    assert await asyncio.gather(*tasks) == list("abcd")


async def test_a_key_set_apart_behind_its_stuck_batch_gets_a_batcher_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batcher, "STUCK_SECONDS", 0.0)
    server = Server()
    tasks = await server.submit("a1", "b1")
    tasks += await server.submit("a2", "b2", "c1")
    await until(lambda: len(server.batches) == 2)
    server.apart.add("b")
    await server.answer(0)
    assert server.batches == [["a1", "b1"], ["c1"], ["a2"], ["b2"]]
    for number in range(1, 4):
        await server.answer(number)
    assert await asyncio.gather(*tasks) == ["a1", "b1", "a2", "b2", "c1"]


async def test_a_single_batcher_reads_no_keys() -> None:
    def refuse(request: str) -> str:
        raise AssertionError(f"the key of {request} was read")

    async def serve(requests: list[str]) -> Sequence[str]:
        return requests

    batcher: KeyedBatcher[str, str] = KeyedBatcher(serve, key=refuse, count=1)
    assert await asyncio.gather(*(batcher.submit(one) for one in "abc")) == ["a", "b", "c"]


async def test_drain_waits_for_every_batch() -> None:
    server = Server()
    await server.submit(*"abcdefgh")
    draining = asyncio.create_task(server.batcher.drain())
    await server.answer(0)
    assert not draining.done()
    await server.answer(1)
    await asyncio.wait_for(draining, 5)

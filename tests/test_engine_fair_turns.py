"""Turns at the connections: the order of the callers, and growth while none of them leaves."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest
from sqlalchemy import Connection, literal, select

from sessionsdb import SessionsDB, StorageError
from sessionsdb.database import open_database_of
from sessionsdb.engine import fair_turns
from sessionsdb.engine.fair_turns import FairTurns

CALLERS = 32


async def _enter(turns: FairTurns) -> None:
    if not turns.enter_at_once():
        await turns.enter()


async def test_a_caller_that_comes_back_waits_behind_the_others() -> None:
    turns, order = FairTurns(usual=1), list[str]()

    async def caller(name: str) -> None:
        for _ in range(3):
            await _enter(turns)
            order.append(name)
            await asyncio.sleep(0)
            turns.leave()

    await asyncio.gather(*(caller(name) for name in "abc"))
    assert "".join(order) == "abcabcabc"


async def test_one_more_is_admitted_while_none_leaves() -> None:
    turns = FairTurns(usual=1)
    await _enter(turns)
    await asyncio.wait_for(turns.enter(), timeout=60)
    await asyncio.wait_for(_enter(turns), timeout=60)


async def test_never_more_than_the_most_are_admitted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fair_turns, "STALL_SECONDS", 0.0)
    turns = FairTurns(usual=1, most=2)
    assert turns.enter_at_once()
    assert turns.enter_at_once()
    assert not turns.enter_at_once()


async def test_those_that_wait_are_refused_when_none_of_the_most_leaves() -> None:
    turns = FairTurns(usual=1, most=2, patience=0.01)
    await _enter(turns)
    await _enter(turns)
    waiting = [asyncio.create_task(turns.enter()) for _ in range(3)]
    waiting[0].cancel()
    for answer in (await asyncio.gather(*waiting, return_exceptions=True))[1:]:
        assert isinstance(answer, StorageError)
        assert "2 calls wait" in str(answer)
    turns.leave()
    await asyncio.wait_for(_enter(turns), timeout=60)


async def test_those_that_wait_are_not_refused_for_an_idle_time_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A burst of calls after 30 s without any was refused at once."""
    monkeypatch.setattr(fair_turns, "STALL_SECONDS", 0.0)
    turns = FairTurns(usual=1, most=1, patience=30)
    await _enter(turns)
    waiting = asyncio.create_task(turns.enter())
    for _ in range(20):
        await asyncio.sleep(0)
    turns.leave()
    await waiting


async def test_the_number_returns_to_the_usual_one() -> None:
    turns = FairTurns(usual=1)
    await _enter(turns)
    await turns.enter()
    turns.leave()
    turns.leave()
    assert turns.enter_at_once()
    assert not turns.enter_at_once()


async def test_a_cancelled_caller_gives_its_turn_to_the_next() -> None:
    turns = FairTurns(usual=1, most=1)
    await _enter(turns)
    first, second, third = (asyncio.create_task(turns.enter()) for _ in range(3))
    await asyncio.sleep(0)
    first.cancel()  # while it waits
    await asyncio.wait({first})
    turns.leave()  # admits the second
    second.cancel()
    await asyncio.wait({second})
    await asyncio.wait_for(third, timeout=60)
    turns.leave()
    assert turns.enter_at_once()


async def test_reads_of_many_callers_take_turns(db: SessionsDB) -> None:
    runner = open_database_of(db).runner
    begun = dict.fromkeys(range(CALLERS), 0)
    fewest = CALLERS * [0]

    def operation(connection: Connection, number: int) -> None:
        begun[number] += 1
        fewest[number] = min(begun.values())
        connection.execute(select(literal(1)))

    async def caller(number: int) -> None:
        for _ in range(10):
            await runner.read(partial(operation, number=number))

    def nothing(connection: Connection) -> None:
        connection.execute(select(literal(1)))

    await asyncio.gather(*(runner.read(nothing) for _ in range(CALLERS)))  # opens the connections
    await asyncio.gather(*map(caller, range(CALLERS)))
    # No caller makes its last read before each has made one. Without turns a few callers finish
    # before the others begin.
    assert min(fewest) > 0

"""Reads on SQLite that wait for a connection, and run as a group on its thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from functools import partial

import pytest
from sqlalchemy import Connection

from sessionsdb import SessionsDB
from sessionsdb.database import open_database_of
from sessionsdb.engine import fair_turns
from sessionsdb.engine.runner import NotOpen
from sessionsdb.engine.sqlite import reads
from sessionsdb.engine.sqlite.connection import SqliteConnection
from sessionsdb.engine.sqlite.engine import READERS
from sessionsdb.engine.sqlite.runner import SqliteRunner
from sessionsdb.errors import StorageError, UnknownSession

pytestmark = pytest.mark.parametrize("kind", ["sqlite"])

CALLERS = 20


@pytest.fixture
def runner(db: SessionsDB) -> SqliteRunner:
    runner = open_database_of(db).runner
    assert isinstance(runner, SqliteRunner)
    return runner


class Gate:
    """A read that holds its connection until the test lets it go."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.open = threading.Event()

    def __call__(self, connection: Connection) -> str:
        self.begun.set()
        assert self.open.wait(60)
        return "held"


async def held(runner: SqliteRunner) -> tuple[Gate, asyncio.Task[str]]:
    """Return a read that has begun and has not ended."""
    gate = Gate()
    task = asyncio.create_task(runner.read(gate))
    await asyncio.to_thread(gate.begun.wait, 60)
    return gate, task


def numbered(order: list[int], number: int, connection: Connection) -> int:
    order.append(number)
    return number


async def test_waiting_reads_share_a_hop_and_keep_their_order(
    runner: SqliteRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reads, "GROUP_SECONDS", 60.0)
    monkeypatch.setattr(fair_turns, "STALL_SECONDS", 60.0)  # one connection
    threads: list[int] = []
    order: list[int] = []
    run = SqliteConnection.run

    async def counted(connection: SqliteConnection, work: Callable[[], object]) -> object:
        threads.append(1)
        return await run(connection, work)

    gate, first = await held(runner)
    monkeypatch.setattr(SqliteConnection, "run", counted)
    waiting = [
        asyncio.create_task(runner.read(partial(numbered, order, number)))
        for number in range(CALLERS)
    ]
    await asyncio.sleep(0)
    gate.open.set()
    assert await asyncio.gather(*waiting) == list(range(CALLERS))
    assert await first == "held"
    assert order == list(range(CALLERS))
    assert len(threads) == 1


async def test_a_group_ends_after_its_time_and_the_rest_runs_next(
    runner: SqliteRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reads, "GROUP_SECONDS", 0.0)
    order: list[int] = []
    waiting = [runner.read(partial(numbered, order, number)) for number in range(CALLERS)]
    assert await asyncio.gather(*waiting) == list(range(CALLERS))
    assert sorted(order) == list(range(CALLERS))


async def test_a_failing_read_of_a_group_fails_alone(db: SessionsDB, runner: SqliteRunner) -> None:
    def fail(connection: Connection) -> None:
        raise UnknownSession("s")

    def refuse(connection: Connection) -> None:
        connection.exec_driver_sql("SELECT * FROM no_such_table")

    await db.broker.register("s", channel="cli", peer="p")
    kinds: list[Callable[[], Awaitable[object]]] = [
        lambda: runner.read(fail),
        lambda: runner.read(refuse),
        db.broker.list,
    ]
    gate, first = await held(runner)
    waiting = [asyncio.ensure_future(kinds[n % 3]()) for n in range(CALLERS)]
    await asyncio.sleep(0)
    gate.open.set()
    answers = await asyncio.gather(*waiting, return_exceptions=True)
    await first
    for number, answer in enumerate(answers):
        if number % 3 == 0:
            assert type(answer) is UnknownSession
        elif number % 3 == 1:
            assert isinstance(answer, StorageError)
        else:
            assert isinstance(answer, list)
            assert [session.id for session in answer] == ["s"]


async def test_reads_behind_a_slow_one_of_their_group_go_to_the_other_connection(
    runner: SqliteRunner,
) -> None:
    order: list[int] = []
    gate, first = await held(runner)
    slow = Gate()
    before, late, *behind = [
        asyncio.create_task(runner.read(operation))
        for operation in (
            partial(numbered, order, 0),
            slow,
            *(partial(numbered, order, number) for number in range(1, CALLERS)),
        )
    ]
    await asyncio.sleep(0)
    gate.open.set()
    await first
    # The slow read holds one connection, and is not let go before all others are done.
    assert await asyncio.gather(before, *behind) == list(range(CALLERS))
    assert not late.done()
    slow.open.set()
    assert await late == "held"


async def test_a_cancelled_read_does_not_run_and_others_of_its_group_do(
    runner: SqliteRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fair_turns, "STALL_SECONDS", 60.0)
    order: list[int] = []
    gate, first = await held(runner)
    waiting = [
        asyncio.create_task(runner.read(partial(numbered, order, number)))
        for number in range(CALLERS)
    ]
    await asyncio.sleep(0)
    cancelled = waiting[::2]
    for task in cancelled:
        task.cancel()
    await asyncio.wait(cancelled)
    gate.open.set()
    await first
    assert await asyncio.gather(*waiting[1::2]) == list(range(1, CALLERS, 2))
    assert order == list(range(1, CALLERS, 2))
    assert await runner.read(partial(numbered, order, CALLERS)) == CALLERS


async def test_reads_that_were_given_up_hold_their_connection_until_they_end(
    runner: SqliteRunner,
) -> None:
    order: list[int] = []
    gates = [Gate() for _ in range(CALLERS)]
    given_up = list[asyncio.Task[str]]()
    for number, gate in enumerate(gates):
        given_up.append(asyncio.create_task(runner.read(gate)))
        if number < READERS:
            await asyncio.to_thread(gate.begun.wait, 60)
        await asyncio.sleep(0)
        given_up[-1].cancel()
        await asyncio.wait(given_up)
    waiting = [asyncio.create_task(runner.read(partial(numbered, order, n))) for n in range(3)]
    for gate in gates:
        gate.open.set()
    assert await asyncio.wait_for(asyncio.gather(*waiting), 60) == [0, 1, 2]
    assert [gate.begun.is_set() for gate in gates] == [n < READERS for n in range(CALLERS)]
    both = [await held(runner) for _ in range(READERS)]  # both are in use again
    for gate, read in both:
        gate.open.set()
        assert await read == "held"


async def test_a_close_waits_for_reads_that_were_given_up(runner: SqliteRunner) -> None:
    gate, read = await held(runner)
    read.cancel()
    await asyncio.wait((read,))
    closing = asyncio.create_task(runner.close())
    await asyncio.sleep(0)
    gate.open.set()
    await asyncio.wait_for(closing, 60)


async def test_a_read_of_a_group_sees_every_commit_before_its_call(
    db: SessionsDB, runner: SqliteRunner
) -> None:
    async def caller(number: int) -> None:
        for count in range(1, 6):
            await db.store.append(f"s{number}", [{"role": "user", "content": "x"}])
            assert len(await db.store.entries(f"s{number}")) == count

    await asyncio.gather(*map(caller, range(CALLERS)))


async def test_reads_that_wait_at_the_close_are_refused(
    runner: SqliteRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fair_turns, "STALL_SECONDS", 60.0)
    gate, first = await held(runner)
    waiting = [
        asyncio.create_task(runner.read(partial(numbered, [], number))) for number in range(3)
    ]
    await asyncio.sleep(0)
    closing = asyncio.create_task(runner.close())
    await asyncio.sleep(0)  # it waits for the reads now
    gate.open.set()
    for answer in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(answer, NotOpen)
    assert await first == "held"
    await closing

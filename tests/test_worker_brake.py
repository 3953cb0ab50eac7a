"""A worker whose turns all fail slows down as a whole, and says so."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta

import pytest

from devtools.databases import Database
from sessionsdb import Backoff, SessionsDB, Turn
from sessionsdb.worker import brake
from sessionsdb.worker.brake import Brake
from tests.support.command_line import CommandLine
from tests.support.waiting import until
from tests.support.work import SOON, running


async def send_to(db: SessionsDB, count: int) -> None:
    for number in range(count):
        await db.broker.register(f"s{number}", channel="test", peer="p")
        await db.broker.send(f"s{number}", "hello")


async def test_a_broken_deployment_does_not_kill_the_queue(
    db: SessionsDB, caplog: pytest.LogCaptureFixture
) -> None:
    await send_to(db, 30)
    attempts = 0

    async def handler(turn: Turn) -> None:
        nonlocal attempts
        attempts += 1
        raise RuntimeError("the model's key is wrong")

    async with running(db, handler, retry=SOON, max_attempts=5):
        await until(lambda: "turns failed, in" in caplog.text)
        # The brake's next tries are 1, 2 and 4 s apart.
        await until(lambda: caplog.text.count("turns failed, in") == 2)
    assert attempts <= brake.FAILURES + 8 + 2
    assert await db.broker.dead_letters() == []


async def test_one_committed_turn_takes_the_brake_off(
    db: SessionsDB, caplog: pytest.LogCaptureFixture
) -> None:
    await send_to(db, 20)
    healed = False

    async def handler(turn: Turn) -> str:
        if not healed:
            raise RuntimeError("the model is away")
        return "hello"

    async with running(db, handler, retry=SOON, max_attempts=50) as worker:
        await until(lambda: "turns failed, in" in caplog.text)
        healed = True
        await until(lambda: "goes on at full speed" in caplog.text)
        await until(lambda: all_done(db))
        assert worker.died == 0


async def all_done(db: SessionsDB) -> bool:
    found = await asyncio.gather(*(db.broker.get(f"s{number}") for number in range(20)))
    return not any(one.pending or one.running for one in found)


async def test_a_few_bad_messages_slow_nobody_down(
    db: SessionsDB, caplog: pytest.LogCaptureFixture
) -> None:
    await send_to(db, 3)

    async def handler(turn: Turn) -> None:
        raise RuntimeError("a bad message")

    worker = db.worker(handler, retry=Backoff(first=0.0), max_attempts=20)
    begun = time.monotonic()
    await worker.run_until_idle()
    assert "turns failed, in" not in caplog.text
    assert worker.died == 3
    assert time.monotonic() - begun < 20


async def test_a_good_message_is_tried_before_those_that_fail_again(db: SessionsDB) -> None:
    """Behind five messages that have failed twice it would wait for 31 seconds."""
    await send_to(db, 5)
    await db.broker.register("good", channel="test", peer="p")
    begun: list[str] = []

    async def handler(turn: Turn) -> str:
        begun.append(turn.session.id)
        if len(begun) == brake.FAILURES:
            await db.broker.send("good", "hello")
        if turn.session.id == "good":
            return "hello"
        raise RuntimeError("a bad message")

    async with running(db, handler, retry=Backoff(first=0.0), concurrency=1, max_attempts=50):
        await until(lambda: "good" in begun, within=120)
    assert begun.index("good") == brake.FAILURES
    assert not {one.status for one in await db.broker.inbox("s0")} - {"pending", "running"}


async def test_a_schedule_is_sent_in_time_while_the_brake_is_on(
    db: SessionsDB, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(brake, "FIRST_PAUSE_SECONDS", 60.0)
    await send_to(db, brake.FAILURES)
    await db.broker.register("other", channel="test", peer="p")
    attempts = 0

    async def handler(turn: Turn) -> None:
        nonlocal attempts
        attempts += 1
        raise RuntimeError("the model's key is wrong")

    async with running(db, handler, retry=Backoff(first=3_600.0, most=3_600.0)):
        await until(lambda: "turns failed, in" in caplog.text)
        due = datetime.now(UTC) + timedelta(seconds=2)
        await db.broker.schedule("other", "the daily report", at=due)
        await until(lambda: db.broker.inbox("other"))
        assert attempts == brake.FAILURES  # the brake holds turns back, and nothing else


def test_the_pause_doubles_up_to_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(brake.time, "monotonic", lambda: now)
    one = Brake()
    for number in range(brake.FAILURES):
        assert not one.is_on
        one.failed(number)
    pauses = []
    for number in range(8):
        pauses.append(one.seconds_left())
        one.failed(number)  # began before the brake: it changes nothing
        assert one.seconds_left() == pauses[-1]
        now += pauses[-1]
        one.failed(number)
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]
    one.committed()
    assert not one.is_on
    assert one.seconds_left() == 0


def test_until_idle_exits_1_if_a_message_died(database: Database) -> None:
    async def prepare(*ids: str) -> None:
        async with SessionsDB(database.url) as db:
            for id in ids:
                await db.broker.register(id, channel="test", peer="p")
                await db.broker.send(id, "hello")

    cli = CommandLine(database.url)
    asyncio.run(prepare("a"))
    cli("worker", "sessionsdb.handlers:echo", "--until-idle").ok()
    asyncio.run(prepare("b"))
    died = cli(
        "worker", "tests.support.broken_handlers:fail", "--until-idle", "--max-attempts", "1"
    )
    assert died.code == 1
    assert "1 message died" in died.stderr

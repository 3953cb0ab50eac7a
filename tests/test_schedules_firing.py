"""The firing of schedules: how late, by whom, and at what cost."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from functools import partial
from statistics import median

import pytest

from devtools.backlog import fill
from devtools.databases import Database
from sessionsdb import Limits, SessionsDB, Turn
from sessionsdb.database import open_database_of
from sessionsdb.operations import expiry, firing
from tests.support.plans import Watch, explain_everything, plans_are_in, watched
from tests.support.schedules import fire, sent
from tests.support.waiting import until
from tests.support.work import running


async def answer(turn: Turn) -> str:
    return "yes"


# ---- time --------------------------------------------------------------------------------------


async def test_an_idle_worker_fires_in_time_also_schedules_of_another_handle(
    db: SessionsDB, database: Database
) -> None:
    await db.broker.register("chat", channel="test", peer="p")
    async with SessionsDB(database.url) as other, running(other, answer, poll_interval=3_600):
        receipt = await db.broker.send("chat", "let it start")
        await db.broker.wait(receipt, timeout=30)
        soon = datetime.now(UTC) + timedelta(seconds=0.3)
        due = [soon + timedelta(seconds=0.2 * number) for number in range(5)]
        for moment in due[::-1]:  # each is earlier than the worker knew
            await db.broker.schedule("chat", "tick", at=moment)
        await until(lambda: all_are_sent(database, 6), within=30)
    times = [message.timestamp for message in await db.broker.history("chat")]
    heard = sorted(set(times))[-5:]
    late = [(sent_at - moment).total_seconds() for sent_at, moment in zip(heard, due, strict=True)]
    assert min(late) >= 0
    assert median(late) < 1, late


async def all_are_sent(database: Database, count: int) -> bool:
    return await database.value("SELECT count(*) FROM inbox WHERE status = 'done'") == count


# ---- two workers -------------------------------------------------------------------------------


async def test_two_workers_at_once_send_each_message_once(
    db: SessionsDB, database: Database
) -> None:
    past = datetime.now(UTC) - timedelta(minutes=1)
    for number in range(5):
        await db.broker.register(f"s{number}", channel="test", peer="p")
    await asyncio.gather(
        *(db.broker.schedule(f"s{n % 5}", f"m{n:02d}", at=past) for n in range(60))
    )
    async with SessionsDB(database.url) as other:
        while await db.broker.schedules():
            await asyncio.gather(*(fire(handle) for handle in (db, other, db, other)))
    assert sorted(await sent(database)) == [f"m{n:02d}" for n in range(60)]


async def test_a_mailbox_that_another_transaction_holds_delays_its_own_schedules_only(
    db: SessionsDB, database: Database
) -> None:
    past = datetime.now(UTC) - timedelta(minutes=1)
    for id in ("held", "free"):
        await db.broker.register(id, channel="test", peer="p")
        await db.broker.schedule(id, id, at=past)
    if database.kind == "sqlite":
        assert (await fire(db)).messages == 2  # there is one writer, and no row locks
        return
    async with db.engine.begin() as connection:
        await db.broker.send("held", "in my transaction", connection=connection)
        assert await asyncio.wait_for(fire(db), 5) == firing.Fired(1, 0)
    assert await fire(db) == firing.Fired(1, 0)
    assert sorted(await sent(database)) == ["free", "held", "in my transaction"]


# ---- faults ------------------------------------------------------------------------------------


async def refuse_deletions(database: Database) -> None:
    """Let the database refuse to fire a schedule, as if it were too much for it."""
    if database.kind == "sqlite":
        await database.query(
            "CREATE TRIGGER refusing BEFORE DELETE ON schedules"
            " BEGIN SELECT RAISE(ABORT, 'too much'); END"
        )
        return
    await database.query(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql"
        " AS 'BEGIN RAISE EXCEPTION ''too much''; END'"
    )
    await database.query(
        "CREATE TRIGGER refusing BEFORE DELETE ON schedules EXECUTE FUNCTION refuse()"
    )


async def test_a_schedule_that_the_database_refuses_keeps_no_message_waiting(
    db: SessionsDB, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    await db.broker.register("chat", channel="test", peer="p")
    await db.broker.register("other", channel="test", peer="p")
    await refuse_deletions(database)
    await db.broker.schedule("chat", "tick", at=datetime.now(UTC) - timedelta(minutes=1))
    async with running(db, answer, poll_interval=0.05):
        for text in ("one", "two"):
            receipt = await db.broker.send("other", text)
            assert (await db.broker.wait(receipt, timeout=30)).status == "done"
        assert await sent(database) == ["one", "two"]
        on_table = "" if database.kind == "sqlite" else " ON schedules"
        await database.query(f"DROP TRIGGER refusing{on_table}")
        await until(lambda: all_are_sent(database, 3), within=30)
    warnings = [one for one in caplog.messages if "scheduled messages" in one]
    assert len(warnings) == 1, "one fault is told once"
    assert "too much" in warnings[0]


# ---- cost --------------------------------------------------------------------------------------

FEW, MANY = 100, 100_000


async def add_schedules(database: Database, first: int, last: int) -> None:
    """Write schedules of tomorrow for the sessions of ``fill``, by plain SQL."""
    numbers = (
        f"WITH RECURSIVE numbers(n) AS (SELECT {first} UNION ALL SELECT n + 1 FROM numbers"
        f" WHERE n < {last})"
    )
    if database.kind == "sqlite":
        time = "strftime('%Y-%m-%d %H:%M:%S.000000', 4102444800 + n, 'unixepoch')"
    else:
        time = "to_timestamp(4102444800 + n)"
    await database.query(
        "INSERT INTO schedules (namespace, id, session_id, content, cron, tz, catch_up,"
        f" created_at, due_at, try_at) {numbers} SELECT 'default', 'schedule-' || n,"
        f" 's' || (1 + n % 100), 'tick', '0 9 * * *', 'UTC', 'one', {time}, {time}, {time}"
        " FROM numbers"
    )
    await database.query("ANALYZE")


WORKERS: list[Collection[str] | None] = [["default"], ["default", "other"], ["other"], None]


async def rows_read(db: SessionsDB, watch: Watch) -> list[list[int]]:
    """The rows that a poll reads, and that firing reads, for each kind of worker."""
    database = open_database_of(db)
    rows = []
    for namespaces in WORKERS:
        both = []
        for operation in (
            partial(expiry.next_due, namespaces=namespaces),
            partial(firing.fire, namespaces=namespaces, limits=Limits(schedules=MANY)),
        ):
            for _ in range(2):  # the first finds a cold catalogue
                await plans_are_in()
                watch.clear()
                await database.write(operation, wakes=())
                await plans_are_in()
            both.append(watch.rows_read)
        rows.append(both)
    return rows


async def test_a_poll_reads_as_much_with_100_000_schedules_as_with_100(
    database: Database,
) -> None:
    """Also where all of them are in a namespace of others, and where two of them are due."""
    await fill(database, waiting=100, sessions=100)
    await add_schedules(database, 1, FEW)
    await explain_everything(database)
    past = datetime.now(UTC) - timedelta(minutes=1)
    async with watched(database) as (db, watch):
        few = await rows_read(db, watch)
        await add_schedules(database, FEW + 1, MANY)
        many = await rows_read(db, watch)
        assert all(
            more <= less + 5
            for one, other in zip(few, many, strict=True)
            for less, more in zip(one, other, strict=True)
        ), (few, many)
        await db.broker.register("fresh", channel="c", peer="p")
        for text in ("one", "two"):
            await db.broker.schedule("fresh", text, at=past)
        await plans_are_in()
        watch.clear()
        assert await fire(db) == firing.Fired(2, 0)
        await plans_are_in()
    assert watch.rows_read <= 1_000, str(watch)  # small tables are scanned

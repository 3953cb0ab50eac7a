"""Workers that are killed while they fire schedules: each due time is sent exactly once."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from devtools.databases import Database
from sessionsdb import SessionsDB
from tests.support.scale import SCALE
from tests.support.schedules import let_pass, sent
from tests.support.waiting import until
from tests.support.worker_process import Journal, worker_process

KILLS = 10 * SCALE
SESSIONS = 4
EACH = 3
"""New messages for each session and kill."""
HOURS = 5
"""The hours that pass before each kill, for schedules of every hour."""


@pytest.fixture
async def db(db: SessionsDB) -> SessionsDB:
    for number in range(SESSIONS):
        await db.broker.register(f"s{number}", channel="test", peer="p")
        await db.broker.schedule(f"s{number}", "hourly", cron="0 * * * *", catch_up="all")
    return db


async def test_each_due_time_is_sent_once_while_workers_are_killed(
    db: SessionsDB, database: Database, tmp_path: Path
) -> None:
    """Two workers run all the time. One of them is killed in the middle, again and again."""
    chance = random.Random(7)
    journal = Journal(tmp_path / "journal")
    expected: Counter[str] = Counter()
    began = {one.session_id: one.due_at for one in await db.broker.schedules()}
    passed = timedelta()
    with worker_process(database.url, journal, lease=1.0):
        for kill in range(KILLS):
            texts = [f"{kill}.{number}" for number in range(SESSIONS * EACH)]
            expected.update(texts)
            await asyncio.gather(
                *(
                    db.broker.schedule(
                        f"s{number % SESSIONS}", text, at=datetime.now(UTC) + timedelta(seconds=0.1)
                    )
                    for number, text in enumerate(texts)
                )
            )
            await let_pass(database, hours=HOURS)
            passed += timedelta(hours=HOURS)
            with worker_process(database.url, journal, lease=1.0):
                await asyncio.sleep(chance.uniform(0.0, 0.15))  # then it is killed
        await until(lambda: nothing_is_due(db), within=60)
    hourly = 0
    for one in await db.broker.schedules():
        hourly += round((one.due_at + passed - began[one.session_id]) / timedelta(hours=1))
    expected["hourly"] = hourly
    assert hourly >= SESSIONS * HOURS * KILLS
    assert Counter(await sent(database)) == expected


async def nothing_is_due(db: SessionsDB) -> bool:
    present = datetime.now(UTC)
    return all(one.due_at > present and one.cron for one in await db.broker.schedules())

"""Workers in several processes over one database: frozen, killed, and still in order."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
import time
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path

import pytest

from devtools.databases import Database
from sessionsdb import SessionsDB, Turn
from tests.support.waiting import until
from tests.support.work import expire_leases, user_and_reply
from tests.support.worker_process import Journal, kill, worker_process


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal")


async def register(db: SessionsDB, *ids: str) -> None:
    for id in ids:
        await db.broker.register(id, channel="test", peer="somebody")


async def unfinished(database: Database) -> int:
    sql = "SELECT count(*) FROM inbox WHERE finished_at IS NULL"
    return int(await database.value(sql))


async def test_many_senders_and_worker_processes_keep_each_senders_order(
    db: SessionsDB, database: Database, journal: Journal
) -> None:
    """200 sessions x 50 messages, 8 concurrent senders, 3 worker processes."""
    sessions, messages, senders = 200, 50, 8
    ids = [f"s{n:03d}" for n in range(sessions)]
    await register(db, *ids)

    async def sender(name: int) -> None:
        # Each sender writes to every session, in a random order.
        order = ids * ((messages - name - 1) // senders + 1)
        random.Random(name).shuffle(order)
        numbers: dict[str, itertools.count[int]] = defaultdict(itertools.count)
        for chunk in (order[start : start + 8] for start in range(0, len(order), 8)):
            # Several at a time, but never two to one session: its order is the sender's.
            for group in distinct(chunk):
                await asyncio.gather(
                    *(db.broker.send(id, f"{name} {next(numbers[id])}") for id in group)
                )

    with ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(worker_process(database.url, journal, concurrency=16))
        await asyncio.gather(*(sender(name) for name in range(senders)))
        await until(lambda: all_done(database), within=90)

    for id in ids:
        transcript = await db.store.load(id)
        assert transcript is not None
        users = [m["content"] for m in transcript if m["role"] == "user"]
        replies = [m["content"] for m in transcript if m["role"] == "assistant"]
        assert len(users) == messages
        assert replies == [f"echo: {text}" for text in users]
        by_sender: dict[str, list[int]] = defaultdict(list)
        for text in users:
            name, number = text.split()
            by_sender[name].append(int(number))
        assert all(numbers == list(range(len(numbers))) for numbers in by_sender.values())
    assert_no_overlap(journal)
    assert len({entry["pid"] for entry in journal.read()}) == 3, "all three had a part in it"


def distinct(ids: list[str]) -> list[list[str]]:
    """The ids in groups without repetition, in order."""
    groups: list[list[str]] = []
    for id in ids:
        if not groups or id in groups[-1]:
            groups.append([])
        groups[-1].append(id)
    return groups


async def all_done(database: Database) -> bool:
    return await unfinished(database) == 0


def assert_no_overlap(journal: Journal) -> None:
    """By the log of the handlers, not by the tables, no two of them ran for one session at once."""
    running: dict[str, int] = {}
    for entry in journal.read():
        session = entry["session"]
        if entry["event"] == "begin":
            assert session not in running, f"two turns at once on {session}"
            running[session] = entry["pid"]
        else:
            assert running.pop(session) == entry["pid"]


async def test_a_frozen_worker_that_thaws_late_is_refused(
    db: SessionsDB, database: Database, journal: Journal
) -> None:
    """SIGSTOP a worker until its lease expires and another worker takes over, then SIGCONT."""
    await register(db, "chat", "peer")
    receipt = await db.broker.send("chat", "spin 0.3")
    with worker_process(database.url, journal, lease=3_600) as process:
        await until(journal.read)
        os.kill(process.pid, signal.SIGSTOP)
        await expire_leases(database)

        async def other(turn: Turn) -> str:
            return "from the other"

        assert await db.worker(other).run_until_idle() == 1
        taken = await db.store.load("chat")
        os.kill(process.pid, signal.SIGCONT)
        await until(lambda: [e for e in journal.read() if e["event"] == "end"])
        # It still works: it claims the next message.
        after = await db.broker.send("chat", "next")
        assert (await db.broker.wait(after, timeout=30)).status == "done"
    outcome = await db.broker.outcome(receipt)
    assert (outcome.status, outcome.attempts) == ("done", 2)
    assert taken == user_and_reply("spin 0.3", "from the other")
    assert await db.store.load("chat") == taken + user_and_reply("next", "echo: next")


async def test_what_a_zombie_staged_never_happens(
    db: SessionsDB, database: Database, journal: Journal
) -> None:
    await register(db, "chat", "peer")
    receipt = await db.broker.send("chat", "tell peer")
    with worker_process(database.url, journal, lease=3_600) as process:
        await until(journal.read)
        os.kill(process.pid, signal.SIGSTOP)
        await expire_leases(database)

        async def other(turn: Turn) -> str | None:
            if turn.session.id == "chat":
                turn.send("peer", "from the other")
            return None

        await db.worker(other).run_until_idle()
        assert (await db.broker.outcome(receipt)).status == "done"
        os.kill(process.pid, signal.SIGCONT)
        alive = await db.broker.send("chat", "are you there?")
        await db.broker.wait(alive, timeout=30)
    assert [m.content for m in await db.broker.history("peer")] == ["from the other"]


KILLS = int(os.environ.get("SESSIONSDB_TEST_KILLS", "100"))


@pytest.mark.timeout(600)
async def test_workers_killed_at_random_moments_lose_and_double_nothing(
    db: SessionsDB, database: Database, journal: Journal
) -> None:
    """SIGKILL workers while messages arrive. SESSIONSDB_TEST_KILLS sets how often."""
    lease = 1.0
    ids = [f"s{n}" for n in range(20)]
    await register(db, *ids)
    sent: dict[str, list[str]] = {id: [] for id in ids}
    stop = asyncio.Event()

    async def sender() -> None:
        for number in itertools.count():
            if stop.is_set():
                return
            for id in random.sample(ids, 2):
                await db.broker.send(id, f"m{number}")
                sent[id].append(f"m{number}")
            await asyncio.sleep(0.01)

    sending = asyncio.create_task(sender())
    for _ in range(KILLS):
        target = journal.count() + random.randint(1, 40)
        with worker_process(
            database.url, journal, lease=lease, concurrency=4, max_attempts=1_000
        ) as process:
            await until(lambda target=target: journal.count() >= target, within=60)
            kill(process)
    stop.set()
    await sending
    began = time.monotonic()
    with worker_process(
        database.url, journal, lease=lease, concurrency=16, max_attempts=1_000
    ) as process:
        await until(lambda: none_leased_to_the_dead(database), within=60)
        freed = time.monotonic() - began
        await until(lambda: all_done(database), within=60)
    assert freed < lease + 3, "what the dead held is handed on when its lease is over"
    for id in ids:
        assert await db.store.load(id) == [
            message for text in sent[id] for message in user_and_reply(text, f"echo: {text}")
        ]
    assert await database.query("SELECT DISTINCT status FROM inbox") == [("done",)]
    assert int(await database.value("SELECT max(attempts) FROM inbox")) > 1, "a kill hit a turn"


async def none_leased_to_the_dead(database: Database) -> bool:
    owners = "SELECT count(DISTINCT owner) FROM mailboxes WHERE owner IS NOT NULL"
    return int(await database.value(owners)) <= 1


async def test_sigterm_lets_turns_finish_and_releases_the_rest(
    db: SessionsDB, database: Database, journal: Journal
) -> None:
    await register(db, "quick", "slow")
    with worker_process(database.url, journal, lease=3_600) as process:
        slow = await db.broker.send("slow", "hang")
        await until(journal.read)
        process.terminate()
        await asyncio.to_thread(process.join, 30)
        assert process.exitcode == 0
    outcome = await db.broker.outcome(slow)
    assert (outcome.status, outcome.attempts) == ("pending", 0)

"""The stop of a turn reaches the handler that runs it at once, by a hint."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from devtools.databases import Database
from sessionsdb import Receipt, SessionsDB, Turn
from sessionsdb.database import open_database_of
from sessionsdb.operations import mailbox
from tests.support.plans import plans_are_in, watched
from tests.support.waiting import until
from tests.support.work import running
from tests.support.worker_process import Journal, worker_process

HEARTBEATS_ARE_RARE = {"lease_seconds": 3_600, "poll_interval": 3_600}


class Hanging:
    """A handler that notes when each of its turns is cancelled."""

    def __init__(self) -> None:
        self.begun: set[str] = set()
        self.cancelled: dict[str, float] = {}

    async def __call__(self, turn: Turn) -> None:
        self.begun.add(turn.session.id)
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled[turn.session.id] = time.monotonic()


async def begin(db: SessionsDB, hanging: Hanging, *ids: str) -> None:
    for id in ids:
        await db.broker.register(id, channel="test", peer="p")
        await db.broker.send(id, "go")
    await until(lambda: hanging.begun.issuperset(ids))


async def delays(end: Callable[[str], Awaitable[Any]], hanging: Hanging, ids: list[str]) -> Any:
    """How long after each call its turn was cancelled, in seconds, the shortest first."""
    found = []
    for id in ids:
        await end(id)
        ended_at = time.monotonic()
        await until(lambda id=id: id in hanging.cancelled)
        found.append(hanging.cancelled[id] - ended_at)
    return sorted(found)


def stop_by(db: SessionsDB, verb: str) -> Callable[[str], Awaitable[Any]]:
    if verb == "cancel":
        return lambda id: db.broker.cancel(Receipt(session_id=id, position=1))
    return {
        "end": db.broker.end,
        "delete": db.store.delete,
        "interrupt": db.broker.interrupt,
    }[verb]


@pytest.mark.parametrize("verb", ["end", "delete", "interrupt", "cancel"])
async def test_a_stop_reaches_a_handler_in_the_same_process_at_once(
    db: SessionsDB, verb: str
) -> None:
    hanging = Hanging()
    ids = [f"s{n}" for n in range(20)]
    async with running(db, hanging, concurrency=32, **HEARTBEATS_ARE_RARE):
        await begin(db, hanging, "other", *ids)
        found = await delays(stop_by(db, verb), hanging, ids)
        assert "other" not in hanging.cancelled
    assert found[9] < 0.05, f"the median is {found[9]:.3f} s"


@pytest.mark.parametrize("verb", ["end", "interrupt", "cancel"])
async def test_a_stop_reaches_a_handler_through_another_handle(
    db: SessionsDB, database: Database, verb: str
) -> None:
    hanging = Hanging()
    ids = [f"s{n}" for n in range(20)]
    async with (
        SessionsDB(database.url) as other,
        running(other, hanging, concurrency=32, **HEARTBEATS_ARE_RARE),
    ):
        await begin(db, hanging, "other", *ids)
        found = await delays(stop_by(db, verb), hanging, ids)
        assert "other" not in hanging.cancelled
    assert found[18] < 0.25, f"the 95th percentile is {found[18]:.3f} s"


async def test_the_end_of_a_subtree_stops_all_its_turns(db: SessionsDB) -> None:
    hanging = Hanging()
    async with running(db, hanging, **HEARTBEATS_ARE_RARE):
        await begin(db, hanging, "root")
        for n in range(3):
            await db.broker.register(f"child-{n}", channel="test", peer="p", parent="root")
            await db.broker.send(f"child-{n}", "go")
        await until(lambda: len(hanging.begun) == 4)
        await db.broker.end("root", subtree=True)
        await until(lambda: len(hanging.cancelled) == 4)


async def test_a_stop_reaches_a_worker_of_another_process(
    db: SessionsDB, database: Database, tmp_path: Path
) -> None:
    await db.broker.register("chat", channel="test", peer="p")
    await db.broker.register("next", channel="test", peer="p")
    journal = Journal(tmp_path / "journal")
    with worker_process(database.url, journal, lease=3_600, concurrency=1):
        await db.broker.send("chat", "hang")
        await until(journal.read)
        receipt = await db.broker.send("next", "hello")
        await db.broker.end("chat")
        # Its one slot is free at once, not at the next heartbeat.
        assert (await db.broker.wait(receipt, timeout=20)).status == "done"


async def test_a_worker_that_runs_no_turn_does_not_look(
    db: SessionsDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []
    held_fences = mailbox.held_fences

    def counted(*args: Any, **kwargs: Any) -> Any:
        looks.append(args)
        return held_fences(*args, **kwargs)

    monkeypatch.setattr(mailbox, "held_fences", counted)
    hanging = Hanging()
    await db.broker.register("idle", channel="test", peer="p")
    async with running(db, hanging, **HEARTBEATS_ARE_RARE):
        await db.broker.end("idle")
        assert looks == []
        await begin(db, hanging, "busy")
        await db.broker.end("busy")
        await until(lambda: "busy" in hanging.cancelled)
        assert len(looks) >= 1


async def test_a_look_reads_the_leases_of_one_worker_only(database: Database) -> None:
    async with watched(database) as (db, watch):
        for n in range(200):
            await db.broker.register(f"s{n}", channel="test", peer="p")
        await database.query(
            "UPDATE mailboxes SET owner = 'another', lease_until = '2124-01-01 00:00:00.000000'"
        )
        await database.query("UPDATE mailboxes SET owner = 'me' WHERE session_id = 's7'")
        await database.query("ANALYZE")
        watch.clear()
        found = await open_database_of(db).read(
            lambda connection: mailbox.held_fences(connection, "me")
        )
        assert [key for key, _ in found] == [("default", "s7")]
        await plans_are_in()
        if database.kind == "sqlite":  # PostgreSQL walks over a table of one page
            assert [plan.scans for plan in watch.plans if plan.scans] == []

"""The slots of a worker are shared among the namespaces that have work."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
from sqlalchemy import text

from devtools.databases import Database
from sessionsdb import InvalidArgument, SessionsDB, Turn
from sessionsdb.database import open_database_of
from sessionsdb.handlers import echo
from sessionsdb.operations import mailbox
from sessionsdb.operations.fair_shares import in_rotation, share_slots
from tests.support.plans import Watch, explain_everything, plans_are_in, watched
from tests.support.waiting import until
from tests.support.work import running

SCOPES: list[Any] = ["*", ["big", "small", "third"]]


async def fill(database: Database, **counts: int) -> None:
    """Sessions with one message each, ready since long ago."""
    for namespace, count in counts.items():
        await insert(database, count, f"'{namespace}'", "'s' || n")


async def insert(database: Database, count: int, namespace: str, id: str) -> None:
    numbers = (
        "WITH RECURSIVE numbers(n) AS"
        f" (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {count})"
    )
    time = "'2024-01-01 00:00:00.000000'"
    if database.kind == "postgresql":
        time = f"CAST({time} AS timestamptz)"
    await database.query(
        "INSERT INTO sessions (namespace, id, channel, peer, created_at, updated_at, last_active)"
        f" {numbers} SELECT {namespace}, {id}, 'c', 'p', {time}, {time}, {time} FROM numbers"
    )
    await database.query(
        "INSERT INTO mailboxes (namespace, session_id, tail, pending, ready_at)"
        f" {numbers} SELECT {namespace}, {id}, 1, 1, {time} FROM numbers"
    )
    await database.query(
        "INSERT INTO inbox (namespace, session_id, position, status, content, enqueued_at)"
        f" {numbers} SELECT {namespace}, {id}, 1, 'pending', 'x', {time} FROM numbers"
    )


async def claimed(db: SessionsDB, slots: int, **how: Any) -> list[str]:
    leases = await open_database_of(db).write_autocommit(
        partial(
            mailbox.claim, **({"namespaces": None} | how), worker="w", slots=slots, batch=1,
            lease_seconds=60,
        ),
        wakes=(),
    )  # fmt: skip
    return sorted(lease.namespace for lease in leases)


@pytest.mark.parametrize("scope", SCOPES, ids=str)
async def test_behind_2000_sessions_of_one_namespace_another_waits_for_one_turn_only(
    db: SessionsDB, database: Database, scope: Any
) -> None:
    await fill(database, big=2_000, small=3)
    begun: list[str] = []

    async def handler(turn: Turn) -> None:
        begun.append(turn.namespace)
        if begun.count("small") == 3:
            asyncio.get_running_loop().call_soon(stop.set)

    stop = asyncio.Event()
    async with running(db, handler, concurrency=2, namespaces=scope):
        async with asyncio.timeout(60):
            await stop.wait()
    assert begun.count("big") <= 12, begun


async def test_a_namespace_that_holds_slots_with_long_turns_leaves_the_next_to_others(
    db: SessionsDB, database: Database
) -> None:
    """Rotation alone would give each freed slot to the next namespace, until long turns of one
    hold all of them."""
    await fill(database, big=100, small=1)
    begun: list[str] = []
    going: list[asyncio.Event] = []

    async def handler(turn: Turn) -> None:
        begun.append(turn.namespace)
        if turn.namespace == "big":
            going.append(asyncio.Event())
            await going[-1].wait()

    async with running(db, handler, concurrency=4, namespaces="*", poll_interval=3_600):
        await until(lambda: len(going) == 4 and begun.count("small") == 1)
        await db.in_namespace("late").broker.register("s", channel="c", peer="p")
        await db.in_namespace("late").broker.send("s", "x")
        going[0].set()
        await until(lambda: "late" in begun)
        assert begun.count("big") <= 5


async def test_free_slots_go_to_a_namespace_that_is_alone(
    db: SessionsDB, database: Database
) -> None:
    await fill(database, big=20, small=1)
    together = asyncio.Event()
    running_now: list[str] = []

    async def handler(turn: Turn) -> None:
        running_now.append(turn.namespace)
        await together.wait()

    async with running(db, handler, concurrency=8, namespaces="*"):
        await until(lambda: len(running_now) == 8)
        assert sorted(running_now) == ["big"] * 7 + ["small"]
        together.set()


async def test_one_claim_shares_its_slots_and_goes_on_behind_the_last_namespace(
    db: SessionsDB, database: Database
) -> None:
    await fill(database, **dict.fromkeys("abcdef", 5))
    assert await claimed(db, 6) == list("abcdef")
    assert await claimed(db, 2, after="d") == ["e", "f"]
    assert await claimed(db, 2, after="e") == ["a", "f"]
    assert await claimed(db, 1, held={"a": 1, "b": 2}) == ["c"]
    assert await claimed(db, 4, namespaces=["a", "b"]) == ["a", "a", "b", "b"]
    assert await claimed(db, 2, namespaces=["b", "c"], after="b") == ["b", "c"]
    assert await claimed(db, 1, namespaces=["d", "e"], after="d") == ["e"]
    assert await claimed(db, 9, namespaces=["nobody", "none"]) == []
    assert await claimed(db, 9, namespaces=[]) == []


async def test_a_namespace_whose_ready_sessions_are_locked_keeps_no_slot_from_the_next_one(
    db: SessionsDB, database: Database
) -> None:
    if database.kind == "sqlite":
        pytest.skip("SQLite has one writer, and no row locks")
    await fill(database, first=1, second=1)
    begun: asyncio.Queue[str] = asyncio.Queue()

    async def handler(turn: Turn) -> None:
        begun.put_nowait(turn.namespace)

    async with db.engine.connect() as locking:
        await locking.execute(
            text("SELECT 1 FROM mailboxes WHERE namespace = 'first' FOR NO KEY UPDATE")
        )
        async with running(db, handler, concurrency=1, namespaces="*"):
            assert await asyncio.wait_for(begun.get(), 20) == "second"
            await locking.rollback()
            assert await asyncio.wait_for(begun.get(), 20) == "first"


@pytest.mark.parametrize("everywhere", [True, False])
async def test_a_shared_claim_costs_the_same_for_every_backlog_and_number_of_namespaces(
    kind: str, request: pytest.FixtureRequest, everywhere: bool
) -> None:
    maker = request.getfixturevalue("sqlite_files" if kind == "sqlite" else "postgres_server")
    read = {}
    for count, others in ((2_000, 100), (20_000, 1_000)):
        with maker.new_database() as database:
            await fill(database, big=count)
            await insert(database, others, "'n' || n", "'s'")
            # Stale statistics, of a time when everything was ready, are the worst case.
            await database.query("ANALYZE")
            await fill(database, idle=count)
            await database.query("UPDATE mailboxes SET ready_at = NULL WHERE namespace = 'idle'")
            watch = await watched_claim(database, None if everywhere else ["big", "n7", "idle"])
            read[count] = watch
    few, many = read.values()
    assert not [s for p in many.plans for s in p.scans if "mailboxes" in s], str(many)
    assert many.rows_read <= 1.5 * few.rows_read + 8, f"{few}\n\n{many}"
    assert many.rows_read < 40 * 8, str(many)


async def watched_claim(database: Database, namespaces: Sequence[str] | None) -> Watch:
    await explain_everything(database)
    async with watched(database) as (db, watch):
        await claimed(db, 8, namespaces=namespaces)
        await plans_are_in()
        watch.clear()
        assert len(await claimed(db, 8, namespaces=namespaces, after="big")) >= 4
        await plans_are_in()
    return watch


def test_the_shares_are_even_and_the_first_go_first() -> None:
    assert share_slots(["a", "b", "c"], {}, 4) == {"a": 2, "b": 1, "c": 1}
    assert share_slots(["a", "b"], {"a": 3}, 3) == {"b": 3}
    assert share_slots(["a", "b"], {"a": 3}, 5) == {"a": 1, "b": 4}
    assert share_slots([], {"a": 3}, 5) == {}
    assert in_rotation("cab", "a") == ["b", "c", "a"]
    assert in_rotation("cab", "") == ["a", "b", "c"]


async def test_a_worker_of_no_namespace_is_refused(db: SessionsDB) -> None:
    with pytest.raises(InvalidArgument, match="namespaces is empty"):
        db.worker(echo, namespaces=[])

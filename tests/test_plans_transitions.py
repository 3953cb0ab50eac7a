"""Verbs that change one session read its rows, however many sessions and children there are."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial

import pytest

from devtools.databases import Database
from sessionsdb import SessionsDB, SpawnRequest
from sessionsdb.database import open_database_of
from sessionsdb.operations import expiry, undeliverable
from tests.support.plans import Watch, explain_everything, plans_are_in, watched

SESSIONS = 20_000

Opened = tuple[SessionsDB, Watch]
Verb = Callable[[SessionsDB], Awaitable[object]]


@pytest.fixture(params=[False, True], ids=["young", "analysed"])
async def opened(database: Database, request: pytest.FixtureRequest) -> AsyncIterator[Opened]:
    """20,000 children of 2,000 sessions, and 20,000 sessions beside them."""
    time = "'2026-01-01 00:00:00.000000'"
    numbers = (
        "WITH RECURSIVE numbers(n) AS"
        f" (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {SESSIONS})"
    )
    columns = "(namespace, id, parent_id, root_id, depth, channel, peer, created_at, updated_at,"
    times = f"{time}, {time}, {time}"
    boss = "'root-' || (1000 + n / 10)"
    for id, parent in (("'root-' || n", "NULL, NULL, 0"), ("'child-' || n", f"{boss}, {boss}, 1")):
        await database.query(
            f"INSERT INTO sessions {columns} last_active) {numbers}"
            f" SELECT 'default', {id}, {parent}, 'c', 'p', {times} FROM numbers"
        )
    await database.query(
        "INSERT INTO mailboxes (namespace, session_id) SELECT namespace, id FROM sessions"
    )
    if request.param:
        await database.query("ANALYZE")
    await explain_everything(database)
    async with watched(database) as (db, watch):
        yield db, watch


async def cancel(db: SessionsDB) -> object:
    return await db.broker.cancel(await db.broker.send("root-1", "hello"))


def due(operation: Callable[..., object], **options: object) -> Verb:
    """Return a look of a worker for what is due: of all namespaces, or of one."""

    async def look(db: SessionsDB) -> None:
        for namespaces in (None, ["default"]):
            one = partial(operation, namespaces=namespaces, **options)
            await open_database_of(db).write(one, wakes=())

    return look


VERBS: dict[str, Verb] = {
    "delete a root": lambda db: db.store.delete("root-7"),
    "delete a child": lambda db: db.store.delete("child-7"),
    "end a root": lambda db: db.broker.end("root-8"),
    "end a child": lambda db: db.broker.end("child-8"),
    "end a subtree": lambda db: db.broker.end("root-9", subtree=True),
    "interrupt": lambda db: db.broker.interrupt("root-10", subtree=True),
    "cancel": cancel,
    "fork": lambda db: db.broker.fork("root-11"),
    "reap": due(expiry.reap, max_attempts=1),
    "wake": due(expiry.wake),
    "set aside": lambda db: open_database_of(db).write(
        partial(undeliverable.set_aside, namespaces=["default"], limit=8), wakes=()
    ),
    "spawn": lambda db: db.broker.spawn("root-12", SpawnRequest(prompt="do this")),
}


@pytest.mark.parametrize("verb", VERBS)
async def test_a_verb_reads_the_rows_of_its_session(opened: Opened, verb: str) -> None:
    db, watch = opened
    watch.clear()
    await VERBS[verb](db)
    await plans_are_in()
    assert watch.plans
    assert watch.rows_read < 100, str(watch)

"""One long session among many short ones is worked on by key.

By the statistics of PostgreSQL each session has one row in each table. So a search by the session
alone seems to be as cheap as one by the whole key, and reads all rows of the long session.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest

from devtools.databases import Database
from sessionsdb import Edit, Question, Reply, RetryAfter, SessionsDB, Turn
from sessionsdb.admin.purge import purge
from sessionsdb.database import open_database_of
from sessionsdb.operations import lease_ends
from sessionsdb.operations.inbox_types import Fail
from sessionsdb.operations.retention import RetentionRules
from tests.support.plans import explain_everything, plans_are_in, watched
from tests.support.turns import WORKER, claim

SHORT = 5_000
ROWS = 2_000
"""The receipts and the messages of a long session."""

Verb = Callable[[SessionsDB, str], Awaitable[Any]]


async def turn(db: SessionsDB, id: str) -> None:
    async def echo(turn: Turn) -> str:
        return turn.text

    receipt = await db.broker.send(id, "hello", idempotency_key="key")
    await db.broker.send(id, "hello", idempotency_key="key")
    await db.worker(echo).run_until_idle()
    await db.broker.outcome(receipt)
    await db.broker.wait(receipt)
    await db.broker.inbox(id)


async def failed_turn(db: SessionsDB, id: str) -> None:
    async def fail(turn: Turn) -> str:
        if turn.attempt == 1:
            raise RetryAfter(0.0)
        raise RuntimeError("it broke")

    receipt = await db.broker.send(id, "hello")
    await db.worker(fail, max_attempts=2).run_until_idle()
    await db.broker.dead_letters(id)
    await db.broker.requeue(receipt)
    await db.broker.cancel(receipt)


async def stopped_turn(db: SessionsDB, id: str) -> None:
    await db.broker.send(id, "hello")
    await claim(db)
    await db.broker.interrupt(id)


async def retry_that_is_stopped(db: SessionsDB, id: str) -> None:
    await db.broker.send(id, "hello")
    [lease] = await claim(db)
    failure = Fail(lease, "it broke", retry_in=60.0)
    await open_database_of(db).runner.write(
        partial(lease_ends.fail, worker=WORKER, failures=[failure])
    )
    [stopped] = await db.broker.interrupt(id)
    assert stopped.status == "cancelled"


async def question(db: SessionsDB, id: str) -> None:
    async def ask(turn: Turn) -> Reply | str:
        if turn.answer is None:
            return Reply("?", ask=Question(prompt="Which?", accept_message=True))
        return "done"

    await db.broker.send(id, "hello")
    await db.worker(ask).run_until_idle()
    await db.broker.send(id, "that one")
    await db.worker(ask).run_until_idle()


async def follow(db: SessionsDB, id: str) -> None:
    async for event in db.broker.follow(id):
        if event.type == "idle":
            break


async def joined_messages(db: SessionsDB, id: str) -> None:
    async def join(turn: Turn) -> str:
        if turn.text == "first":
            await db.broker.send(id, "second", sender=None)
            await turn.take_incoming()
        return "done"

    await db.broker.send(id, "first")
    await db.worker(join).run_until_idle()


async def edits(db: SessionsDB, id: str) -> None:
    await db.store.append(id, [{"role": "user", "content": "more"}])
    await db.store.edit(id, Edit(append=[{"role": "user", "content": "more"}]))
    await db.store.pop(id)
    await db.broker.history(id, 5)
    await db.store.entries(id, limit=5)


async def end(db: SessionsDB, id: str) -> None:
    await db.broker.send(id, "hello")
    await db.broker.end(id)
    await db.broker.reopen(id)


VERBS: dict[str, Verb] = {
    verb.__name__: verb
    for verb in (
        turn, failed_turn, stopped_turn, retry_that_is_stopped, question, follow, joined_messages,
        edits, end,
    )
}  # fmt: skip


@pytest.fixture(scope="module")
def skewed(request: pytest.FixtureRequest) -> Iterator[Database]:
    with request.getfixturevalue("postgres_server").new_database() as database:
        asyncio.run(fill(database))
        yield database


async def fill(database: Database) -> None:
    """Short sessions, whose statistics are taken, and behind them a long one for each verb."""
    short = f"SELECT 'short-' || n AS id, 1 AS n FROM generate_series(1, {SHORT}) AS n"
    names = ", ".join(f"('{name}')" for name in VERBS)
    long = f"SELECT v.id, n FROM (VALUES {names}) AS v(id), generate_series(1, {ROWS}) AS n"
    for rows in (short, long):
        await database.query(
            "INSERT INTO sessions (namespace, id, channel, peer, created_at, updated_at,"
            " last_active, version, message_count, last_seq) SELECT 'default', r.id, 'cli', 'ann',"
            f" now(), now(), now(), 2, count(*), count(*) FROM ({rows}) AS r GROUP BY r.id"
        )
        await database.query(
            "INSERT INTO mailboxes (namespace, session_id, head, tail)"
            f" SELECT 'default', r.id, count(*) + 1, count(*) FROM ({rows}) AS r GROUP BY r.id"
        )
        await database.query(
            "INSERT INTO inbox (namespace, session_id, position, status, content, enqueued_at,"
            " finished_at, first_seq, last_seq) SELECT 'default', r.id, r.n, 'done', 'hello',"
            f" now(), now(), r.n, r.n FROM ({rows}) AS r"
        )
        await database.query(
            "INSERT INTO messages (namespace, session_id, seq, role, content, created_at, position)"
            f" SELECT 'default', r.id, r.n, 'assistant', 'hello', now(), r.n FROM ({rows}) AS r"
        )
        if rows is short:
            await database.query("ANALYZE")
    await explain_everything(database)


@pytest.mark.parametrize("verb", VERBS)
async def test_a_verb_reads_few_rows_of_a_long_session(skewed: Database, verb: str) -> None:
    async with watched(skewed) as (db, watch):
        watch.clear()
        await VERBS[verb](db, verb)
        await plans_are_in()
        costly = [plan for plan in watch.plans if plan.rows_read >= ROWS // 2]
        assert watch.plans
        assert not costly, "\n\n".join(map(str, costly))


async def test_a_purge_reads_a_row_of_a_long_session_a_few_times_at_most(
    skewed: Database,
) -> None:
    """In ten transactions, of which each reads the rows that it deletes."""
    count = 10_000
    async with watched(skewed) as (db, watch):
        await db.broker.register("purged", channel="old", peer="ann")
        await db.store.append("purged", [{"role": "user", "content": "hello"}] * count)
        await plans_are_in()
        watch.clear()
        tomorrow = datetime.now(UTC) + timedelta(days=1)
        rules = RetentionRules(messages_before=tomorrow, channel="old")
        assert (await purge(db, rules, duty_cycle=1.0)).messages == count
        await plans_are_in()
        deletes = [plan for plan in watch.plans if "DELETE FROM messages" in plan.sql]
        assert len(deletes) >= 10
        assert sum(plan.rows_read for plan in deletes) < 5 * count

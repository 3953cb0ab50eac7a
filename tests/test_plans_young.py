"""Plans from the time of small tables are replaced when the tables have grown."""

from __future__ import annotations

import pytest

from devtools.databases import Database
from sessionsdb import SessionsDB, Turn
from sessionsdb.engine.postgresql import connection_cache
from tests.support.plans import explain_everything, plans_are_in, watched

ROWS = 20_000
IDS = [f"s{number}" for number in range(8)]


async def echo(turn: Turn) -> str:
    return turn.text


async def use(db: SessionsDB) -> None:
    for id in IDS:
        await db.store.append(id, [{"role": "user", "content": "hello"}])
        await db.broker.send(id, "hello")
    assert await db.worker(echo).run_until_idle() == len(IDS)


@pytest.mark.parametrize("kind", ["postgresql"])
async def test_a_young_database_is_read_by_key_while_it_grows(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Autovacuum analyses a table a minute after its growth began, at the earliest."""
    monkeypatch.setattr(connection_cache, "REPLAN_SECONDS", 0.0)
    monkeypatch.setattr(connection_cache, "REPLAN_STATEMENTS", 8)
    await explain_everything(database)
    async with watched(database) as (db, watch):
        await use(db)
        await database.query("ANALYZE")
        await use(db)  # planned for eight sessions with a few messages each
        await database.query(
            "INSERT INTO sessions (namespace, id, channel, peer, created_at, updated_at,"
            " last_active) SELECT 'default', 'more-' || n, 'cli', 'ann', now(), now(), now()"
            f" FROM generate_series(1, {ROWS}) AS n"
        )
        await database.query(
            "INSERT INTO mailboxes (namespace, session_id) SELECT 'default', id FROM sessions"
            " WHERE id LIKE 'more-%'"
        )
        await database.query(
            "INSERT INTO inbox (namespace, session_id, position, status, content, enqueued_at)"
            " SELECT 'default', 'more-' || n, 1, 'done', 'hello', now()"
            f" FROM generate_series(1, {ROWS}) AS n"
        )
        for _ in range(2):  # every connection reaches its limit
            await use(db)
        await plans_are_in()
        watch.clear()
        await use(db)
        await plans_are_in()
        # 8 appends, 8 sends and 8 turns, a few rows each.
        assert watch.rows_read < 1_000, watch

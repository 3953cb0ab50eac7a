"""Inboxes with many waiting messages, written by plain SQL."""

from __future__ import annotations

from devtools.databases import Database


async def fill(database: Database, *, waiting: int, sessions: int) -> None:
    """Write ``waiting`` messages, spread evenly over ``sessions`` ready sessions, and before them
    as many finished ones."""
    each = waiting // sessions
    numbers = (
        "WITH RECURSIVE numbers(n) AS"
        " (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {count})"
    )
    if database.kind == "sqlite":
        time = "strftime('%Y-%m-%d %H:%M:%S.000000', 1704067200 + n, 'unixepoch')"
    else:
        time = "to_timestamp(1704067200 + n)"
    await database.query(
        "INSERT INTO sessions (namespace, id, channel, peer, created_at, updated_at, last_active)"
        f" {numbers.format(count=sessions)}"
        f" SELECT 'default', 's' || n, 'bench', 'peer', {time}, {time}, {time} FROM numbers"
    )
    await database.query(
        "INSERT INTO mailboxes (namespace, session_id, head, tail, pending, ready_at)"
        f" {numbers.format(count=sessions)}"
        f" SELECT 'default', 's' || n, {each + 1}, {2 * each}, {each}, {time} FROM numbers"
    )
    await database.query(
        "INSERT INTO inbox (namespace, session_id, position, status, content, enqueued_at,"
        f" finished_at) {numbers.format(count=2 * waiting)}"
        f" SELECT 'default', 's' || (1 + (n - 1) / {2 * each}), 1 + (n - 1) % {2 * each},"
        f" CASE WHEN (n - 1) % {2 * each} < {each} THEN 'done' ELSE 'pending' END,"
        f" 'message ' || n, {time},"
        f" CASE WHEN (n - 1) % {2 * each} < {each} THEN {time} END FROM numbers"
    )
    await database.query("ANALYZE")

"""Schedules in tests: let time pass, fire what is due, and read what was sent."""

from __future__ import annotations

from functools import partial

from devtools.databases import Database
from sessionsdb import SessionsDB
from sessionsdb.database import open_database_of
from sessionsdb.operations import firing
from sessionsdb.operations.firing import Fired

_TIMES = ("due_at", "try_at", "created_at", "refused_at", "last_fired_at", "at")


async def let_pass(database: Database, *, days: float = 0, hours: float = 0) -> None:
    """Move all schedules into the past, as if this time had passed."""
    seconds = int(days * 86_400 + hours * 3_600)
    moved = ", ".join(
        f"{column} = strftime('%Y-%m-%d %H:%M:%f', {column}, '-{seconds} seconds') || '000'"
        if database.kind == "sqlite"
        else f"{column} = {column} - interval '{seconds} seconds'"
        for column in _TIMES
    )
    # Schedules are written under the locks of their mailboxes only: a worker may fire them now.
    locked = "1"
    if database.kind == "postgresql":
        locked = "(SELECT count(*) FROM (SELECT 1 FROM mailboxes FOR UPDATE) AS l)"
    await database.query(f"UPDATE schedules SET {moved} WHERE {locked} > 0")


async def fire(db: SessionsDB) -> Fired:
    """Send what is due in the namespace, as a worker does."""
    database = open_database_of(db)
    return await database.write(
        partial(firing.fire, namespaces=[db.namespace], limits=database.limits), wakes=()
    )


async def sent(database: Database) -> list[str]:
    """Return the texts of all inboxes, by namespace, session and position."""
    rows = await database.query(
        "SELECT content FROM inbox ORDER BY namespace, session_id, position"
    )
    return [content for (content,) in rows]

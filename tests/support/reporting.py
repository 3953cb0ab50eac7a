"""A database with every kind of row that reports show, and its raw rows."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, date, datetime
from functools import partial
from pathlib import Path
from typing import Any

from devtools.databases import Database
from sessionsdb import Reply, SessionsDB, SpawnRequest, Turn
from sessionsdb.database import open_database_of
from sessionsdb.handlers import echo
from sessionsdb.operations import lease_ends
from sessionsdb.operations.inbox_types import Fail
from sessionsdb.reports.catalogue import Column, View
from tests.support.turns import WORKER, claim
from tests.support.work import SOON

CHANNELS = ("web", "discord", "email")


async def metered(turn: Turn) -> Reply:
    """Answer with usage. Fail a message that asks for it, once or always."""
    if "always" in turn.text or ("once" in turn.text and turn.attempt == 1):
        raise RuntimeError("no answer\nfor | this")
    if "free" in turn.text:
        return Reply(None)
    length = len(turn.text)
    model = "large" if length > 150 else "small"
    return Reply("done", model, input_tokens=700 + 4 * length, output_tokens=60 + length)


async def fill(database: Database, transcripts: Path) -> None:
    """Store real conversations, answered by ``echo`` and by an agent that reports its usage. Then
    add a message in every state, in two namespaces."""
    lines = (await asyncio.to_thread(transcripts.read_text)).splitlines()
    async with SessionsDB(database.url) as db:
        await _converse(db, [json.loads(line) for line in lines])
        await _add_every_state(db, database)
        await _add_every_state(db.in_namespace("acme"), database)
    await _spread(database)


async def _converse(db: SessionsDB, conversations: list[dict[str, Any]]) -> None:
    said: dict[str, list[str]] = {}
    for conversation in conversations:
        id, messages = conversation["session_id"], conversation["messages"]
        channel = CHANNELS[conversation["task_id"] % len(CHANNELS)]
        await db.broker.register(id, channel=channel, peer="customer", model="gpt")
        await db.store.save(id, messages)
        said[id] = [m["content"] for m in messages if m["role"] == "user" and m.get("content")]
    for handler, first, last in ((echo, 0, 2), (metered, 2, 4)):
        for id, texts in said.items():
            for text in texts[first:last]:
                await db.broker.send(id, text)
        await db.worker(handler, retry=SOON).run_until_idle()


async def _add_every_state(db: SessionsDB, database: Database) -> None:
    names = ("plain", "batched", "retried", "dead", "requeued", "ended", "waits", "runs", "late")
    for name in names:
        await db.broker.register(name, channel="cli" if name < "e" else "web", peer="ann")
    # A tree of three levels, one branch of which has ended.
    child = await db.broker.spawn("plain", SpawnRequest(prompt="look"))
    await db.broker.spawn(child.id, SpawnRequest(prompt="look closer"))
    other = await db.broker.spawn("plain", SpawnRequest(prompt="elsewhere"))
    await db.broker.send("plain", "for free")
    for place in range(5):
        await db.broker.send("batched", f"part {place}", sender="plain")
    await db.broker.send("retried", "fail once")
    await db.broker.send("dead", "always failing")
    await db.broker.send("dead", "but then it works")
    await db.broker.send("requeued", "always failing")
    await db.worker(metered, batch=3, max_attempts=2, retry=SOON).run_until_idle()
    await db.broker.end(other.id, reason="not needed")

    await db.broker.requeue((await db.broker.dead_letters("requeued"))[0].receipt)
    for name, texts in (("ended", 2), ("waits", 3), ("runs", 2), ("late", 1)):
        for _ in range(texts):
            await db.broker.send(name, "hello")
    await db.broker.end("ended")
    for lease in await claim(db, slots=4):
        if lease.session.id == "waits":
            failure = Fail(lease, "Later: not now", retry_in=3600.0)
            await open_database_of(db).runner.write(
                partial(lease_ends.fail, worker=WORKER, failures=[failure])
            )
        elif lease.session.id == "requeued":
            await open_database_of(db).runner.write(
                partial(lease_ends.release, worker=WORKER, leases=[lease])
            )
    for name, until in (("late", "2020-01-01"), ("runs", "2200-01-01")):
        await database.query(
            f"UPDATE mailboxes SET lease_until = '{until} 00:00:00.000000'"
            f" WHERE session_id = '{name}'"
        )


async def _spread(database: Database) -> None:
    """Move finished messages back by up to four days, one to the microsecond before midnight."""
    if database.kind == "sqlite":
        ago = "date(substr({0}, 1, 10), -({1}) || ' days') || substr({0}, 11)"
        midnight = "substr(finished_at, 1, 10) || ' 23:59:59.999999'"
    else:
        ago = "{0} - make_interval(days => CAST({1} AS integer))"
        midnight = (
            "date_trunc('day', finished_at, 'UTC') + interval '1 day' - interval '1 microsecond'"
        )
    days = "(length(session_id) + position) % 5"
    moved = ", ".join(
        f"{column} = " + ago.format(column, days)
        for column in ("enqueued_at", "claimed_at", "finished_at")
    )
    await database.query(f"UPDATE inbox SET {moved} WHERE status IN ('done', 'dead')")
    await database.query(
        f"UPDATE inbox SET finished_at = {midnight} WHERE status = 'done' AND position = 2"
        " AND namespace = 'acme'"
    )
    await database.query(
        f"UPDATE messages SET created_at = {ago.format('created_at', '(seq * 7) % 4')}"
    )


# ---- reading with the bare driver ---------------------------------------------------------------

TIMES = ("_at", "last_active", "lease_until")


async def raw(database: Database, table: str) -> list[dict[str, Any]]:
    """All rows of a table as the bare driver returns them, with times as datetimes."""
    columns = await _columns(database, table)
    rows = await database.query(f"SELECT {', '.join(columns)} FROM {table}")
    return [
        {
            name: as_time(value) if name.endswith(TIMES) and value is not None else value
            for name, value in zip(columns, row, strict=True)
        }
        for row in rows
    ]


async def viewed(database: Database, view: View) -> list[dict[str, Any]]:
    """All rows of a view as the bare driver returns them, with times and days converted. Asserts
    that the values have the kinds of the catalogue."""
    names = [column.name for column in view.columns]
    rows = await database.query(f"SELECT {', '.join(names)} FROM {view.name}")
    return [
        {
            column.name: _value(database.kind, view, column, value)
            for column, value in zip(view.columns, row, strict=True)
        }
        for row in rows
    ]


def _value(database: str, view: View, column: Column, value: Any) -> Any:
    if value is None:
        return None
    assert type(value) is KINDS[database][column.kind], (view.name, column.name, value)
    if column.kind == "time":
        return as_time(value)
    if column.kind == "day" and isinstance(value, str):
        return date.fromisoformat(value)
    return value


KINDS: dict[str, dict[str, type]] = {
    "sqlite": {"text": str, "integer": int, "seconds": float, "time": str, "day": str},
    "postgresql": {"text": str, "integer": int, "seconds": float, "time": datetime, "day": date},
}


def as_time(value: Any) -> datetime:
    if isinstance(value, str):
        assert len(value) == len("2026-01-01 00:00:00.000000"), value
        return datetime.fromisoformat(value).replace(tzinfo=UTC)
    return value.astimezone(UTC)


async def _columns(database: Database, table: str) -> list[str]:
    if database.kind == "sqlite":
        return [row[1] for row in await database.query(f"PRAGMA table_info({table})")]
    return [
        row[0]
        for row in await database.query(
            f"SELECT attname::text FROM pg_attribute WHERE attrelid = '{table}'::regclass"
            " AND attnum > 0 AND NOT attisdropped ORDER BY attnum"
        )
    ]

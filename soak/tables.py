"""The tables as they are in the end: read by bare drivers, as plain rows."""

from __future__ import annotations

import contextlib
import sqlite3
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg

Row = dict[str, Any]

COLUMNS = {
    "sessions": "id, parent_id, root_id, depth, channel, created_at, updated_at, last_active,"
    " ended_at, version, last_seq, message_count, idempotency_key, report, forked_from, forked_seq",
    "messages": "session_id, seq, role, content, payload, created_at, position, extra",
    "mailboxes": "session_id, head, tail, pending, taken, ready_at, wake_at, owner, lease_until,"
    " epoch, closed, question",
    "orders": "token",
    "inbox": "session_id, position, status, content, sender, attempts, ahead, idempotency_key,"
    " error, enqueued_at, claimed_at, finished_at, dead_at, worker, first_seq, last_seq,"
    " stopped_by, answers, extra",
    "questions": "session_id, position, prompt, status, answer_position",
    "schedules": "session_id, content, due_at",
    "state_scopes": "scope, owner, session_id, version",
    "state_values": "scope, owner, key, value",
}

ORDER = {
    "orders": "token",
    "sessions": "id",
    "messages": "session_id, seq",
    "mailboxes": "session_id",
    "inbox": "session_id, position",
    "questions": "session_id, position",
    "schedules": "id",
    "state_scopes": "scope, owner",
    "state_values": "scope, owner, key",
}


@dataclass
class Tables:
    """All rows of the namespace, in the order of their keys. Times are text in UTC with
    microseconds, which compares as time does."""

    sessions: list[Row]
    messages: list[Row]
    mailboxes: list[Row]
    inbox: list[Row]
    orders: list[Row]
    """The rows that clients wrote themselves, in one transaction with a message."""
    questions: list[Row]
    schedules: list[Row]
    """The schedules that are not over."""
    state_scopes: list[Row]
    state_values: list[Row]
    integrity: list[str] = field(default_factory=list)
    """The errors that the database found in its own files."""

    def by_session(self, table: str) -> dict[str, list[Row]]:
        rows: dict[str, list[Row]] = {}
        for row in getattr(self, table):
            rows.setdefault(row["session_id"], []).append(row)
        return rows


def read_sqlite(path: Path) -> Tables:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("BEGIN")  # all as of one moment
        found = {
            table: [
                dict(zip(columns.split(", "), row, strict=True))
                for row in connection.execute(_select(table, columns))
            ]
            for table, columns in COLUMNS.items()
        }
    return _tables(found)


async def read_postgresql(url: str) -> Tables:
    connection = await asyncpg.connect(url)
    try:
        found = {}
        async with connection.transaction(isolation="repeatable_read"):
            for table, columns in COLUMNS.items():
                listed = ", ".join(
                    f"to_char({name} AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') AS {name}"
                    if name.endswith("_at") or name in ("last_active", "lease_until")
                    else name
                    for name in columns.split(", ")
                )
                rows = await connection.fetch(_select(table, listed))
                found[table] = [dict(row) for row in rows]
    finally:
        await connection.close()
    return _tables(found)


def _tables(found: dict[str, list[Row]]) -> Tables:
    return Tables(
        found["sessions"],
        found["messages"],
        found["mailboxes"],
        found["inbox"],
        found["orders"],
        found["questions"],
        found["schedules"],
        found["state_scopes"],
        found["state_values"],
    )


def _select(table: str, columns: str) -> str:
    ours = "" if table == "orders" else "WHERE namespace = 'default'"
    return f"SELECT {columns} FROM {table} {ours} ORDER BY {ORDER[table]}"

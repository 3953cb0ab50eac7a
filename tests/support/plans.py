"""The plans of the statements that the package ran for a call, as the database reports them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import Engine

from devtools.databases import Database
from sessionsdb import SessionsDB

STEPS_A_ROW = 50
"""SQLite's virtual machine takes about half as many steps to look a row up and return it."""


@dataclass
class Plan:
    """The plan of one statement."""

    sql: str
    steps: list[str]
    """PostgreSQL's nodes, or the lines of SQLite's EXPLAIN QUERY PLAN."""
    rows_read: int
    """On SQLite computed from the steps of its virtual machine, rounded down."""
    pairs_discarded: int = 0
    """On PostgreSQL: pairs of rows that a join compared and discarded."""

    @property
    def sorts(self) -> list[str]:
        return [step for step in self.steps if "Sort" in step or "TEMP B-TREE" in step]

    @property
    def scans(self) -> list[str]:
        """Steps that walk over a table, or over a whole index, instead of searching it.

        A co-routine of SQLite has steps of its own, and a scan of it reads what they found.
        """
        routines = [one[11:] for one in self.steps if one.startswith("CO-ROUTINE ")]
        harmless = {"SCAN CONSTANT ROW", *(f"SCAN {name}" for name in routines)}
        return [
            step
            for step in self.steps
            if step.startswith(("Seq Scan", "Parallel Seq Scan"))
            or (step.startswith("SCAN ") and step not in harmless)
        ]

    def __str__(self) -> str:
        return "\n".join((self.sql, *self.steps, f"{self.rows_read} rows read"))


class Watch:
    """The plans of all statements since the last ``clear``."""

    def __init__(self) -> None:
        self.plans: list[Plan] = []

    def clear(self) -> None:
        self.plans.clear()

    @property
    def rows_read(self) -> int:
        return sum(plan.rows_read for plan in self.plans)

    def __str__(self) -> str:
        return "\n\n".join(map(str, self.plans))


async def explain_everything(database: Database) -> None:
    """Make PostgreSQL report the plan of each statement, from the next connection on."""
    if database.kind == "postgresql":
        name = await database.value("SELECT current_database()")
        for setting in (
            "session_preload_libraries = auto_explain",
            "auto_explain.log_min_duration = 0",
            "auto_explain.log_analyze = on",
            "auto_explain.log_timing = off",
            "auto_explain.log_format = json",
            "auto_explain.log_level = notice",
        ):
            await database.query(f"ALTER DATABASE {name} SET {setting}")


@contextlib.asynccontextmanager
async def watched(database: Database) -> AsyncIterator[tuple[SessionsDB, Watch]]:
    """The open database, and a watch on its statements."""
    watch = Watch()
    db = SessionsDB(database.url)
    if database.kind == "postgresql":

        @event.listens_for(db.engine.sync_engine, "connect")
        def _listen(connection: Any, _record: Any) -> None:
            connection.driver_connection.add_log_listener(
                lambda _, notice: watch.plans.append(_postgresql_plan(notice.message))
            )

        async with db:
            yield db, watch
    else:
        with _explained_sqlite(database, watch):
            async with db:
                yield db, watch


async def plans_are_in() -> None:
    """Let the event loop deliver the notices of PostgreSQL."""
    for _ in range(5):
        await asyncio.sleep(0)


def _postgresql_plan(message: str) -> Plan:
    explained = json.loads(message[message.index("{") :])
    steps: list[str] = []
    rows = discarded = 0
    for node in _nodes(explained["Plan"]):
        kind = node["Node Type"]
        discarded += round(node.get("Rows Removed by Join Filter", 0) * node["Actual Loops"])
        steps.append(f"{kind} {node.get('Index Name', node.get('Relation Name', ''))}")
        if kind.endswith("Scan") and "Relation Name" in node:
            removed = node.get("Rows Removed by Filter", 0)
            removed += node.get("Rows Removed by Index Recheck", 0)
            rows += round((node["Actual Rows"] + removed) * node["Actual Loops"])
    return Plan(explained["Query Text"], steps, rows, discarded)


def _nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", ()):
        yield from _nodes(child)


@contextlib.contextmanager
def _explained_sqlite(database: Database, watch: Watch) -> Iterator[None]:
    mine = sqlite3.connect(database.path, check_same_thread=False, isolation_level=None)
    # A thread that sets the handler waits for SQLite's mutex and keeps Python's lock. Another one,
    # in a statement, has the mutex, and its handler waits for Python's lock.
    lock = threading.Lock()
    steps = 0

    def count() -> None:
        nonlocal steps
        steps += 1

    def explain(_c: Any, _k: Any, statement: str, parameters: Any, *_: Any) -> None:
        nonlocal steps
        if not statement.lstrip().upper().startswith(("SELECT", "WITH")):
            return
        with lock:
            lines = [row[3] for row in mine.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)]
            steps = 0
            mine.set_progress_handler(count, 1)
            mine.execute(statement, parameters).fetchall()
            mine.set_progress_handler(None, 1)
            watch.plans.append(Plan(statement, lines, steps // STEPS_A_ROW))

    event.listen(Engine, "before_cursor_execute", explain)
    try:
        yield
    finally:
        event.remove(Engine, "before_cursor_execute", explain)
        mine.close()

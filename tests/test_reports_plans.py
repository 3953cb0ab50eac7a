"""The plans of the reports: the inbox report never reads finished messages, and a condition on the
session or the namespace reaches the tables."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator

import pytest

from benchmarks.reports import fill_postgres, fill_sqlite
from devtools.databases import Database
from sessionsdb import reports
from tests.support.plans import Plan, explain_everything, plans_are_in, watched

FINISHED = 100_000
BUSY = 400
"""Sessions with unfinished messages in the rows of the benchmark."""


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def large(request: pytest.FixtureRequest) -> Iterator[Database]:
    """100,000 finished messages of 1,000 sessions. 400 sessions have three unfinished ones."""
    maker = "sqlite_files" if request.param == "sqlite" else "postgres_server"
    with request.getfixturevalue(maker).new_database() as database:
        if database.kind == "sqlite":
            connection = sqlite3.connect(database.path)
            connection.execute("PRAGMA synchronous = OFF")
            fill_sqlite(connection, FINISHED, transcripts=False)
            connection.close()
        else:
            asyncio.run(_fill(database))
        yield database


async def _fill(database: Database) -> None:
    connection = await database.connect_to_postgres()
    await fill_postgres(connection, FINISHED, transcripts=False)
    await connection.close()
    await explain_everything(database)


async def plan_of(
    database: Database, name: str, namespace: str = "default", channel: str | None = None
) -> Plan:
    async with watched(database) as (db, watch):
        await plans_are_in()
        watch.clear()
        await reports.read(db.in_namespace(namespace), name, channel=channel)
        await plans_are_in()
    [plan] = [plan for plan in watch.plans if f"report_{name}" in plan.sql]
    return plan


async def test_the_inbox_report_never_reads_finished_messages(large: Database) -> None:
    plan = await plan_of(large, "inbox")
    inbox = [step for step in plan.steps if "inbox" in step or "SEARCH i " in step]
    assert inbox
    for step in inbox:
        assert "Seq Scan" not in step
        assert not step.startswith("SCAN inbox") or "COVERING INDEX ix_inbox_dead" in step
    # A few rows for each waiting and each dead message, none for the 100,000 finished ones.
    assert BUSY <= plan.rows_read < 20 * BUSY, str(plan)


async def test_the_inbox_report_costs_the_same_without_statistics(large: Database) -> None:
    """The same on a server without statistics (no ANALYZE)."""
    if large.kind == "postgresql":
        await large.query("DELETE FROM pg_statistic")
    plan = await plan_of(large, "inbox")
    assert plan.rows_read < 20 * BUSY, str(plan)
    if large.kind == "postgresql":
        await large.query("ANALYZE")


async def test_a_walk_over_the_finished_would_be_seen(large: Database) -> None:
    """Prove that the tests above can fail."""
    plan = await plan_of(large, "turns")
    assert plan.rows_read >= FINISHED, str(plan)


@pytest.mark.parametrize("name", ["sessions", "turns", "activity", "latency", "tree", "inbox"])
async def test_a_small_namespace_costs_nothing_beside_a_large_one(
    large: Database, name: str
) -> None:
    plan = await plan_of(large, name, "small")
    # SQLite scans the indices of busy sessions, in all namespaces.
    limit = 20 * BUSY if large.kind == "sqlite" and name == "inbox" else 100
    assert plan.rows_read < limit, str(plan)


@pytest.mark.parametrize("name", ["sessions", "turns", "activity", "latency", "tree"])
async def test_nor_without_statistics(large: Database, name: str) -> None:
    """The same without statistics, the usual state of a SQLite file."""
    if large.kind == "postgresql":
        await large.query("DELETE FROM pg_statistic")
    plan = await plan_of(large, name, "small")
    assert plan.rows_read < 100, str(plan)
    if large.kind == "postgresql":
        await large.query("ANALYZE")


@pytest.mark.parametrize("large", ["sqlite"], indirect=True)
@pytest.mark.parametrize("name", ["activity", "latency"])
async def test_a_channel_is_picked_out_before_it_is_summed_up(large: Database, name: str) -> None:
    """On PostgreSQL the planner decides: at this size it scans the table."""
    everything = await plan_of(large, name)
    channel = await plan_of(large, name, channel="discord")
    assert channel.rows_read < everything.rows_read / 2, str(channel)


@pytest.mark.parametrize("name", ["sessions", "turns"])
async def test_one_session_is_found_by_its_key(large: Database, name: str) -> None:
    sql = f"SELECT * FROM report_{name} WHERE namespace = 'default' AND session_id = 'chat-0000007'"
    if large.kind == "sqlite":
        lines = [row[3] for row in await large.query(f"EXPLAIN QUERY PLAN {sql}")]
        scans = [line for line in lines if line.startswith("SCAN") and "report_" not in line]
    else:
        lines = [row[0] for row in await large.query(f"EXPLAIN {sql}")]
        # These tables are empty here, and PostgreSQL reads an empty table whole.
        empty = ("questions", "schedules")
        scans = [
            line
            for line in lines
            if "Seq Scan" in line and not any(f"on {table}" in line for table in empty)
        ]
    assert not scans, lines

"""docs/reporting.md: its columns are the views' columns, and its SQL runs with the output shown."""

from __future__ import annotations

import asyncio
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from devtools.databases import Database
from sessionsdb.reports.catalogue import VIEWS, View
from tests.support.reporting import fill

PAGE = (Path(__file__).parents[1] / "docs" / "reporting.md").read_text()


class Example(NamedTuple):
    sql: str
    kind: str | None
    """Its only database, if a comment on its first line names one."""
    output: list[str] | None


def examples() -> Iterator[Example]:
    blocks = re.finditer(r"```sql\n(.*?)```\n(?:\n```text\n(.*?)```\n)?", PAGE, re.DOTALL)
    for sql, output in (block.groups() for block in blocks):
        comment = re.match(r"-- (\w+)", sql)
        yield Example(
            sql, comment and comment[1].lower(), output.splitlines() if output is not None else None
        )


EXAMPLES = list(examples())
QUESTIONS = [example for example in EXAMPLES if example.output is not None]
RUN = [example for example in EXAMPLES if example.kind in (None, "sqlite", "postgresql")
       and "$__" not in example.sql and "search_path" not in example.sql]  # fmt: skip


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def filled(request: pytest.FixtureRequest, real_transcripts: Path) -> Iterator[Database]:
    maker = "sqlite_files" if request.param == "sqlite" else "postgres_server"
    with request.getfixturevalue(maker).new_database() as database:
        asyncio.run(fill(database, real_transcripts))
        yield database


def test_there_are_ten_questions_with_their_output() -> None:
    assert len(QUESTIONS) == len(re.findall(r"^### \d+\. .*\?$", PAGE, re.MULTILINE)) == 10
    assert all(example.kind is None for example in QUESTIONS)
    assert {example.kind for example in EXAMPLES} == {None, "sqlite", "postgresql", "duckdb"}


@pytest.mark.parametrize("example", RUN, ids=lambda example: example.sql[:40])
async def test_the_sql_runs_with_the_output_shown(filled: Database, example: Example) -> None:
    if example.kind not in (None, filled.kind):
        return  # for the other database
    columns, rows = await run_query(filled, example.sql)
    assert rows
    if example.output is not None:
        head, _, *lines = example.output
        assert [name.strip() for name in head.split(" | ")] == columns
        assert len(lines) == len(rows)
        shown = [[cell.strip() for cell in line.split("|")] for line in lines]
        # Times and durations differ from run to run; names and counts don't.
        for index, name in enumerate(columns):
            if name in STEADY:
                given = [str(row[index]).partition("\n")[0] for row in rows]
                assert [row[index] for row in shown] == given


STEADY = {
    "channel", "sessions", "messages", "turns", "tokens", "pending", "running", "retrying",
    "overdue", "dead", "input_tokens", "output_tokens", "model", "answered", "error", "attempts",
    "state", "subtree_sessions", "subtree_turns", "subtree_tokens", "root_channel", "handled",
    "retried",
}  # fmt: skip


async def run_query(database: Database, sql: str) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Column names and rows of a query, by the bare driver."""
    if database.kind == "sqlite":
        connection = sqlite3.connect(database.path)
        try:
            cursor = connection.execute(sql)
            return [column[0] for column in cursor.description], cursor.fetchall()
        finally:
            connection.close()
    connection = await database.connect_to_postgres()
    try:
        rows = await connection.fetch(sql)
        return list(rows[0].keys()) if rows else [], [tuple(row) for row in rows]
    finally:
        await connection.close()


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.name)
def test_every_column_is_explained(view: View) -> None:
    section = PAGE.partition(f"### {view.name}\n")[2].partition("\n#")[0]
    assert view.meaning in section
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.+) \|$", section, re.MULTILINE)
    assert rows == [tuple(column) for column in view.columns]

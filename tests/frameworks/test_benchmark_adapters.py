"""The benchmark of the adapters runs, with all sides that need no server of their own."""

from __future__ import annotations

from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from benchmarks import adapters
from benchmarks.bench import POSTGRESQL, SQLITE, Bench
from benchmarks.results import OURS
from devtools.databases import PostgresServer, SqliteFiles


@pytest.mark.timeout(600)
def test_all_sides_do_the_same_work(
    postgres_server: PostgresServer, sqlite_files: SqliteFiles
) -> None:
    makers: dict[str, Any] = {SQLITE: sqlite_files, POSTGRESQL: postgres_server}
    for maker in makers.values():
        with maker.new_database():
            pass
    bench = Bench(
        quick=True,
        tiny=True,
        only=frozenset((OURS, "openai-agents", "google-adk")),
        databases=(SQLITE, POSTGRESQL),
        makers=makers,
        console=Console(file=StringIO()),
        rounds=1,
        seconds=0.01,
    )
    result = bench.run("adapters", adapters.measure)
    measured = {(case.what, dict(case.at)["callers"]) for case in result.cases()}
    assert measured == {
        (f"{framework}: {what}", callers)
        for framework, cases in (
            ("OpenAI Agents", ("add", "pop", adapters.READ)),
            ("Google ADK", ("add", "list", adapters.READ)),
        )
        for what in cases
        for callers in adapters.CALLERS
    }
    for case in result.cases():
        sides = {one.side for one in result.measurements if one.case == case}
        assert sides == {OURS, case.what.partition(":")[0].lower().replace(" ", "-")}

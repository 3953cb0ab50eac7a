"""Databases of other locales and encodings: equal reports, and a warning."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest

from devtools.databases import Database, PostgresServer
from sessionsdb import SessionsDB
from sessionsdb.reports import queries
from sessionsdb.reports.catalogue import REPORTS
from tests.support.command_line import CommandLine

CHANNELS = ["b", "B", "a", "Z", "é", "_", "1", "\U0001f600", "ﬀ"]
_NUMBERS = count(1)


@pytest.fixture
def other_database(request: pytest.FixtureRequest) -> Iterator[Database]:
    server: PostgresServer = request.getfixturevalue("postgres_server")
    name = f"other_{next(_NUMBERS)}"
    server.sql(f"CREATE DATABASE {name} TEMPLATE template0 {request.param}")
    yield Database("postgresql", server.url(name))
    server.sql(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.mark.parametrize("name", REPORTS)
def test_no_report_is_ordered_by_the_locale_of_a_server(name: str) -> None:
    # A server with a locale that differs is not everywhere, so this looks at the statement.
    sql = queries.as_sql(queries.query(name, "default"), "postgresql")
    order = sql.rpartition("ORDER BY ")[2]
    view = REPORTS[name]
    kinds = {column.name: column.kind for column in view.columns}
    for by in (by.removeprefix("-") for by in view.order):
        assert (f'{by} COLLATE "C"' in order) == (kinds[by] == "text")
    assert "COLLATE" not in queries.as_sql(queries.query(name, "default"), "sqlite")


async def test_reports_are_ordered_by_code_point(db: SessionsDB) -> None:
    await _assert_ordered(db)


async def _assert_ordered(db: SessionsDB) -> None:
    for channel in CHANNELS:
        await db.broker.register(f"in {channel}", channel=channel, peer="p")
        await db.broker.send(f"in {channel}", "hi")
    await db.worker(_answer).run_until_idle()
    for name in ("activity", "latency"):
        report = await queries.read(db, name)
        days = {row["day"] for row in report.dicts()}
        if len(days) == 1:  # not over midnight
            assert [row["channel"] for row in report.dicts()] == sorted(CHANNELS)
            first = await queries.read(db, name, limit=3)
            assert [row["channel"] for row in first.dicts()] == sorted(CHANNELS)[:3]


async def _answer(_turn: object) -> str:
    return "ok"


@pytest.mark.parametrize(
    "other_database", ["ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'"], indirect=True
)
def test_migrate_and_doctor_say_that_an_emoji_will_be_refused(other_database: Database) -> None:
    for words in (["migrate"], ["migrate"], ["doctor"]):
        answer = CommandLine(other_database.url)(*words)
        assert "LATIN1" in answer.stdout + answer.stderr
        assert "emoji" in answer.stdout + answer.stderr

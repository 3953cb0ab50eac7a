"""Fixtures: every test with ``db`` or ``database`` runs on SQLite and on PostgreSQL.

PostgreSQL comes as a wheel and starts once in each test process. Each test gets its own database, a
copy of a migrated one.
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from devtools.databases import Database, PostgresServer, SqliteFiles
from devtools.run_tests import SET_UP_BY
from sessionsdb import SessionsDB
from sessionsdb.runtime import history_pages, transcript_loads

SCHEMA_VARIABLE = "SESSIONSDB_TEST_SCHEMA"
"""The schema that all tests on PostgreSQL run in, beside an application's tables in ``public``."""

REAL_TRANSCRIPTS = Path(__file__).parents[2] / "shared" / "data" / "airline-trajectories.jsonl"


# These tests need a server or packages that are not made here: see their conftest.py, and
# `make test-frameworks`.
collect_ignore = [folder for folder, variable in SET_UP_BY.items() if variable not in os.environ]


def pytest_configure() -> None:
    """End at SIGTERM as at Ctrl-C: with the PostgreSQL server and all processes of tests.

    Short transcripts and pages are remembered too. So a test that reads one again checks that what
    is remembered still stood.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    transcript_loads.REMEMBERED_FROM = 1
    history_pages.REMEMBERED_FROM = 1


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    with PostgresServer.started(schema=os.environ.get(SCHEMA_VARIABLE)) as server:
        yield server


@pytest.fixture(scope="session")
def sqlite_files(tmp_path_factory: pytest.TempPathFactory) -> SqliteFiles:
    return SqliteFiles(tmp_path_factory.mktemp("sqlite"))


@pytest.fixture(params=["sqlite", "postgresql"])
def kind(request: pytest.FixtureRequest) -> str:
    """The kind of database. Override this fixture to run a test on one database only."""
    return str(request.param)


@pytest.fixture
def database(kind: str, request: pytest.FixtureRequest) -> Iterator[Database]:
    """A migrated database for this test alone."""
    maker = "sqlite_files" if kind == "sqlite" else "postgres_server"
    with request.getfixturevalue(maker).new_database() as database:
        yield database


@pytest.fixture
def empty_database(kind: str, request: pytest.FixtureRequest) -> Iterator[Database]:
    """A database without any tables."""
    maker = "sqlite_files" if kind == "sqlite" else "postgres_server"
    with request.getfixturevalue(maker).new_database(migrated=False) as database:
        yield database


@pytest.fixture
async def db(database: Database) -> AsyncIterator[SessionsDB]:
    async with SessionsDB(database.url) as db:
        yield db


@pytest.fixture(scope="session")
def real_transcripts() -> Path:
    """Real agent conversations as JSON lines. Skips the test where there are none."""
    given = os.environ.get("SESSIONSDB_TEST_TRANSCRIPTS")
    path = Path(given) if given else REAL_TRANSCRIPTS
    if not path.exists():
        pytest.skip("the real transcripts are not here")
    return path

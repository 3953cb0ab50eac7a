"""Fixtures: every test that asks for ``db`` or ``database`` runs on SQLite and on PostgreSQL.

PostgreSQL comes as a wheel and is started once for the whole run; each test gets a database of
its own, copied from a migrated one.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from devtools.databases import Database, PostgresServer, SqliteFiles
from sessionsdb import SessionsDB

REAL_TRANSCRIPTS = Path(__file__).parents[2] / "shared" / "data" / "airline-trajectories.jsonl"


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    with PostgresServer.started() as server:
        yield server


@pytest.fixture(scope="session")
def sqlite_files(tmp_path_factory: pytest.TempPathFactory) -> SqliteFiles:
    return SqliteFiles(tmp_path_factory.mktemp("sqlite"))


@pytest.fixture(params=["sqlite", "postgresql"])
def kind(request: pytest.FixtureRequest) -> str:
    """The kind of database a test runs on; override it to run a test on one only."""
    return str(request.param)


@pytest.fixture
def database(kind: str, request: pytest.FixtureRequest) -> Iterator[Database]:
    """A migrated database that nobody else uses, and its URL."""
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
    """Real agent conversations as JSON lines, where they are at hand."""
    given = os.environ.get("SESSIONSDB_TEST_TRANSCRIPTS")
    path = Path(given) if given else REAL_TRANSCRIPTS
    if not path.exists():
        pytest.skip("the real transcripts are not at hand")
    return path

"""The command that migrates, and the SQL that it prints for a manual migration."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from devtools.databases import Database, _binaries
from sessionsdb import SessionsDB
from sessionsdb.engine import migrations, urls
from tests.support.command_line import PROGRAM, CommandLine, environment

OLDEST = migrations.revisions()[0]


@pytest.fixture
def old_database(database: Database) -> Database:
    """A database at the first revision."""

    async def go_back() -> None:
        engine = create_async_engine(urls.parse(database.url))
        async with engine.begin() as connection:
            await connection.run_sync(migrations.downgrade, OLDEST)
        await engine.dispose()

    asyncio.run(go_back())
    return database


def apply(sql: str, database: Database) -> None:
    """Run a script with the tool of the database, like its administrator."""
    if database.kind == "sqlite":
        connection = sqlite3.connect(database.path)
        connection.executescript(sql)
        connection.close()
        return
    psql = Path(_binaries()) / "psql"
    subprocess.run(
        [psql, database.url, "-qX", "-v", "ON_ERROR_STOP=1"],
        input=sql.encode(),
        check=True,
        capture_output=True,
    )


async def works(url: str) -> bool:
    async with SessionsDB(url, migrate=False) as db:
        await db.store.save("chat-1", [{"role": "user", "content": "hi"}])
        await db.broker.send("chat-1", "hello")
        return await db.store.load("chat-1") == [{"role": "user", "content": "hi"}]


def test_an_empty_database_is_migrated(empty_database: Database) -> None:
    cli = CommandLine(empty_database.url)
    head = migrations.head()
    assert cli("migrate").ok().stdout == f"migrated: from no tables to revision {head}\n"
    assert cli("migrate").ok().stdout == f"nothing to do: the database is at revision {head}\n"
    assert asyncio.run(works(empty_database.url))


def test_migrate_tells_scripts_the_revisions(empty_database: Database) -> None:
    cli = CommandLine(empty_database.url)
    assert cli("migrate", "--json").ok().json == {"after": migrations.head()}
    assert cli("migrate", "--json").ok().json == {
        "before": migrations.head(),
        "after": migrations.head(),
    }


def test_an_old_database_is_migrated(old_database: Database) -> None:
    cli = CommandLine(old_database.url)
    said = cli("migrate").ok().stdout
    assert said == f"migrated: from revision {OLDEST} to revision {migrations.head()}\n"
    assert asyncio.run(works(old_database.url))


@pytest.mark.parametrize("kind", ["postgresql"])
def test_migrate_is_what_the_error_asks_for(old_database: Database) -> None:
    cli = CommandLine(old_database.url)
    cli("list").failed(OLDEST, migrations.head(), "sessionsdb migrate")
    cli("migrate").ok()
    assert cli("list", "--json").ok().json == []


@pytest.mark.parametrize("kind", ["sqlite"])
def test_an_old_file_is_migrated_when_it_is_used(old_database: Database) -> None:
    assert CommandLine(old_database.url)("list", "--json").ok().json == []
    assert asyncio.run(works(old_database.url))


def test_two_that_migrate_at_once_both_succeed(empty_database: Database) -> None:
    command = [PROGRAM, "--url", empty_database.url, "migrate"]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment())
        for _ in range(3)
    ]
    for process in running:
        _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (0, b"")
    assert asyncio.run(works(empty_database.url))


def test_the_printed_sql_makes_an_empty_database_fit(empty_database: Database) -> None:
    sql = CommandLine(empty_database.url).program("migrate", "--sql").ok().stdout
    apply(sql, empty_database)
    assert asyncio.run(works(empty_database.url))


def test_the_printed_sql_brings_an_old_database_up(old_database: Database) -> None:
    apply(
        CommandLine(old_database.url)("migrate", "--sql", "--since", OLDEST).ok().stdout,
        old_database,
    )
    assert asyncio.run(works(old_database.url))


def test_printing_sql_connects_to_nothing(tmp_path: Path) -> None:
    cli = CommandLine(f"sqlite:///{tmp_path}/none.db")
    cli("migrate", "--sql").ok()
    assert not list(tmp_path.iterdir())
    assert "CREATE TABLE" in CommandLine("postgresql://")("migrate", "--sql").ok().stdout

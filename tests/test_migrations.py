"""The revisions of the schema on both databases: up, down, at the same time, without drift."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from devtools.databases import Database, PostgresServer
from sessionsdb import (
    SchemaOutOfDate,
    SessionEnded,
    SessionsDB,
    SpawnRequest,
    StorageError,
)
from sessionsdb.engine import migrations
from sessionsdb.schema import metadata
from tests.support.schemas import (
    described,
    differences,
    downgrade,
    drop_views,
    in_transaction,
    revision,
    upgrade,
)
from tests.support.waiting import until

PROJECT = Path(__file__).parents[1]
REVISIONS = migrations.revisions()
HEAD = REVISIONS[-1]


async def fill_first_revision(database: Database) -> None:
    """Sessions and messages of revision 0001: a tree, and an ended session."""
    await database.query(
        "INSERT INTO sessions (namespace, id, parent_id, root_id, depth, channel, peer,"
        " created_at, updated_at, last_active, ended_at, version, last_seq, message_count) VALUES"
        + ", ".join(
            f"('default', {key}, {depth}, 'cli', 'ann', {', '.join([TIME[database.kind]] * 3)},"
            f" {ended}, 1, 1, 1)"
            for key, depth, ended in (
                ("'top', NULL, NULL", 0, "NULL"),
                ("'child', 'top', 'top'", 1, "NULL"),
                ("'ended', NULL, NULL", 0, TIME[database.kind]),
            )
        )
    )
    await database.query(
        "INSERT INTO messages (namespace, session_id, seq, role, content, created_at)"
        f" SELECT namespace, id, 1, 'user', 'hello', {TIME[database.kind]} FROM sessions"
    )


TIME = {
    "sqlite": "'2024-01-01 00:00:00.000000'",
    "postgresql": "timestamptz '2024-01-01 00:00:00+00'",
}

OLD = ["top", "child", "ended"]


async def old_transcripts(database: Database) -> list[tuple[Any, ...]]:
    return await database.query(
        "SELECT session_id, role, content FROM messages WHERE session_id IN"
        " ('top', 'child', 'ended') ORDER BY session_id DESC"
    )


KEPT = [(name, "user", "hello") for name in ("top", "ended", "child")]


async def use(database: Database, name: str) -> None:
    """Put rows into every table that the public verbs write to."""
    async with SessionsDB(database.url, migrate=False) as db:
        await db.store.save(name, [{"role": "user", "content": "hello"}])
        await db.broker.send(name, "hello", sender=name, idempotency_key="k")
        child = await db.broker.spawn(name, SpawnRequest(prompt="go"), idempotency_key="k")
        await db.broker.send(child.id, "more")
        await db.broker.end(child.id)


# ---- up and down ---------------------------------------------------------------------------------


async def test_every_revision_goes_up_and_down_with_rows_in_the_tables(
    empty_database: Database,
) -> None:
    database = empty_database
    at: dict[str, Any] = {}
    for target in REVISIONS:
        await upgrade(database, target)
        assert await revision(database) == target
        at[target] = await described(database)
        if target == REVISIONS[0]:
            await fill_first_revision(database)
        assert await old_transcripts(database) == KEPT
    await use(database, "used")

    for target in reversed(REVISIONS[:-1]):
        await downgrade(database, target)
        assert await revision(database) == target
        assert await described(database) == at[target]
        assert await old_transcripts(database) == KEPT
        await upgrade(database)
        assert await described(database) == at[HEAD]
        assert await old_transcripts(database) == KEPT
        await use(database, f"used after {target}")
    async with SessionsDB(database.url) as db:
        for summary in await db.broker.list():
            await db.broker.send(summary.id, "hello again")
        assert {s.id for s in await db.broker.list(root="top")} == {"top", "child"}

    await downgrade(database, "base")
    assert await revision(database) is None
    assert await described(database) == {}
    await upgrade(database)
    assert await described(database) == at[HEAD]
    await use(database, "used")


async def test_what_waits_in_an_inbox_outlives_the_revisions_behind_it(
    database: Database,
) -> None:
    await use(database, "used")
    waiting = "SELECT session_id, position, status, content FROM inbox ORDER BY 1, 2"
    before = await database.query(waiting)
    assert len(before) == 3
    await downgrade(database, "0002")
    await upgrade(database)
    assert await database.query(waiting) == before


async def test_senders_and_times_come_from_the_inbox_into_the_transcript(
    empty_database: Database,
) -> None:
    database = empty_database
    await upgrade(database, "0008")
    await fill_first_revision(database)
    later = TIME[database.kind].replace("2024", "2025")
    await database.query(
        "INSERT INTO mailboxes (namespace, session_id) SELECT namespace, id FROM sessions"
    )
    await database.query(
        "INSERT INTO inbox (namespace, session_id, position, status, content, sender, enqueued_at)"
        f" VALUES ('default', 'top', 1, 'done', 'a', 'child', {later}),"
        f" ('default', 'top', 2, 'done', 'b', NULL, {later})"
    )
    # Two turns: a message and the result of a tool, then a message and an answer.
    turns = [("user", 1), ("user", 1), ("user", 2), ("assistant", 2)]
    await database.query(
        "INSERT INTO messages (namespace, session_id, seq, role, content, created_at, position)"
        " VALUES "
        + ", ".join(
            f"('default', 'top', {seq}, '{role}', 'x', {TIME[database.kind]}, {position})"
            for seq, (role, position) in enumerate(turns, 2)
        )
    )
    await database.query("UPDATE sessions SET version = 0, last_seq = 0 WHERE id = 'ended'")
    read = "SELECT seq, sender, sent_at IS NULL FROM messages WHERE session_id = 'top' ORDER BY seq"
    for _ in range(2):  # also after a downgrade
        await upgrade(database)
        assert [(seq, sender, bool(none)) for seq, sender, none in await database.query(read)] == [
            (1, None, True),
            (2, "child", False),
            (3, None, True),
            (4, None, False),
            (5, None, True),
        ]
        versions = "SELECT id, version FROM sessions ORDER BY id"
        assert await database.query(versions) == [("child", 1), ("ended", 1), ("top", 1)]
        await downgrade(database, "0008")
        assert await database.query(versions) == [("child", 1), ("ended", 0), ("top", 1)]


async def test_a_migration_that_fails_leaves_nothing_behind(empty_database: Database) -> None:
    await empty_database.query("CREATE TABLE inbox (theirs integer)")
    with pytest.raises(StorageError, match="inbox"):
        async with SessionsDB(empty_database.url, migrate=True):
            pass
    assert list(await described(empty_database)) == ["inbox"]
    assert await revision(empty_database) is None


def test_the_revisions_are_told_without_alembic_as_alembic_tells_them() -> None:
    scripts = ScriptDirectory.from_config(migrations.configuration())
    assert migrations.head() == scripts.get_current_head()
    assert list(REVISIONS) == [script.revision for script in scripts.walk_revisions()][::-1]


# ---- no drift ------------------------------------------------------------------------------------


async def test_no_drift_between_the_schema_and_the_head_for_autogenerate(
    database: Database,
) -> None:
    assert await differences(database) == []


async def test_no_drift_between_the_schema_and_the_head_in_indices_checks_and_options(
    database: Database, empty_database: Database
) -> None:
    await drop_views(database)  # the schema has no views: the tests of the reports check them
    await in_transaction(empty_database, metadata.create_all)
    assert await described(database) == await described(empty_database)
    assert set(await described(database)) == set(metadata.tables)


@pytest.mark.parametrize(
    "change",
    [
        "DROP INDEX ix_sessions_updated",
        "ALTER TABLE sessions ADD COLUMN more text",
        "ALTER TABLE inbox DROP COLUMN worker",
        "CREATE INDEX more ON messages (created_at)",
    ],
)
async def test_drift_is_seen_by_autogenerate(database: Database, change: str) -> None:
    await drop_views(database)
    await database.query(change)
    assert await differences(database) != []


@pytest.mark.parametrize(
    "changes",
    [
        [
            "DROP INDEX ix_sessions_live",
            "CREATE INDEX ix_sessions_live ON sessions (namespace, last_active, id)",
        ],
        ["ALTER TABLE inbox RENAME COLUMN worker TO workman"],
    ],
    ids=["where", "column"],
)
async def test_drift_is_seen_in_what_the_database_tells_of_itself(
    database: Database, changes: Sequence[str]
) -> None:
    await drop_views(database)
    before = await described(database)
    for change in changes:
        await database.query(change)
    assert await described(database) != before


@pytest.mark.parametrize("kind", ["postgresql"])
@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE mailboxes DROP CONSTRAINT ck_mailboxes_one_state",
        "ALTER TABLE mailboxes RESET (fillfactor)",
        'ALTER TABLE sessions ALTER COLUMN channel TYPE text COLLATE "C"',
        "ALTER TABLE mailboxes ALTER COLUMN head SET DEFAULT 0",
        "ALTER TABLE inbox ALTER COLUMN content DROP NOT NULL",
    ],
)
async def test_drift_in_constraints_options_and_columns_is_seen(
    database: Database, change: str
) -> None:
    await drop_views(database)
    before = await described(database)
    await database.query(change)
    assert await described(database) != before


# ---- databases that are behind, or ahead ---------------------------------------------------------


@pytest.mark.parametrize("kind", ["sqlite"])
async def test_an_old_file_is_brought_up_when_it_is_opened(empty_database: Database) -> None:
    await upgrade(empty_database, "0001")
    await fill_first_revision(empty_database)
    async with SessionsDB(empty_database.url) as db:
        assert await revision(empty_database) == HEAD
        for name in OLD:
            assert await db.store.load(name) == [{"role": "user", "content": "hello"}]
        for name in ("top", "child"):
            receipt = await db.broker.send(name, "hello again")
            assert (await db.broker.outcome(receipt)).status == "pending"
            assert (await db.broker.get(name)).pending == 1
        with pytest.raises(SessionEnded):
            await db.broker.send("ended", "hello again")
        assert (await db.broker.get("ended")).ended_at is not None
        assert {s.id for s in await db.broker.list(root="top")} == {"top", "child"}


@pytest.mark.parametrize("kind", ["postgresql"])
async def test_an_old_postgresql_database_is_refused_until_it_is_migrated(
    empty_database: Database,
) -> None:
    await upgrade(empty_database, "0001")
    await fill_first_revision(empty_database)
    with pytest.raises(SchemaOutOfDate) as refused:
        async with SessionsDB(empty_database.url):
            pass
    assert str(refused.value) == (
        "the database is at revision 0001, this version of sessionsdb needs revision "
        f"{HEAD}; run: sessionsdb migrate"
    )
    assert (refused.value.found, refused.value.expected) == ("0001", HEAD)
    assert await revision(empty_database) == "0001"

    async with SessionsDB(empty_database.url, migrate=True) as db:
        await db.broker.send("child", "hello again")
    async with SessionsDB(empty_database.url) as db:
        assert (await db.broker.get("child")).pending == 1


async def test_a_database_without_tables_is_not_given_any_unasked(
    empty_database: Database,
) -> None:
    if empty_database.kind == "sqlite":
        empty_database.path.touch()
    with pytest.raises(
        SchemaOutOfDate, match=f"has no sessionsdb tables.*{HEAD}; run: sessionsdb migrate"
    ):
        async with SessionsDB(empty_database.url, migrate=False):
            pass
    assert await described(empty_database) == {}


@pytest.mark.parametrize("how", [None, True, False])
async def test_a_database_from_a_newer_version_is_refused(
    database: Database, how: bool | None
) -> None:
    await database.query("UPDATE sessionsdb_version SET version_num = '9999'")
    before = await described(database)
    with pytest.raises(SchemaOutOfDate) as refused:
        async with SessionsDB(database.url, migrate=how):
            pass
    assert str(refused.value) == (
        "the database is at revision 9999, this version of sessionsdb needs revision "
        f"{HEAD}; upgrade the sessionsdb package"
    )
    assert await described(database) == before
    assert await revision(database) == "9999"


@pytest.mark.parametrize("kind", ["postgresql"])
async def test_a_role_that_may_only_read_and_write_rows_can_use_a_migrated_database(
    database: Database, postgres_server: PostgresServer
) -> None:
    role = database.url.rpartition("/test_")[2].partition("?")[0]
    role = f"rows_only_{role}"
    await database.query(f"CREATE ROLE {role} LOGIN")
    await database.query(f"GRANT SELECT ON sessionsdb_version TO {role}")
    for table in metadata.tables:
        await database.query(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO {role}")
    try:
        url = database.url.replace("postgres@", f"{role}@")
        async with SessionsDB(url) as db:
            await use(Database("postgresql", url), "used")
            await db.store.save("used", [])
            await db.store.delete("used", children="cascade")
    finally:
        await database.query(f"DROP OWNED BY {role}")
        await database.query(f"DROP ROLE {role}")


# ---- at the same time ----------------------------------------------------------------------------

OPEN_ON_SIGNAL = """
import asyncio, sys
from sessionsdb import SessionsDB

async def main():
    async with SessionsDB(sys.argv[1], migrate=True) as db:
        await db.store.append("shared", [{"role": "user", "content": "here"}])

print("ready", flush=True)
sys.stdin.readline()
asyncio.run(main())
"""


@pytest.mark.parametrize("start", [None, "0001"])
async def test_two_processes_that_migrate_at_once_both_succeed(
    empty_database: Database, start: str | None
) -> None:
    if start is not None:
        await upgrade(empty_database, start)
        await fill_first_revision(empty_database)
    pipe = asyncio.subprocess.PIPE
    processes = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-W", "error", "-c", OPEN_ON_SIGNAL, empty_database.url),
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
        )
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
    results = await asyncio.gather(*(process.communicate(b"go\n") for process in processes))
    for process, (_, errors) in zip(processes, results, strict=True):
        assert process.returncode == 0, errors.decode()
    assert await revision(empty_database) == HEAD
    assert await differences(empty_database) == []
    async with SessionsDB(empty_database.url) as db:
        assert len(await db.store.load("shared") or ()) == 3


async def test_many_handles_of_one_process_that_migrate_at_once_all_succeed(
    empty_database: Database, tmp_path: Path
) -> None:
    urls = [empty_database.url] * 4 + [f"sqlite:///{tmp_path}/{i % 3}.db" for i in range(6)]

    async def enter(url: str) -> None:
        async with SessionsDB(url, migrate=True) as db:
            await db.store.append("s", [{"role": "user", "content": "here"}])

    async with asyncio.timeout(60):
        await asyncio.gather(*(enter(url) for url in urls))
    for url in set(urls):
        async with SessionsDB(url, migrate=False) as db:
            assert len(await db.store.load("s") or ()) == urls.count(url)


# ---- other ways to migrate -----------------------------------------------------------------------


async def run_script(database: Database, script: str) -> None:
    """Run a script with the bare driver, like a DBA with psql or sqlite3."""
    if database.kind == "postgresql":
        connection = await database.connect_to_postgres()
        try:
            await connection.execute(script)
        finally:
            await connection.close()
    else:
        connection = sqlite3.connect(database.path)
        try:
            connection.executescript(script)
        finally:
            connection.close()


@pytest.mark.parametrize("since", [None, "0001"])
async def test_the_printed_ddl_makes_the_same_tables_and_stamp(
    empty_database: Database, database: Database, since: str | None
) -> None:
    if since is not None:
        await upgrade(empty_database, since)
        await fill_first_revision(empty_database)
    await run_script(empty_database, migrations.ddl(empty_database.url, since=since))
    assert await described(empty_database) == await described(database)
    assert await revision(empty_database) == HEAD
    async with SessionsDB(empty_database.url, migrate=False) as db:
        if since is not None:
            await db.broker.send("child", "hello again")
        assert len(await db.store.list()) == (0 if since is None else len(OLD))


async def alembic(*arguments: str, cwd: Path, url: str | None = None) -> str:
    """Run the plain ``alembic`` command, and return its output."""
    environment = {key: value for key, value in os.environ.items() if key != "SESSIONSDB_URL"}
    if url is not None:
        environment["SESSIONSDB_URL"] = url
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "alembic", "-c", str(PROJECT / "alembic.ini"), *arguments),
        cwd=cwd,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return output.decode()


async def test_the_plain_alembic_command_works(empty_database: Database, tmp_path: Path) -> None:
    url = empty_database.url
    await alembic("upgrade", "head", cwd=tmp_path, url=url)
    assert await revision(empty_database) == HEAD
    await use(empty_database, "used")
    await alembic("check", cwd=tmp_path, url=url)
    await alembic("downgrade", "base", cwd=tmp_path, url=url)
    assert await described(empty_database) == {}
    assert os.listdir(tmp_path) == []


async def test_without_a_url_alembic_takes_the_one_of_its_file(tmp_path: Path) -> None:
    await alembic("upgrade", "head", cwd=tmp_path)
    database = Database("sqlite", f"sqlite:///{tmp_path}/sessionsdb.db")
    assert await revision(database) == HEAD
    script = await alembic("upgrade", "head", "--sql", cwd=tmp_path)
    assert "CREATE TABLE sessions" in script


async def test_we_can_live_beside_another_alembic_project(empty_database: Database) -> None:
    await empty_database.query("CREATE TABLE alembic_version (version_num varchar(32))")
    await empty_database.query("INSERT INTO alembic_version VALUES ('theirs')")
    await empty_database.query("CREATE TABLE theirs (id integer)")
    async with SessionsDB(empty_database.url, migrate=True) as db:
        await db.store.save("s", [])
    assert await revision(empty_database) == HEAD
    assert await differences(empty_database) == []
    await downgrade(empty_database, "base")
    assert await empty_database.query("SELECT * FROM alembic_version") == [("theirs",)]
    assert set(await described(empty_database)) == {"alembic_version", "theirs"}


async def test_a_callers_transaction_decides_about_a_migration(empty_database: Database) -> None:
    def migrate_and_fail(connection: Connection) -> None:
        assert migrations.upgrade(connection) == (None, HEAD)
        raise RuntimeError("the caller's reasons")

    with pytest.raises(RuntimeError):
        await in_transaction(empty_database, migrate_and_fail)
    assert await described(empty_database) == {}


@pytest.mark.parametrize("kind", ["postgresql"])
async def test_a_migration_behind_a_long_read_does_not_keep_others_waiting(
    database: Database,
) -> None:
    """It waited up to a minute for a dump, and every call waited behind it."""
    await downgrade(database, "0012")
    dump = await database.connect_to_postgres()
    try:
        await dump.execute("BEGIN; SELECT 1 FROM sessions")
        migrating = asyncio.create_task(upgrade(database))
        waits = (
            "SELECT count(*) FROM pg_locks WHERE relation = 'sessions'::regclass AND NOT granted"
        )
        await until(lambda: database.value(waits))
        async with asyncio.timeout(30):
            assert await database.query("SELECT id FROM sessions") == []
        assert not migrating.done()
        await dump.execute("COMMIT")
        await migrating
    finally:
        await dump.close()
    assert await revision(database) == migrations.head()

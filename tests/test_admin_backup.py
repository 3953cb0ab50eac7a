"""A backup of a SQLite file while other processes write to it."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
from pathlib import Path

import pytest

from devtools.databases import Database
from sessionsdb import InvalidArgument, SessionsDB, StorageError
from sessionsdb.admin import backup as backups
from sessionsdb.admin.backup import backup
from sessionsdb.admin.doctor import examine
from tests.support.command_line import CommandLine
from tests.support.file_names import names_of
from tests.support.turns import answer_next

HELLO = {"role": "user", "content": "hello"}


@pytest.fixture
def kind() -> str:
    return "sqlite"


async def test_a_copy_made_while_writers_write_is_one_moment_of_the_database(
    db: SessionsDB, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each turn writes to four tables, so a copy of two moments would contradict itself."""
    for n in range(300):
        await db.store.append(f"s{n % 10}", [{"role": "user", "content": "x" * 2_000}] * 2)
    monkeypatch.setattr(backups, "STEP_PAGES", 1)  # the largest number of steps
    copying = True
    turns = 0

    async def write() -> None:
        nonlocal turns
        while copying:
            await db.broker.send("s0", f"turn {turns}")
            await answer_next(db, "re")
            turns += 1

    writer = asyncio.create_task(write())
    begun = None
    copies = []
    for number in range(3):
        begun = turns
        copies.append(await backup(database.path, tmp_path / f"copy-{number}.db"))
        assert turns > begun, "writers were held up"
    copying = False
    await writer
    for copied in copies:
        assert os.listdir(tmp_path).count(f"{Path(copied.file).name}-wal") == 0
        assert copied.bytes == os.stat(copied.file).st_size
        async with SessionsDB(f"sqlite:///{copied.file}") as copy:
            assert (await examine(copy)).findings == []
            receipts = await copy.store.load("s0")
            assert receipts is not None
            assert 60 <= len(receipts) <= 60 + 2 * turns
            await copy.broker.send("s0", "the copy is a database like any other")


async def test_what_was_committed_before_is_in_the_copy(
    db: SessionsDB, database: Database, tmp_path: Path
) -> None:
    await db.store.append("chat", [HELLO])
    copied = await backup(database.path, tmp_path / "copy.db")
    await db.store.append("chat", [HELLO])
    async with SessionsDB(f"sqlite:///{copied.file}", migrate=False) as copy:
        assert await copy.store.load("chat") == [HELLO]
    assert stat.S_IMODE(os.stat(copied.file).st_mode) == 0o600, "a copy is private"


async def test_nothing_is_overwritten_unless_asked_and_never_the_database_itself(
    db: SessionsDB, database: Database, tmp_path: Path
) -> None:
    target = tmp_path / "copy.db"
    target.write_text("dear to me")
    with pytest.raises(InvalidArgument, match="exists"):
        await backup(database.path, target)
    assert target.read_text() == "dear to me"
    # An old log beside the copy would be replayed into it.
    leftover = tmp_path / "copy.db-wal"
    leftover.write_text("of another database")
    await backup(database.path, target, overwrite=True)
    assert not leftover.exists()
    async with SessionsDB(f"sqlite:///{target}", migrate=False):
        pass
    for itself in names_of(database.path, tmp_path):
        with pytest.raises(InvalidArgument, match="itself"):
            await backup(database.path, itself, overwrite=True)
    assert await db.store.load("chat") is None, "the database is what it was"
    log = database.path.with_name(database.path.name + "-wal")
    with pytest.raises(InvalidArgument, match="itself"):  # its old log would be removed
        await backup(log, database.path, overwrite=True)
    with pytest.raises(InvalidArgument, match="no database file"):
        await backup(tmp_path / "none.db", tmp_path / "other.db")
    with pytest.raises(InvalidArgument, match="folder"):
        await backup(database.path, tmp_path, overwrite=True)


async def test_a_copy_follows_a_link_and_keeps_the_mode_of_the_file_it_replaces(
    db: SessionsDB, database: Database, tmp_path: Path
) -> None:
    link, target = tmp_path / "latest.db", tmp_path / "shelf" / "copy.db"
    target.parent.mkdir()
    link.symlink_to(target)
    await backup(database.path, link)  # the link dangles
    assert link.is_symlink()
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    target.chmod(0o640)
    await backup(database.path, link, overwrite=True)
    assert link.is_symlink()
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert os.listdir(target.parent) == ["copy.db"]


async def test_a_copy_that_is_broken_off_leaves_nothing_and_the_old_copy(
    db: SessionsDB, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await db.store.append("chat", [{"role": "user", "content": "x" * 200_000}])
    target = tmp_path / "copy.db"
    await backup(database.path, target)
    before = target.read_bytes()
    monkeypatch.setattr(backups, "STEP_PAGES", 1)
    loop = asyncio.get_running_loop()
    begun = asyncio.Event()

    def progress(done: int, _all: int) -> None:
        loop.call_soon_threadsafe(begun.set)

    work = asyncio.create_task(backup(database.path, target, overwrite=True, progress=progress))
    await begun.wait()
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert target.read_bytes() == before
    assert os.listdir(tmp_path) == ["copy.db"]


async def test_a_damaged_database_gives_no_copy(
    db: SessionsDB, database: Database, tmp_path: Path
) -> None:
    for n in range(200):
        await db.store.append(f"s{n}", [{"role": "user", "content": "x" * 500}])
    await database.query("PRAGMA wal_checkpoint(TRUNCATE)")
    page = await database.value(
        "SELECT rootpage FROM sqlite_master WHERE name = 'ix_sessions_live'"
    )
    with database.path.open("r+b") as file:
        file.seek((page - 1) * 4096 + 8)
        file.write(b"\xff" * 2_000)
    with pytest.raises(StorageError, match=r"not sound|failed"):
        await backup(database.path, tmp_path / "copy.db")
    assert os.listdir(tmp_path) == []


async def test_the_command_copies_and_refuses(
    db: SessionsDB, database: Database, tmp_path: Path
) -> None:
    await db.store.append("chat", [HELLO])
    cli = CommandLine(database.url)
    file = str(tmp_path / "copy.db")

    async def run(*args: str) -> tuple[int, str, str]:
        answer = await asyncio.to_thread(cli, "backup", *args)
        return answer.code, answer.stdout, answer.stderr

    code, told, _ = await run(file)
    assert (code, told.startswith(f"copied: {file}, ")) == (0, True)
    code, _, refused = await run(file)
    assert (code, "use --force" in refused, refused.count("\n")) == (1, True, 1)
    assert (await run(file, "--force"))[0] == 0
    with sqlite3.connect(file) as copy:
        assert copy.execute("SELECT count(*) FROM messages").fetchone() == (1,)
    copy.close()


def test_a_database_in_memory_or_of_another_revision(
    empty_database: Database, tmp_path: Path
) -> None:
    CommandLine("sqlite://")("backup", str(tmp_path / "copy.db")).failed("in memory")
    with sqlite3.connect(empty_database.path) as old:
        old.execute("CREATE TABLE sessionsdb_version (version_num TEXT)")
        old.execute("INSERT INTO sessionsdb_version VALUES ('0001')")
    old.close()
    copied = CommandLine(empty_database.url)("backup", str(tmp_path / "copy.db"), "--json")
    assert copied.ok().json["revision"] == "0001", "a backup is made before the upgrade"


def test_postgresql_has_its_own_tools(tmp_path: Path) -> None:
    url = "postgresql://me@localhost/agents"
    CommandLine(url)("backup", str(tmp_path / "copy.db")).failed("pg_dump", "docs/operating.md")

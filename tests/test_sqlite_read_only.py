"""A SQLite file that may only be read: reads work, writes say why they don't, and nothing loops."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sessionsdb import SessionsDB, StorageError
from sessionsdb.engine.sqlite import engine as sqlite_engine
from sessionsdb.engine.sqlite.database_file import SqliteFile

HELLO = {"role": "user", "content": "hello"}

# Root may write to read-only folders, so this reads and writes as another user.
READ_AND_WRITE = """
import asyncio, os, sys
from sessionsdb import SessionsDB, StorageError

async def use():
    async with SessionsDB(sys.argv[1]) as db:
        print(await db.store.load("chat"))
        print([session.id for session in await db.broker.list()])
        try:
            await db.broker.send("live", "hello")
        except StorageError as error:
            print(error)

if os.geteuid() == 0:
    os.setuid(65534)
asyncio.run(use())
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every user can reach."""
    made = Path(tempfile.mkdtemp(prefix="sessionsdb-read-only-"))
    yield made
    made.chmod(0o755)
    shutil.rmtree(made)


async def filled(path: Path) -> Path:
    async with SessionsDB(f"sqlite:///{path}") as db:
        await db.store.append("chat", [HELLO])
        await db.broker.register("live", channel="cli", peer="ada", exist_ok=True)
    return path


@pytest.mark.parametrize("query", ["immutable=1&uri=true", "mode=ro&uri=true"])
async def test_a_file_opened_for_reading_is_read(folder: Path, query: str) -> None:
    path = await filled(folder / "chats.db")
    async with SessionsDB(f"sqlite:///file:{path}?{query}") as db:
        assert await db.store.load("chat") == [HELLO]
        assert [session.id for session in await db.broker.list()] == ["chat", "live"]
        with pytest.raises(StorageError, match="the file is read-only here"):
            await db.broker.send("live", "hello")
        assert await db.store.load("chat") == [HELLO]


@pytest.mark.parametrize("read_only", ["folder", "file and folder"])
def test_a_file_in_a_read_only_folder_is_read(folder: Path, read_only: str) -> None:
    path = asyncio.run(filled(folder / "chats 100%.db"))
    path.chmod(0o444 if "file" in read_only else 0o644)
    folder.chmod(0o555)
    url = f"sqlite:///{folder}/chats 100%25.db"
    done = subprocess.run(
        [sys.executable, "-c", READ_AND_WRITE, url], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    loaded, listed, refused = done.stdout.splitlines()
    assert loaded == str([HELLO])
    assert listed == "['chat', 'live']"
    assert "the file is read-only here" in refused
    assert os.listdir(folder) == [path.name]


async def test_a_changed_file_is_another_one_for_a_connection_that_sees_no_change(
    folder: Path,
) -> None:
    path = await filled(folder / "chats.db")
    seen = SqliteFile(str(path), immutable=True)
    assert seen.is_current()
    await filled(path)
    assert not seen.is_current()


async def test_a_file_that_stays_out_of_wal_mode_is_refused(folder: Path) -> None:
    with pytest.raises(StorageError, match="can't be set to WAL mode"):
        async with SessionsDB(f"sqlite:///file:{folder}/chats.db?nolock=1&uri=true"):
            pass


@pytest.mark.parametrize(
    ("platform", "durability", "synced"),
    [("darwin", "full", 1), ("darwin", "normal", 0), ("linux", "full", 0)],
)
async def test_macos_is_asked_to_empty_the_cache_of_the_drive(
    folder: Path, monkeypatch: pytest.MonkeyPatch, platform: str, durability: str, synced: int
) -> None:
    monkeypatch.setattr(sqlite_engine.sys, "platform", platform)
    async with (
        SessionsDB(f"sqlite:///{folder}/chats.db", durability=durability) as db,
        db.engine.connect() as connection,
    ):
        for pragma in ("fullfsync", "checkpoint_fullfsync"):
            answer = await connection.exec_driver_sql(f"PRAGMA {pragma}")
            assert answer.scalar() == synced

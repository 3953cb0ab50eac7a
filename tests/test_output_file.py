"""Files that are written: never over a database, with their mode, through links, private."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from devtools.databases import Database
from sessionsdb import InvalidArgument, SessionsDB
from sessionsdb.output_file import PRIVATE, PUBLIC, replace_file
from tests.support.command_line import PROGRAM, CommandLine, environment
from tests.support.file_names import names_of


@pytest.fixture
def kind() -> str:
    return "sqlite"


@pytest.fixture(autouse=True)
def usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode(file: Path) -> int:
    return stat.S_IMODE(file.stat().st_mode)


def write(file: Path, mode: int = PRIVATE, *, text: bytes = b"new") -> None:
    with replace_file(file, mode=mode) as stream:
        stream.write(text)


# ---- what holds transcripts is private -----------------------------------------------------------


async def test_a_new_database_is_private_with_its_log(tmp_path: Path) -> None:
    (tmp_path / "link.db").symlink_to("target.db")
    urls = {
        "a.db": f"sqlite:///{tmp_path}/a.db",
        "b.db": f"sqlite:///file:{tmp_path}/b.db?uri=true",
        "c.db": f"sqlite:///file:{tmp_path}/c.db?mode=rwc&uri=true",
        "target.db": f"sqlite:///{tmp_path}/link.db",
    }
    for name, url in urls.items():
        async with SessionsDB(url) as db:
            await db.store.save("chat", [{"role": "user", "content": "hi"}])
            files = [tmp_path / file for file in os.listdir(tmp_path) if file.startswith(name)]
            assert len(files) == 3, "the database, its -wal and its -shm"
            assert {mode(file) for file in files} == {0o600}


async def test_a_database_that_exists_keeps_its_mode(tmp_path: Path) -> None:
    file = tmp_path / "shared.db"
    sqlite3.connect(file).close()
    file.touch()
    file.chmod(0o664)
    async with SessionsDB(f"sqlite:///{file}") as db:
        await db.store.save("chat", [])
    assert mode(file) == 0o664


def test_a_database_that_must_exist_is_not_created(tmp_path: Path) -> None:
    url = f"sqlite:///file:{tmp_path}/none.db?mode=rw&uri=true"
    CommandLine(url)("list").failed("unable to open")
    assert list(tmp_path.iterdir()) == []


def test_an_export_is_private_and_a_replaced_file_keeps_its_mode(
    database: Database, tmp_path: Path
) -> None:
    cli = CommandLine(database.url)
    cli("register", "chat-1").ok()
    target = tmp_path / "out.jsonl"
    cli("export", "--output", str(target)).ok()
    assert mode(target) == 0o600
    for kept in (0o640, 0o604, 0o400):
        target.chmod(kept)
        cli("export", "--output", str(target)).ok()
        assert mode(target) == kept


def test_a_file_without_transcripts_has_the_usual_mode(tmp_path: Path) -> None:
    write(tmp_path / "picture.svg", PUBLIC)
    assert mode(tmp_path / "picture.svg") == 0o644


# ---- links, devices, and what is left ------------------------------------------------------------


@pytest.mark.parametrize("exists", [True, False], ids=["to a file", "to nothing"])
def test_a_link_is_followed_and_stays_a_link(tmp_path: Path, exists: bool) -> None:
    (tmp_path / "shelf").mkdir()
    target, link = tmp_path / "shelf" / "target", tmp_path / "link"
    if exists:
        target.write_text("old")
    link.symlink_to("shelf/target")
    write(link)
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert os.listdir(tmp_path / "shelf") == ["target"]


def test_a_file_in_memory_is_replaced_as_any_other(tmp_path: Path) -> None:
    """It was taken for a device: the new content stood behind the old one."""
    folder = Path("/dev/shm")
    if not os.access(folder, os.W_OK):
        folder = tmp_path
    with tempfile.TemporaryDirectory(dir=folder) as name:
        file = Path(name) / "out.jsonl"
        file.write_bytes(b"old")
        write(file)
        assert file.read_bytes() == b"new"


def test_a_failure_leaves_the_old_file_alone(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.write_text("old")
    with pytest.raises(ZeroDivisionError), replace_file(target, mode=PRIVATE) as stream:
        stream.write(b"%d" % (1 / 0))
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize(
    ("name", "reason"), [("no/file", "No such file"), ("", "is a folder; name a file in it")]
)
def test_a_target_that_can_not_be_written_is_named(tmp_path: Path, name: str, reason: str) -> None:
    target = tmp_path / name
    with pytest.raises((InvalidArgument, OSError), match=reason) as raised:
        write(target)
    assert str(target) in str(raised.value)
    assert ".part" not in str(raised.value)


def test_export_to_a_descriptor_appends_to_what_is_there(
    database: Database, tmp_path: Path
) -> None:
    CommandLine(database.url)("register", "chat-1").ok()
    out = tmp_path / "out"
    out.write_text("before\n")
    with out.open("a") as stdout:
        subprocess.run(
            [PROGRAM, "--url", database.url, "export", "--output", "/dev/stdout"],
            stdout=stdout, env=environment(), check=True, timeout=60,
        )  # fmt: skip
    first, second, *_ = out.read_text().splitlines()
    assert (first, second) == ("before", '{"session_id":"chat-1","messages":[]}')


# ---- never over a database -----------------------------------------------------------------------


async def test_export_refuses_every_file_of_the_database_under_every_name(
    db: SessionsDB, database: Database, tmp_path: Path
) -> None:
    await db.store.save("chat", [{"role": "user", "content": "dear to me"}])
    for name in names_of(database.path, tmp_path):
        answer = CommandLine(database.url).program("export", "--output", str(name))
        answer.failed("itself; name another file")
    assert await db.store.load("chat") == [{"role": "user", "content": "dear to me"}]
    with sqlite3.connect(database.path) as raw:
        assert raw.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    raw.close()


async def test_any_other_database_is_refused_too(db: SessionsDB, database: Database) -> None:
    await db.store.save("chat", [{"role": "user", "content": "dear to me"}])
    elsewhere = CommandLine("sqlite://")
    for suffix in ("", "-wal", "-shm"):
        name = f"{database.path}{suffix}"
        elsewhere.program("export", "--output", name).failed("SQLite database; name another file")
        with pytest.raises(InvalidArgument, match="SQLite database"):
            write(Path(name))
    assert await db.store.load("chat") == [{"role": "user", "content": "dear to me"}]


async def test_a_picture_is_not_drawn_over_a_database_behind_a_link(
    db: SessionsDB, database: Database, tmp_path: Path
) -> None:
    await db.store.save("chat", [{"role": "user", "content": "dear to me"}])
    link = tmp_path / "tree.svg"
    link.symlink_to(database.path)
    CommandLine(database.url).program("report", "tree", "--out", str(link)).failed("SQLite")
    assert await db.store.load("chat") == [{"role": "user", "content": "dear to me"}]

"""Databases that cannot be opened, or almost not: typed errors, one line on the command line, and
no change."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest

from devtools.databases import Database, SqliteFiles
from sessionsdb import SchemaOutOfDate, SessionsDB, SessionsDBError, StorageError
from sessionsdb.cli.command_list import COMMANDS
from tests.support import soundness, storage
from tests.support.command_line import CommandLine

# Every command that opens a database, with its arguments. FILE is a file beside it.
READING = [
    ["list"],
    ["tree"],
    ["history", "chat"],
    ["outcome", "chat", "1"],
    ["dead-letters"],
    ["inbox", "chat"],
    ["search", "hello"],
    ["token", "--list"],
    ["state", "chat"],
    ["schedules"],
    ["questions"],
    ["export"],
    *(["report", name] for name in ("sessions", "turns", "inbox")),
    ["top", "--once"],
    ["doctor"],
    ["backup", "FILE"],
    ["purge", "--ended-before", "1d", "--dry-run"],
    ["worker", "sessionsdb.handlers:echo", "--until-idle"],
]
WRITING = [
    ["register", "new", "--channel", "c", "--peer", "p"],
    ["send", "chat", "hello"],
    ["spawn", "chat", "hello"],
    ["requeue", "chat", "1"],
    ["update", "chat", "--model", "m"],
    ["state", "chat", "--set", "a=1"],
    ["search", "--index"],
    ["token", "ci"],
    ["fork", "chat"],
    ["schedule", "chat", "hello", "--cron", "0 9 * * *"],
    ["unschedule", "none"],
    ["answer", "chat:1", "yes"],
    ["cancel", "chat", "1"],
    ["interrupt", "chat"],
    ["reopen", "chat"],
    ["end", "chat"],
    ["delete", "chat"],
    ["import", "-"],
    ["purge", "--ended-before", "1d", "--yes"],
]
NOTHING_TO_WRITE = {"purge", "import", "cancel", "interrupt", "reopen", "search", "unschedule"}
"""Those that have nothing to write in the database of this file, where it can be read."""

ELSEWHERE = {"mcp", "serve", "migrate", "demo", "grant-reader", "chat", "copy", "follow"}
"""Tested below with a separate database, for PostgreSQL, and in files of their own. The last three
wait for a database, or open two."""


def nothing(_path: Path) -> AbstractContextManager[None]:
    return nullcontext()


def no_database(path: Path) -> AbstractContextManager[None]:
    path.write_bytes(b"this is a letter to my aunt, and no database\n" * 200)
    return nullcontext()


def no_folder(path: Path) -> AbstractContextManager[None]:
    path.unlink()
    path.parent.rmdir()
    return nullcontext()


def newer(path: Path) -> AbstractContextManager[None]:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE sessionsdb_version SET version_num = '9999'")
    return nullcontext()


def no_room(path: Path) -> AbstractContextManager[None]:
    return storage.file_size_limit(path, largest=storage.PAGE)


@dataclass(frozen=True)
class Trouble:
    """A database for commands."""

    name: str
    begins: Callable[[Path], AbstractContextManager[object]]
    error: type[SessionsDBError]
    says: str
    """A part of the error message."""
    readable: bool = False
    query: str = ""
    """The end of its URL."""


TROUBLES = [
    Trouble("no-database", no_database, StorageError, "file is not a database; look for a mistake"),
    Trouble("no-folder", no_folder, StorageError, "unable to open database file; .* must be there"),
    Trouble("newer", newer, SchemaOutOfDate, "revision 9999.*upgrade the sessionsdb package"),
    Trouble("damaged", storage.damaged, StorageError, "malformed; .*restore a backup"),
    Trouble("no-room", no_room, StorageError, "disk I/O error; .*limit on the size of files"),
    Trouble(
        *("locked", storage.write_lock, StorageError, "is locked; another process held the lock"),
        readable=True,
        query="?timeout=0.02",
    ),
    Trouble(
        *("read-only", nothing, StorageError, "readonly database; .*a URL without mode=ro"),
        readable=True,
        query="?mode=ro&uri=true",
    ),
]


@pytest.fixture
def database(sqlite_files: SqliteFiles, tmp_path: Path) -> Database:
    """A database in a new folder, with a session that has one answered message."""
    folder = tmp_path / "of-its-own"
    folder.mkdir()
    with sqlite_files.new_database() as template:
        template.path.rename(folder / "sessions.db")
    database = Database("sqlite", f"sqlite:///{folder}/sessions.db")
    cli = CommandLine(database.url)
    cli("register", "chat", "--channel", "c", "--peer", "p").ok()
    cli("send", "chat", "hello").ok()
    cli("worker", "sessionsdb.handlers:echo", "--until-idle").ok()
    cli("search", "--index").ok()
    return database


def url_of(database: Database, trouble: Trouble) -> str:
    scheme = "sqlite:///file:" if "uri" in trouble.query else "sqlite:///"
    return f"{scheme}{database.path}{trouble.query}"


def contents(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda trouble: trouble.name)
async def test_what_cannot_be_opened_or_written_is_a_typed_error(
    database: Database, trouble: Trouble
) -> None:
    with trouble.begins(database.path):
        before = contents(database.path)
        with pytest.raises(trouble.error, match=trouble.says) as told:
            async with SessionsDB(url_of(database, trouble)) as db:
                await db.store.append("chat", [{"role": "user", "content": "one more"}])
        assert told.value.__cause__ is None or isinstance(told.value.__cause__, sqlite3.Error)
        assert contents(database.path) == before


@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda trouble: trouble.name)
def test_every_command_answers_trouble_with_one_line(
    database: Database, trouble: Trouble, tmp_path: Path
) -> None:
    cli = CommandLine(url_of(database, trouble))
    words = [[word.replace("FILE", f"{tmp_path}/copy.db") for word in c] for c in READING]
    with ExitStack() as stack:
        stack.enter_context(trouble.begins(database.path))
        before = contents(database.path)
        for command in words:
            answer = cli(*command)
            if trouble.readable or (command[0] == "backup" and trouble.name == "newer"):
                answer.ok()
            elif command == ["doctor"] and answer.stdout:
                assert "not healthy" in answer.stdout
                assert answer.code == 1
            else:
                answer.failed()
        for command in WRITING:
            answer = cli(*command, input='{"session_id": "new", "messages": []}\n')
            if answer.code == 0:  # there was nothing to write
                assert command[0] in NOTHING_TO_WRITE, answer
                assert trouble.readable
            else:
                answer.failed()
        assert contents(database.path) == before


def test_no_command_was_forgotten() -> None:
    tried = {command[0] for command in READING + WRITING}
    assert tried | ELSEWHERE == set(COMMANDS)


@pytest.mark.parametrize("trouble", [TROUBLES[0], TROUBLES[2]], ids=lambda trouble: trouble.name)
def test_the_servers_command_and_the_migration_answer_with_one_line(
    database: Database, trouble: Trouble
) -> None:
    with trouble.begins(database.path):
        before = contents(database.path)
        cli = CommandLine(database.url)
        cli("migrate").failed()
        cli.program("mcp", input=b"").failed()
        assert contents(database.path) == before


async def test_a_folder_that_may_not_be_written_is_a_storage_error_until_it_may() -> None:
    """WAL needs two files beside the database, even for a read."""
    with storage.unprivileged() as folder:
        path = folder / "sessions.db"
        url = f"sqlite:///{path}"
        async with SessionsDB(url) as db:
            await db.store.append("chat", [{"role": "user", "content": "hello"}])
        folder.chmod(0o555)
        with pytest.raises(StorageError, match=r"to its folder|must have the right to write"):
            async with SessionsDB(url) as db:
                await db.store.append("chat", [{"role": "user", "content": "one more"}])
        folder.chmod(0o755)
        async with SessionsDB(url) as db:
            assert await db.store.load("chat") == [{"role": "user", "content": "hello"}]
        assert soundness.faults(path) == []

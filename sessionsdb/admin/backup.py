"""A copy of a SQLite database, made while others go on writing."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

from sessionsdb.errors import InvalidArgument, StorageError
from sessionsdb.schema import VERSION_TABLE
from sessionsdb.types import Value

STEP_PAGES = 1_000
"""How much is copied at once: about 4 MB."""

BUSY_SECONDS = 30.0

Progress = Callable[[int, int], object]
"""Told how many pages are copied, and how many there are."""


class Copied(Value):
    """A copy that has been checked."""

    file: str
    bytes: int
    revision: str | None = None
    """The schema's."""


async def backup(
    source: Path,
    target: Path,
    *,
    overwrite: bool = False,
    progress: Progress = lambda _done, _all: None,
) -> Copied:
    """Copy the database file ``source`` as it is at this moment to ``target``, a single file.

    Writers are not held up, and what they commit meanwhile is not in the copy. It is written
    beside ``target``, checked (``PRAGMA integrity_check``), brought to the disk, and then takes
    its name, so that ``target`` is never half a copy. A copy that is cancelled leaves nothing.

    Raises ``InvalidArgument`` if there is no such database, or if ``target`` exists and
    ``overwrite`` is not set, or is the database itself; ``StorageError`` if the copy is not sound.
    """
    _require(source, target, overwrite)
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    given_up = threading.Event()
    work = asyncio.create_task(asyncio.to_thread(_copy, source, part, progress, given_up))
    try:
        revision = await asyncio.shield(work)
        _require(source, target, overwrite)
        size = await asyncio.to_thread(_rename_into_place, part, target, overwrite)
    finally:
        given_up.set()
        await asyncio.wait((work,))
        work.exception()  # seen: if it matters it was raised above
        for leftover in (part, *_companions(part)):
            leftover.unlink(missing_ok=True)
    # The name as others can read it: it need not be UTF-8.
    name = os.fsencode(target).decode(errors="replace")
    return Copied(file=name, bytes=size, revision=revision)


def _require(source: Path, target: Path, overwrite: bool) -> None:
    if not source.exists():
        raise InvalidArgument(f"no database file {source}")
    if target.exists() and target.samefile(source):
        raise InvalidArgument(f"{target} is the database itself; name another file")
    if target.is_dir():
        raise InvalidArgument(f"{target} is a folder; name a file in it")
    if target.exists() and not target.is_file():
        # A copy would take its place: of a device, for everybody on the machine.
        raise InvalidArgument(f"{target} is a device or a pipe; name a file")
    there = [file for file in (target, *_companions(target)) if file.exists()]
    if there and not overwrite:
        raise InvalidArgument(f"{there[0]} exists; name another file, or overwrite it")


def _companions(file: Path) -> list[Path]:
    """What SQLite keeps beside a database. Left beside another one of the name, its log would be
    played into that."""
    return [file.with_name(file.name + suffix) for suffix in ("-wal", "-shm", "-journal")]


def _copy(source: Path, part: Path, progress: Progress, given_up: threading.Event) -> str | None:
    def report(_status: int, remaining: int, total: int) -> None:
        if given_up.is_set():
            raise _Cancelled
        progress(total - remaining, total)

    # With the permissions of the source from the start: it is just as private.
    os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, source.stat().st_mode & 0o777))
    try:
        original = _open(source)
        copy = _open(part)
        try:
            # The read transaction pins the moment: without it the copy would begin anew at every
            # commit of another process.
            original.execute("BEGIN")
            original.execute("SELECT count(*) FROM sqlite_master").fetchone()
            original.backup(copy, pages=STEP_PAGES, progress=report)
            # One file, not three: the database is switched back to WAL when it is opened.
            copy.execute("PRAGMA journal_mode = DELETE")
            found = [row[0] for row in copy.execute("PRAGMA integrity_check(5)")]
            if found != ["ok"]:
                raise StorageError(f"the copy is not sound: {'; '.join(found)}; check the source")
            return _revision(copy)
        finally:
            copy.close()
            original.close()
    except sqlite3.Error as error:
        raise StorageError(f"the copy failed: {error}") from error


class _Cancelled(Exception):
    """The caller was cancelled."""


def _open(file: Path) -> sqlite3.Connection:
    return sqlite3.connect(
        f"file:{quote(os.fsencode(file.absolute()))}?mode=rw",
        uri=True,
        timeout=BUSY_SECONDS,
        isolation_level=None,
    )


def _revision(copy: sqlite3.Connection) -> str | None:
    named = "SELECT 1 FROM sqlite_master WHERE name = ?"
    if copy.execute(named, (VERSION_TABLE,)).fetchone() is None:
        return None
    row = copy.execute(f"SELECT version_num FROM {VERSION_TABLE}").fetchone()
    return None if row is None else str(row[0])


def _rename_into_place(part: Path, target: Path, overwrite: bool) -> int:
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    if overwrite:
        for old in _companions(target):
            old.unlink(missing_ok=True)
        part.replace(target)
    else:
        try:
            os.link(part, target)  # fails where replace would overwrite what came meanwhile
        except FileExistsError as error:
            raise InvalidArgument(f"{target} exists; name another file, or overwrite it") from error
        except OSError:  # a file system without links
            part.replace(target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return target.stat().st_size

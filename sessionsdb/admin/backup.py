"""Copy a SQLite database while other processes write to it."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

from sessionsdb import output_file
from sessionsdb.errors import InvalidArgument, StorageError
from sessionsdb.schema import VERSION_TABLE
from sessionsdb.types import Value

STEP_PAGES = 1_000
"""Pages in one step of the copy: about 4 MB."""

BUSY_SECONDS = 30.0
"""How long a connection waits for a lock of another process."""

Progress = Callable[[int, int], object]
"""Called with the number of pages that are copied, and the number of all pages."""


class BackupResult(Value):
    """A finished copy that has passed its check."""

    file: str
    bytes: int
    revision: str | None = None
    """The revision of the schema, ``None`` without our tables."""


async def backup(
    source: Path,
    target: Path,
    *,
    overwrite: bool = False,
    progress: Progress = lambda _done, _total: None,
) -> BackupResult:
    """Copy the database file ``source`` to the single file ``target``.

    The copy has the state of one moment. Writers are not blocked, and their later commits are not
    in the copy. The copy is written to a file beside ``target``, checked with ``PRAGMA
    integrity_check``, synced to disk and renamed, so that ``target`` is never an incomplete copy. A
    cancelled copy leaves no file. Only the owner can read a new copy. A replaced file keeps its
    mode, and a symbolic link is followed.

    Raises ``InvalidArgument`` if ``source`` is missing, if ``target`` is a file of the database
    itself, or if ``target`` exists and ``overwrite`` is false. Raises ``StorageError`` if the copy
    is damaged.
    """
    target, given = output_file.resolve(target), target
    _check_files(source, target, overwrite)
    part = output_file.create_part(target, output_file.PRIVATE)
    cancelled = threading.Event()
    work = asyncio.create_task(asyncio.to_thread(_copy, source, part, progress, cancelled))
    try:
        revision = await asyncio.shield(work)
        _check_files(source, target, overwrite)
        size = await asyncio.to_thread(_rename_into_place, part, target, overwrite)
    finally:
        cancelled.set()
        await asyncio.wait((work,))
        work.exception()  # mark it as retrieved: the await above has raised it
        for leftover in (part, *output_file.companions(part)):
            leftover.unlink(missing_ok=True)
    # A file name may have bytes that are not UTF-8, which JSON could not carry.
    name = os.fsencode(given).decode(errors="replace")
    return BackupResult(file=name, bytes=size, revision=revision)


def _check_files(source: Path, target: Path, overwrite: bool) -> None:
    if not source.exists():
        raise InvalidArgument(f"no database file {source}")
    # An old log would be replayed into a new database of the same name, so it is removed.
    replaced = (target, *output_file.companions(target))
    output_file.refuse_files_of(source, *replaced)
    if target.is_dir():
        raise InvalidArgument(f"{target} is a folder; name a file in it")
    if output_file.is_special(target):
        # The copy would replace the device for every program on the machine.
        raise InvalidArgument(f"{target} is a device or a pipe; name a file")
    existing = [file for file in replaced if os.path.lexists(file)]
    if existing and not overwrite:
        raise InvalidArgument(f"{existing[0]} exists; name another file, or overwrite it")


def _copy(source: Path, part: Path, progress: Progress, cancelled: threading.Event) -> str | None:
    def report(_status: int, remaining: int, total: int) -> None:
        if cancelled.is_set():
            raise _Cancelled
        progress(total - remaining, total)

    try:
        original = _open(source)
        copy = _open(part)
        try:
            # The read transaction fixes the moment of the copy. Without it the copy would restart
            # at every commit of another process.
            original.execute("BEGIN")
            original.execute("SELECT count(*) FROM sqlite_master").fetchone()
            original.backup(copy, pages=STEP_PAGES, progress=report)
            # A single file, without -wal and -shm. Opening it switches it back to WAL.
            copy.execute("PRAGMA journal_mode = DELETE")
            lines = [row[0] for row in copy.execute("PRAGMA integrity_check(5)")]
            if lines != ["ok"]:
                raise StorageError(f"the copy is not sound: {'; '.join(lines)}; check the source")
            return _revision(copy)
        finally:
            copy.close()
            original.close()
    except sqlite3.Error as error:
        raise StorageError(f"the copy failed: {error}") from error


class _Cancelled(Exception):
    """The caller was cancelled, so the copy stops."""


def _open(file: Path) -> sqlite3.Connection:
    return sqlite3.connect(
        f"file:{quote(os.fsencode(file.absolute()))}?mode=rw",
        uri=True,
        timeout=BUSY_SECONDS,
        isolation_level=None,
    )


def _revision(copy: sqlite3.Connection) -> str | None:
    exists = "SELECT 1 FROM sqlite_master WHERE name = ?"
    if copy.execute(exists, (VERSION_TABLE,)).fetchone() is None:
        return None
    row = copy.execute(f"SELECT version_num FROM {VERSION_TABLE}").fetchone()
    return None if row is None else str(row[0])


def _rename_into_place(part: Path, target: Path, overwrite: bool) -> int:
    output_file.sync(part)
    if overwrite:
        for old in output_file.companions(target):
            old.unlink(missing_ok=True)
        output_file.keep_mode(part, target)
        output_file.replace(part, target)
    else:
        try:
            os.link(
                part, target
            )  # fails if the file was created meanwhile, where replace would overwrite it
        except FileExistsError as error:
            raise InvalidArgument(f"{target} exists; name another file, or overwrite it") from error
        except OSError:  # a file system without hard links
            part.replace(target)
    output_file.sync_folder(target.parent)
    return target.stat().st_size

"""Faults of the storage under a SQLite file, and their repair."""

from __future__ import annotations

import os
import resource
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import alembic.command  # noqa: F401 - a process without rights can't read its files later

NOBODY = 65_534

PAGE = 4096
"""Bytes of a page of our files."""


@dataclass(frozen=True)
class Fault:
    """A fault that lasts for the block: ``with fault.on(path): …``."""

    name: str
    on: Callable[[Path], AbstractContextManager[object]]
    says: str
    """A part of the error message."""


def companions(path: Path) -> list[Path]:
    """The three files of a database that is open."""
    return [Path(f"{path}{suffix}") for suffix in ("", "-wal", "-shm")]


@contextmanager
def file_size_limit(
    path: Path, *, room: int = 16_384, largest: int | None = None
) -> Iterator[None]:
    """Limit the files of this process to ``largest`` bytes, or to the largest file of the database
    plus ``room``."""
    sizes = [file.stat().st_size for file in companions(path) if file.exists()]
    size = max(sizes) + room if largest is None else largest
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def full_disk(path: Path) -> Iterator[None]:
    """Fill the (small) disk to its last byte."""
    filler = path.with_name("filler")
    with filler.open("wb", buffering=0) as file:
        block = b"x" * 65_536
        while block:
            try:
                file.write(block)
            except OSError:
                block = block[: len(block) // 2]
    try:
        yield
    finally:
        filler.unlink()


@contextmanager
def write_lock(path: Path) -> Iterator[None]:
    """Hold the write lock on another connection."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield


@contextmanager
def damaged(path: Path) -> Iterator[None]:
    """Overwrite all pages but the first. Restore the file at the end."""
    _checkpoint(path)
    sound = path.read_bytes()
    with path.open("r+b") as file:
        file.seek(PAGE)
        file.write(os.urandom(len(sound) - PAGE))
    try:
        yield
    finally:
        with path.open("r+b") as file:
            file.write(sound)


@contextmanager
def truncated(path: Path) -> Iterator[None]:
    """Truncate the file to its first page. Restore the file at the end."""
    _checkpoint(path)
    sound = path.read_bytes()
    os.truncate(path, PAGE)
    try:
        yield
    finally:
        with path.open("r+b") as file:
            file.write(sound)


@contextmanager
def moved(path: Path) -> Iterator[None]:
    """Move the files away, and back at the end."""
    away = {file: file.with_name(f"away-{file.name}") for file in companions(path)}
    for file, there in away.items():
        file.rename(there)
    try:
        yield
    finally:
        for file, there in away.items():
            there.rename(file)


@contextmanager
def deleted(path: Path) -> Iterator[None]:
    """Delete the files, and put a backup in their place at the end."""
    backup = copied(path)
    for file in companions(path):
        file.unlink()
    try:
        yield
    finally:
        backup.rename(path)


@contextmanager
def replaced(path: Path) -> Iterator[None]:
    """Move a backup over the file, beside the old WAL. Remove the WAL at the end."""
    copied(path).rename(path)
    try:
        yield
    finally:
        for file in companions(path)[1:]:
            file.unlink()


def set_writable(path: Path, writable: bool) -> None:
    """Allow or forbid its owner to write to its files. See ``unprivileged``."""
    for file in companions(path):
        if file.exists():
            file.chmod(0o644 if writable else 0o444)


def copied(path: Path) -> Path:
    """A copy of the database in one file."""
    copy = path.with_name(f"copy-of-{path.name}")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("VACUUM INTO ?", (str(copy),))
    with closing(sqlite3.connect(copy)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
    return copy


def _checkpoint(path: Path) -> None:
    """Move all pages of the WAL into the main file."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


@contextmanager
def small_disk(megabytes: int) -> Iterator[Path]:
    """A folder on a disk of its own. Raises ``PermissionError`` where nothing may be mounted."""
    folder = Path(tempfile.mkdtemp(prefix="sessionsdb-disk-"))
    try:
        options = ("-t", "tmpfs", "-o", f"size={megabytes}m")
        done = subprocess.run(
            ["mount", *options, "tmpfs", folder], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise PermissionError(done.stderr.strip())
        try:
            yield folder
        finally:
            subprocess.run(["umount", "-l", folder], check=True)
    finally:
        folder.rmdir()


@contextmanager
def unprivileged() -> Iterator[Path]:
    """Obey file permissions during the block, also as root. Yields a folder that we own."""
    folder = Path(tempfile.mkdtemp(prefix="sessionsdb-nobody-"))
    user, group = os.geteuid(), os.getegid()
    if user == 0:
        os.chown(folder, NOBODY, NOBODY)
        os.setegid(NOBODY)
        os.seteuid(NOBODY)
    try:
        yield folder
    finally:
        os.seteuid(user)
        os.setegid(group)
        folder.chmod(0o755)
        shutil.rmtree(folder)

"""What can go wrong with the storage under a SQLite file, and how it is put right again."""

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

NOBODY = 65_534

PAGE = 4096
"""Bytes of a page of our files."""


@dataclass(frozen=True)
class Fault:
    """A fault that lasts as long as the block: ``with fault.on(path): …``."""

    name: str
    on: Callable[[Path], AbstractContextManager[object]]
    says: str
    """What the error says."""


def companions(path: Path) -> list[Path]:
    """The three files of a database that is open."""
    return [Path(f"{path}{suffix}") for suffix in ("", "-wal", "-shm")]


@contextmanager
def file_size_limit(
    path: Path, *, room: int = 16_384, largest: int | None = None
) -> Iterator[None]:
    """No file of this process may grow beyond ``largest`` bytes, or by ``room`` beyond the largest
    of the database's."""
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
    """The disk, a small one, is filled to its last byte."""
    filler = path.with_name("filler")
    with filler.open("wb", buffering=0) as file:
        block = b"x" * 65_536
        while block:
            try:
                file.write(block)
            except OSError:
                block = block[: len(block) // 2]
    yield
    filler.unlink()


@contextmanager
def write_lock(path: Path) -> Iterator[None]:
    """Another process is in the middle of a transaction."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield


@contextmanager
def damaged(path: Path) -> Iterator[None]:
    """All pages but the first are overwritten; then the file is as it was."""
    _checkpoint(path)
    sound = path.read_bytes()
    with path.open("r+b") as file:
        file.seek(PAGE)
        file.write(os.urandom(len(sound) - PAGE))
    yield
    with path.open("r+b") as file:
        file.write(sound)


@contextmanager
def truncated(path: Path) -> Iterator[None]:
    """All pages but the first are lost; then they are there again."""
    _checkpoint(path)
    sound = path.read_bytes()
    os.truncate(path, PAGE)
    yield
    with path.open("r+b") as file:
        file.write(sound)


@contextmanager
def moved(path: Path) -> Iterator[None]:
    """Its files are moved away, and back."""
    away = {file: file.with_name(f"away-{file.name}") for file in companions(path)}
    for file, there in away.items():
        file.rename(there)
    yield
    for file, there in away.items():
        there.rename(file)


@contextmanager
def deleted(path: Path) -> Iterator[None]:
    """Its files are deleted, and a backup takes their place."""
    backup = copied(path)
    for file in companions(path):
        file.unlink()
    yield
    backup.rename(path)


@contextmanager
def replaced(path: Path) -> Iterator[None]:
    """A backup is moved over it, beside the old one's log; then the log is removed."""
    copied(path).rename(path)
    yield
    for file in companions(path)[1:]:
        file.unlink()


def set_writable(path: Path, writable: bool) -> None:
    """Whether its owner may write to its files; see ``unprivileged``."""
    for file in companions(path):
        if file.exists():
            file.chmod(0o644 if writable else 0o444)


def copied(path: Path) -> Path:
    """A copy of the database as it is, in one file."""
    copy = path.with_name(f"copy-of-{path.name}")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("VACUUM INTO ?", (str(copy),))
    with closing(sqlite3.connect(copy)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
    return copy


def _checkpoint(path: Path) -> None:
    """Everything is in the main file."""
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
    """Permissions bind us while the block lasts, also if we are root; a folder that is ours."""
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

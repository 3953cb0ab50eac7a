"""Write a file as a whole or not at all, and never over the files of a database."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from sessionsdb.errors import InvalidArgument

PRIVATE = 0o600
"""The mode of a new file that holds transcripts."""

PUBLIC = 0o666
"""The mode of any other new file, less the umask."""

COMPANIONS = ("-wal", "-shm", "-journal")
"""The ends of the names of SQLite's own files beside a database."""

_MEMORY = "/dev/shm/"
"""The folder of ordinary files in memory, on Linux."""

# https://sqlite.org/fileformat.html: of a database, and of a log in either byte order.
_MAGIC = (b"SQLite format 3\0", b"\x37\x7f\x06\x82", b"\x37\x7f\x06\x83")


@contextlib.contextmanager
def replace_file(file: Path, *, mode: int, database: Path | None = None) -> Iterator[BinaryIO]:
    """Yield a stream. Its content takes the place of ``file`` when the block ends without an error.

    A file that exists keeps its mode. A symbolic link is followed, so it stays a link. A new file
    gets ``mode``. A device or a pipe is written directly. Raises ``InvalidArgument`` if the file is
    a SQLite database or one of SQLite's files beside it, under any name, and ``OSError``.
    """
    refuse_database(file, database)
    if is_special(file):
        with open(file, "ab", buffering=0, opener=_open_existing) as stream:
            yield stream
        return
    target = resolve(file)
    part = create_part(target, mode)
    try:
        with part.open("wb") as stream:
            yield stream
            keep_mode(part, target)
            stream.flush()
            os.fsync(stream.fileno())
        replace(part, target)
        sync_folder(target.parent)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def refuse_database(file: Path, database: Path | None = None) -> None:
    """Raise ``InvalidArgument`` if ``file`` is a SQLite database, or belongs to one.

    ``database`` is a database whose files are known by their identity also while they are empty or
    missing.
    """
    if database is not None:
        refuse_files_of(database, file)
    target = resolve(file)
    for suffix in COMPANIONS:
        if target.name.endswith(suffix) and _has_magic(Path(str(target).removesuffix(suffix))):
            raise InvalidArgument(f"{file} belongs to a SQLite database; name another file")
    if _has_magic(target):
        raise InvalidArgument(f"{file} is a SQLite database; name another file")


def refuse_files_of(database: Path, *files: Path) -> None:
    """Raise ``InvalidArgument`` if one of ``files`` is a file of ``database``, under any name."""
    for file in files:
        for name in {database, resolve(database)}:
            if _is_same(file, name):
                raise InvalidArgument(f"{file} is the database itself; name another file")
            for companion in companions(name):
                if _is_same(file, companion):
                    raise InvalidArgument(
                        f"{file} is {companion.name}, a part of the database itself; "
                        "name another file"
                    )


def companions(database: Path) -> list[Path]:
    """Return the names of SQLite's own files beside a database."""
    return [database.with_name(database.name + suffix) for suffix in COMPANIONS]


def resolve(file: Path) -> Path:
    """Return the file that a symbolic link leads to, which need not exist."""
    return Path(os.path.realpath(file))


def is_special(file: Path) -> bool:
    """Return whether ``file`` is a device, a pipe or a descriptor, which can't be replaced."""
    absolute = os.path.abspath(file)
    if absolute.startswith(("/dev/", "/proc/")) and not absolute.startswith(_MEMORY):
        return True
    return file.exists() and not stat.S_ISREG(file.stat().st_mode) and not file.is_dir()


def create_part(target: Path, mode: int) -> Path:
    """Create an empty file beside ``target`` under a new name, and return its path.

    It has ``mode``. If it is to replace a file, only its owner can read it until ``keep_mode``.
    """
    if target.is_dir():
        raise InvalidArgument(f"{target} is a folder; name a file in it")
    part = target.with_name(f".{secrets.token_hex(8)}.part")
    mode = PRIVATE if target.exists() else mode
    try:
        os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
    except OSError as error:
        # The caller knows the target, not the name of the part.
        raise OSError(error.errno, error.strerror, str(target)) from error
    return part


def keep_mode(part: Path, target: Path) -> None:
    """Give ``part`` the mode and the owner of ``target``, if ``target`` exists."""
    try:
        status = target.stat()
    except FileNotFoundError:
        return
    if hasattr(os, "chown"):  # Windows has no numbers of owners
        with contextlib.suppress(OSError):  # only root may give a file away
            os.chown(part, status.st_uid, status.st_gid)
    os.chmod(part, stat.S_IMODE(status.st_mode))


def replace(part: Path, target: Path) -> None:
    """Give ``part`` the name ``target``, whose old file goes. Raises ``OSError``, which names it.

    Windows refuses this with ``PermissionError`` while a program has the old file open.
    """
    try:
        part.replace(target)
    except PermissionError as error:
        reason = f"{error.strerror}; a program may have the file open"
        raise PermissionError(error.errno, reason, str(target)) from error


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk, where the system can tell."""
    # A folder that may be written, but not read. Windows opens no folder.
    with contextlib.suppress(OSError):
        _sync(folder, os.O_RDONLY)


def sync(file: Path) -> None:
    """Wait until a file is on the disk."""
    _sync(file, os.O_RDWR)  # Windows refuses fsync where a file was opened to read


def _sync(file: Path, flags: int) -> None:
    descriptor = os.open(file, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _open_existing(file: str, flags: int) -> int:
    return os.open(file, flags & ~os.O_CREAT)


def _is_same(file: Path, other: Path) -> bool:
    with contextlib.suppress(OSError):
        if os.path.samefile(file, other):
            return True
    return resolve(file) == resolve(other)


def _has_magic(file: Path) -> bool:
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            return False
        with file.open("rb") as stream:
            return stream.read(16).startswith(_MAGIC)
    except OSError:
        return False

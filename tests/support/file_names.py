"""The names under which a file of a database can be given."""

from __future__ import annotations

import os
from pathlib import Path

SUFFIXES = ("", "-wal", "-shm", "-journal")


def names_of(database: Path, folder: Path) -> list[Path]:
    """Return names of the files of an open database: their own, of links, and of hard links."""
    names = []
    for suffix in SUFFIXES:
        file = database.with_name(database.name + suffix)
        symbolic, hard = folder / f"symbolic{suffix}", folder / f"hard{suffix}.jsonl"
        symbolic.symlink_to(file)
        names += [file, file.parent / "." / file.name, symbolic]
        if file.exists():
            os.link(file, hard)
            names.append(hard)
    return names

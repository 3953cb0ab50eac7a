"""The inputs of an import: files, folders of files, and standard input."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from sessionsdb import InvalidArgument

_SUFFIXES = (".json", ".jsonl", ".ndjson", ".traj")
_COMPRESSED = ".gz"
_EVENT = re.compile(r"(?:event-)?(\d{1,9})(?:-[\w-]{1,64})?\.json")
"""A file of one event of OpenHands: ``event-00001-ID.json``, or ``1.json`` of version 0."""
_BESIDE_EVENTS = ("base_state.json", "metadata.json", "conversation_info.json")


class ImportFile(NamedTuple):
    """One input."""

    path: str
    """The path, or ``-`` for standard input."""
    name: str
    """The id of its session, if the file holds none."""
    in_folder: bool = False
    """Whether it was found in a folder. A file of no known form is passed over then."""
    events: tuple[str, ...] = ()
    """The files of one event each that are one conversation, in their order."""


def input_files(given: list[str]) -> list[ImportFile]:
    """Return the inputs, in their order, those of a folder by their path.

    Raises ``InvalidArgument`` for a folder without a file to import, and ``OSError``.
    """
    found: list[ImportFile] = []
    for path in given:
        if path != "-" and os.path.isdir(path):
            files = list(_in_folder(Path(path)))
            if not files:
                raise InvalidArgument(
                    f"{path} holds no file to import: no {', '.join(_SUFFIXES)} or {_COMPRESSED}"
                )
            found.extend(files)
        else:
            found.append(ImportFile(path, "imported" if path == "-" else name_of(path)))
    return found


def name_of(path: str) -> str:
    """Return the name of a file without its folder and its suffixes."""
    name = os.path.basename(path).removesuffix(_COMPRESSED)
    for suffix in _SUFFIXES:
        if name.endswith(suffix) and name != suffix:
            name = name.removesuffix(suffix)
            break
    return name.removesuffix(".traj") or "imported"


def _in_folder(top: Path) -> Iterator[ImportFile]:
    for folder, folders, names in os.walk(top, onerror=_raise):
        folders[:] = sorted(one for one in folders if not one.startswith("."))
        here = Path(folder)
        events = _event_files(here, names)
        if events:
            conversation = here.parent if here.name == "events" else here
            name = conversation.resolve().name
            yield ImportFile(str(here), name, True, tuple(str(here / one) for one in events))
            continue
        passed = _BESIDE_EVENTS if "events" in folders else ()
        for one in sorted(names):
            if _is_wanted(one) and one not in passed:
                within = (here / name_of(one)).relative_to(top)
                yield ImportFile(str(here / one), within.as_posix(), True)


def _is_wanted(name: str) -> bool:
    plain = name.removesuffix(_COMPRESSED)
    return plain.endswith(_SUFFIXES) and not name.startswith(".") and ".meta.json" not in plain


def _event_files(folder: Path, names: list[str]) -> list[str]:
    """Return the files of a folder of events in their order, none for any other folder."""
    numbered = sorted(
        (int(match[1]), name) for name in names if (match := _EVENT.fullmatch(name)) is not None
    )
    is_of_events = folder.name == "events" or any(name.startswith("event-") for _, name in numbered)
    return [name for _, name in numbered] if is_of_events else []


def _raise(error: OSError) -> None:
    raise error

"""Short ids: the beginning of a session's id, for people to read and to type."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable

MIN_CHARACTERS = 8
"""Of a UUID this many characters are shown. A shorter prefix is not looked up."""

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


def short_ids(ids: Iterable[str]) -> dict[str, str]:
    """Return the form of each id for people: a UUID at its end is cut after 8 characters.

    More characters are shown where two of the ids would look the same.
    """
    ordered = sorted(set(ids))
    shown: dict[str, str] = {}
    for id, before, after in zip(ordered, ["", *ordered], [*ordered[1:], ""], strict=False):
        begin = uuid_begin(id)
        shared = max(_shared(id, other) for other in (before, after))
        shown[id] = id if begin is None else id[: max(begin + MIN_CHARACTERS, shared + 1)]
    return shown


def _shared(id: str, other: str) -> int:
    """Return the number of characters with which both begin."""
    pairs = zip(id, other, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def uuid_begin(id: str) -> int | None:
    """Return where the UUID at the end of ``id`` begins, ``None`` without one."""
    return len(id) - 36 if len(id) >= 36 and _UUID.fullmatch(id[-36:]) else None

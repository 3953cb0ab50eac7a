"""Ids of sessions that are made of several names of a framework.

The names are joined with ``/``. A slash inside of a name is escaped, so two lists of names never
give the same id.
"""

from __future__ import annotations


def join(*names: str) -> str:
    """Return the id that these names make."""
    return "/".join(map(_escape, names))


def last_name(id: str) -> str:
    """Return the last name of an id that ``join`` made."""
    return _unescape(id.rpartition("/")[2])


def last_name_after(id: str, beginning: str) -> str | None:
    """Return the last name of an id that ``join`` made, behind the names before it.

    ``beginning`` is what ``join`` makes of these names and an empty one. Returns ``None`` if
    ``join`` makes no such id.
    """
    last = id.removeprefix(beginning)
    if not id.startswith(beginning) or "/" in last:
        return None
    name = _unescape(last)
    return name if name == last or _escape(name) == last else None


def _unescape(name: str) -> str:
    return name.replace("%2F", "/").replace("%25", "%")


def _escape(name: str) -> str:
    return name.replace("%", "%25").replace("/", "%2F")

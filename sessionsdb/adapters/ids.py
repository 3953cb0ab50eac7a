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
    return id.rpartition("/")[2].replace("%2F", "/").replace("%25", "%")


def _escape(name: str) -> str:
    return name.replace("%", "%25").replace("/", "%2F")

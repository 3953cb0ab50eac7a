"""Changes of sessions that concurrent callers of ``update`` ask for: one transaction for all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from sqlalchemy import Connection

from sessionsdb.errors import UnknownSession
from sessionsdb.operations import registry
from sessionsdb.operations.dialect import dialect_of
from sessionsdb.operations.keys import SessionKey
from sessionsdb.operations.session_rows import SessionChange
from sessionsdb.types import SessionDetails


def change(
    connection: Connection, changes: Sequence[SessionChange]
) -> list[SessionDetails | UnknownSession]:
    """Change sessions, each of them once, all in the same columns. Return one answer for each."""
    found: dict[int, SessionDetails] = {}
    for number, *row in dialect_of(connection).change_sessions(connection, changes):
        found[number] = registry.details_from(connection, changes[number - 1].namespace, row)
    return [
        found.get(number) or UnknownSession(one.session_id) for number, one in enumerate(changes, 1)
    ]


def grouped(changes: Sequence[SessionChange]) -> list[list[int]]:
    """Return the indices of the changes in groups for ``change``.

    The changes of one session keep their order: a later one is in a later group.
    """
    groups: dict[tuple[int, tuple[str, ...]], list[int]] = {}
    turn: Counter[SessionKey] = Counter()
    for index, one in enumerate(changes):
        groups.setdefault((turn[one[:2]], tuple(one.values)), []).append(index)
        turn[one[:2]] += 1
    return [groups[key] for key in sorted(groups)]

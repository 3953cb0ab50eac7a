"""The places of sessions in their trees, ``root_id`` and ``depth``, compared with their parents.

Every transaction that sets a parent sets the places too. A difference has another cause: rows that
were changed by hand, or were imported by an old version.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from sqlalchemy import Connection

from sessionsdb.engine.statement import Statement
from sessionsdb.operations.keys import SessionKey
from sessionsdb.operations.tree import lock_subtree

# In a circle of parents at least one session is not one deeper than its parent.
_MISPLACED = Statement("""
SELECT s.namespace, s.id FROM sessions AS s
JOIN sessions AS p ON p.namespace = s.namespace AND p.id = s.parent_id
WHERE s.parent_id IS NOT NULL
  AND (s.depth <> p.depth + 1 OR coalesce(s.root_id, '') <> coalesce(p.root_id, p.id))
UNION ALL
SELECT s.namespace, s.id FROM sessions AS s
WHERE s.parent_id IS NULL AND (s.depth <> 0 OR s.root_id IS NOT NULL)
ORDER BY 1, 2
""")

_PARENT = Statement("SELECT parent_id FROM sessions WHERE namespace = :namespace AND id = :id")

_PLACE = Statement("""
WITH RECURSIVE below(namespace, id, depth) AS (
    SELECT namespace, id, 0 FROM sessions
    WHERE namespace = :namespace AND id = :id AND parent_id IS NULL
    UNION ALL
    SELECT child.namespace, child.id, below.depth + 1
    FROM below JOIN sessions AS child
        ON child.namespace = below.namespace AND child.parent_id = below.id
)
UPDATE sessions
SET root_id = CASE WHEN below.depth > 0 THEN :id END, depth = below.depth
FROM below
WHERE sessions.namespace = below.namespace AND sessions.id = below.id
""")


class Misplaced(NamedTuple):
    """Sessions whose places contradict their parents."""

    roots: dict[SessionKey, SessionKey]
    """For each session with a wrong root or depth the topmost session above it."""
    circles: list[list[SessionKey]]
    """Sessions that are their own ancestors, each behind its child."""


def find_misplaced(connection: Connection) -> Misplaced:
    """Compare each session of all namespaces with its parent."""
    wrong: list[SessionKey] = [(namespace, id) for namespace, id in _MISPLACED.rows(connection, {})]
    tops: dict[SessionKey, SessionKey | None] = {}
    circles = []
    for key in wrong:
        climbed: dict[SessionKey, None] = {}
        one = key
        while one not in tops and one not in climbed:
            climbed[one] = None
            parent = _PARENT.row(connection, {"namespace": one[0], "id": one[1]})
            if parent is None or parent[0] is None:
                tops[one] = one
            else:
                one = (one[0], parent[0])
        if one not in tops:
            path = list(climbed)
            circles.append(path[path.index(one) :])
            tops[one] = None
        tops |= dict.fromkeys(climbed, tops[one])
    return Misplaced(
        {key: top for key in wrong if (top := tops[key]) is not None},
        circles,
    )


def place(connection: Connection, roots: Collection[SessionKey]) -> None:
    """Set the roots and the depths of all sessions below these."""
    for namespace, id in sorted(roots):
        lock_subtree(connection, namespace, id)
        _PLACE.rows(connection, {"namespace": namespace, "id": id})

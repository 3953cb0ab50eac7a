"""The parents of restored sessions, and with them the places in the trees."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from typing import NamedTuple

from sqlalchemy import Connection

from sessionsdb.engine.statement import Statement
from sessionsdb.errors import InvalidArgument
from sessionsdb.operations import registry
from sessionsdb.operations.dialect import dialect_of
from sessionsdb.operations.row_locks import lock_mailboxes, lock_sessions
from sessionsdb.operations.tree import SPAWNED


class Link(NamedTuple):
    """A restored session that is to get a parent."""

    session_id: str
    parent: str
    incarnation: str | None
    """That of the child, so that another session with its id is not changed."""


class _Node(NamedTuple):
    """A session, as far as its place in a tree matters."""

    id: str
    parent: str | None
    root: str | None
    depth: int
    idempotency_key: str | None
    incarnation: str | None


def check_parent(session_id: str, parent: str) -> None:
    """Raise ``InvalidArgument`` for a parent that a session can't have, whatever is stored."""
    if session_id == parent:
        raise InvalidArgument(f"session {session_id} is its own parent")
    registry.check_id_bytes(parent, session_id)


def parents_first(links: Mapping[str, Link]) -> list[Link]:
    """Return the links in an order in which few sessions move twice. They have the ids as keys."""
    ordered: dict[str, Link] = {}
    for link in links.values():
        climbed: dict[str, Link] = {}
        above: Link | None = link
        while above is not None:
            if above.session_id in ordered or above.session_id in climbed:
                break
            climbed[above.session_id] = above
            above = links.get(above.parent)
        ordered.update(reversed(climbed.items()))
    return list(ordered.values())


def link(connection: Connection, namespace: str, links: Collection[Link]) -> list[Link]:
    """Give sessions without a parent their parents.

    They and all sessions below them get the roots and depths that belong to it. A session whose
    parent is missing stays a root. So does one whose parent is below it: return these links. Of two
    children of one parent with one idempotency key, the one that had the parent first keeps it.
    """
    trees, nodes = _lock(connection, namespace, links)
    above = {id: nodes[id].parent for id in trees if nodes[id].parent is not None}
    keys = {id: nodes[id].idempotency_key for id in trees}
    tops = _Tops({id: parent for id, parent in above.items() if parent is not None})
    given: set[tuple[str, str]] = set()
    refused = []
    for one in links:
        child = nodes.get(one.session_id)
        if child is None or child.id not in trees or child.incarnation != one.incarnation:
            continue
        if child.parent is not None or one.parent not in nodes:
            continue
        if tops.of(one.parent) == child.id:
            refused.append(one)
            continue
        tops.join(child.id, one.parent)
        above[child.id] = one.parent
        if (key := child.idempotency_key) is not None:
            taken = {"namespace": namespace, "parent": one.parent, "idempotency_key": key}
            if (one.parent, key) in given or SPAWNED.row(connection, taken) is not None:
                keys[child.id] = None
            given.add((one.parent, key))
    for place in _places(nodes.values(), above):
        node = nodes[place.id]
        changed = node._replace(
            parent=above.get(node.id),
            root=place.root,
            depth=place.depth,
            idempotency_key=keys.get(node.id),
        )
        if node.id in trees and changed != node:
            _PLACE.rows(connection, {"namespace": namespace, **changed._asdict()})
    return refused


_PLACE = Statement("""
UPDATE sessions
SET parent_id = :parent, root_id = :root, depth = :depth, idempotency_key = :idempotency_key
WHERE namespace = :namespace AND id = :id
""")


# Trees begin at sessions without a parent, so no circle of parents is among them.
@cache
def _trees(in_ids: str) -> Statement:
    return Statement(f"""
WITH RECURSIVE tree(namespace, id) AS (
    SELECT s.namespace, s.id FROM sessions AS s
    WHERE s.namespace = :namespace AND s.id {in_ids} AND s.parent_id IS NULL
    UNION ALL
    SELECT child.namespace, child.id
    FROM tree JOIN sessions AS child
        ON child.namespace = tree.namespace AND child.parent_id = tree.id
)
SELECT id FROM tree
""")


@cache
def _nodes(in_ids: str) -> Statement:
    return Statement(f"""
SELECT id, parent_id, root_id, depth, idempotency_key, incarnation FROM sessions
WHERE namespace = :namespace AND id {in_ids}
""")


def _lock(
    connection: Connection, namespace: str, links: Collection[Link]
) -> tuple[set[str], dict[str, _Node]]:
    """Lock the children of links, all sessions below them, and their parents.

    Return the ids of the former and all of their rows. Two imports that together would make a
    circle lock a session of it both, so the later one sees the links of the other.
    """
    dialect = dialect_of(connection)
    children = dialect.ids_values([one.session_id for one in links])
    parents = {one.parent for one in links}
    locked: set[str] = set()
    while True:
        rows = _trees(dialect.in_ids).rows(connection, {"namespace": namespace, **children})
        trees = {id for (id,) in rows}
        if locked and locked.issuperset(trees):
            break
        locked |= trees | parents
        lock_mailboxes(connection, [(namespace, id) for id in trees | parents])
    lock_sessions(connection, [(namespace, id) for id in trees | parents])
    values = {"namespace": namespace, **dialect.ids_values(list(trees | parents))}
    found = [_Node(*row) for row in _nodes(dialect.in_ids).rows(connection, values)]
    return trees, {node.id: node for node in found}


class _Tops:
    """The topmost known session above each, found in about constant time."""

    def __init__(self, above: dict[str, str]) -> None:
        self._above = above

    def of(self, id: str) -> str:
        path = []
        while (above := self._above.get(id)) is not None:
            path.append(id)
            id = above
        for one in path:
            self._above[one] = id
        return id

    def join(self, child: str, parent: str) -> None:
        self._above[child] = parent


class _Place(NamedTuple):
    id: str
    root: str | None
    depth: int


def _places(nodes: Collection[_Node], above: Mapping[str, str | None]) -> Sequence[_Place]:
    """Return the places of sessions, whose parents may have changed to ``above``."""
    below: dict[str, list[str]] = defaultdict(list)
    for id, parent in above.items():
        if parent is not None:
            below[parent].append(id)
    places = [
        _Place(node.id, None, 0) if node.parent is None else _Place(node.id, node.root, node.depth)
        for node in nodes
        if above.get(node.id) is None
    ]
    for place in places:  # it grows
        root = place.root or place.id
        places += [_Place(id, root, place.depth + 1) for id in below[place.id]]
    return places

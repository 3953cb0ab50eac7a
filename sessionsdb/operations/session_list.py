"""Pages of the registry, in the order of the sessions' last activity."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from sqlalchemy import Connection, select

from sessionsdb import operations
from sessionsdb.engine import clock
from sessionsdb.engine.statement import Row, Statement
from sessionsdb.errors import UnknownSession
from sessionsdb.operations.session_rows import SELECT_DETAILS, SELECT_SUMMARY, summaries
from sessionsdb.schema import CHANNEL_PREFIX, PEER_PREFIX, sessions
from sessionsdb.types import SessionSummary


class SessionFilter(NamedTuple):
    """The sessions that ``list_page`` shows.

    ``after`` is the ``(last_active, id)`` of the last session of the page before.
    """

    channel: str | None = None
    peer: str | None = None
    parent: str | None = None
    root: str | None = None
    active_since: datetime | None = None
    include_ended: bool = False
    limit: int | None = None
    after: tuple[datetime, str] | None = None
    newest_first: bool = False
    details: bool = False


_ID, _LAST_ACTIVE = 0, 4
"""The places of two columns in a row of ``SELECT_SUMMARY`` and of ``SELECT_DETAILS``."""


def list_page(
    connection: Connection, namespace: str, selection: SessionFilter
) -> list[SessionSummary]:
    """Return a page of sessions by ``last_active``, equal times by id, oldest or newest first.

    Each branch is read in that order from an index of its own, at most one page of it. The branches
    are merged here, so neither database sorts anything. They are read by one statement: a session
    that ends or is reopened between two statements could be in neither.
    """
    parameters = _parameters(connection, namespace, selection)
    shapes = tuple(_shapes(connection, namespace, selection))
    if not shapes:
        return []
    page = _statement(shapes).rows(connection, parameters)
    if len(shapes) > 1:
        page = _merged(page, selection)
    if selection.details:
        return [operations.registry.details_from(connection, namespace, row) for row in page]
    return summaries(page)


def _merged(rows: Sequence[Row], selection: SessionFilter) -> list[Row]:
    ordered = sorted(
        rows,
        key=lambda row: (row[_LAST_ACTIVE], row[_ID]),
        reverse=selection.newest_first,
    )
    return ordered[: selection.limit]


_Scope = Literal["all", "root", "below root", "subtree"]
"""The part of the registry that a statement reads. A root has its id in ``root_id`` of all sessions
below it, and other sessions have their subtree found by ``parent_id``."""


class _Shape(NamedTuple):
    """The SELECT of a branch, without its values."""

    scope: _Scope
    ended: bool | None
    """Live sessions, ended sessions, or both at once (``None``)."""
    channel: bool
    peer: bool
    parent: bool
    since: bool
    after: bool
    limit: bool
    newest_first: bool
    details: bool


def _shapes(connection: Connection, namespace: str, selection: SessionFilter) -> Iterator[_Shape]:
    for scope in _scopes(connection, namespace, selection.root):
        for ended in _branches(selection):
            yield _Shape(
                scope,
                ended,
                channel=selection.channel is not None,
                peer=selection.peer is not None,
                parent=selection.parent is not None,
                since=selection.active_since is not None,
                after=selection.after is not None,
                limit=selection.limit is not None,
                newest_first=selection.newest_first,
                details=selection.details,
            )


_ROOT_OF = Statement(
    "SELECT s.root_id FROM sessions AS s WHERE s.namespace = :namespace AND s.id = :id"
)


def _scopes(connection: Connection, namespace: str, root: str | None) -> tuple[_Scope, ...]:
    """The whole registry, or a tree and its root."""
    if root is None:
        return ("all",)
    row = _ROOT_OF.row(connection, {"namespace": namespace, "id": root})
    if row is None:
        return ()
    return ("root", "below root") if row[0] is None else ("subtree",)


def _branches(selection: SessionFilter) -> tuple[bool | None, ...]:
    """The branches to read, each as ``_Shape.ended``.

    The indices of trees and of children hold live and ended sessions.
    """
    if not selection.include_ended:
        return (False,)
    return (None,) if selection.root is not None or selection.parent is not None else (False, True)


# The recursive part joins on both columns. With the namespace as a value SQLite may first read all
# children of the namespace, to build a filter. The top is left out: see registry.py.
_SUBTREE = """
    WITH RECURSIVE tree AS (
        SELECT t.namespace, t.id, t.id AS top FROM sessions AS t
        WHERE t.namespace = :namespace AND t.id = :root
        UNION ALL
        SELECT c.namespace, c.id, t.top
        FROM tree AS t JOIN sessions AS c
            ON c.namespace = t.namespace AND c.parent_id = t.id AND c.id <> t.top
    )
    SELECT t.id FROM tree AS t
"""

_SCOPES: dict[_Scope, tuple[str, ...]] = {
    "all": (),
    "root": ("s.id = :root",),
    "below root": ("s.root_id = :root",),
    "subtree": (f"s.id IN ({_SUBTREE})",),
}

# The index over channel and peer holds their beginnings only, so the whole texts are compared too.
# Without coalesce SQLite would put the whole text in place of the column everywhere, also into the
# expressions of the index. It would not find the index then.
_OF_CONTACT = (
    f"pg_catalog.substr(s.channel, 1, {CHANNEL_PREFIX}) = :channel_start",
    "coalesce(s.channel, '') = :channel",
    f"pg_catalog.substr(s.peer, 1, {PEER_PREFIX}) = :peer_start",
    "coalesce(s.peer, '') = :peer",
)


@lru_cache(maxsize=512)
def _statement(shapes: tuple[_Shape, ...]) -> Statement:
    """Return the statement for all branches."""
    selects = [_select(shape) for shape in shapes]
    if len(selects) == 1:
        return Statement(selects[0])
    parts = (f"SELECT * FROM ({select}) AS b{n}" for n, select in enumerate(selects))
    return Statement(" UNION ALL ".join(parts))


def _select(shape: _Shape) -> str:
    conditions = ["s.namespace = :namespace", *_SCOPES[shape.scope]]
    if shape.ended is not None:
        conditions.append(f"s.ended_at IS {'NOT NULL' if shape.ended else 'NULL'}")
    if shape.channel and shape.peer and shape.ended is not None:
        conditions += _OF_CONTACT
    else:
        conditions += ["s.channel = :channel"] * shape.channel + ["s.peer = :peer"] * shape.peer
    conditions += ["s.parent_id = :parent"] * shape.parent
    conditions += ["s.last_active >= :since"] * shape.since
    if shape.after:
        compared = "<" if shape.newest_first else ">"
        conditions.append(f"(s.last_active, s.id) {compared} (:after, :after_id)")
    end = ""
    if shape.scope != "root":  # PostgreSQL would sort the one row
        direction = " DESC" if shape.newest_first else ""
        end = f"ORDER BY s.last_active{direction}, s.id{direction}"
        end += " LIMIT :limit" * shape.limit
    selected = SELECT_DETAILS if shape.details else SELECT_SUMMARY
    return f"{selected} WHERE {' AND '.join(conditions)} {end}"


def _parameters(connection: Connection, namespace: str, selection: SessionFilter) -> dict[str, Any]:
    """Return the values that were given, by the names that they have in the statements."""
    given: dict[str, Any] = {"namespace": namespace}
    if selection.limit is not None:
        given["limit"] = selection.limit
    if selection.channel is not None:
        given |= {"channel": selection.channel, "channel_start": selection.channel[:CHANNEL_PREFIX]}
    if selection.peer is not None:
        given |= {"peer": selection.peer, "peer_start": selection.peer[:PEER_PREFIX]}
    if selection.parent is not None:
        given["parent"] = selection.parent
    if selection.root is not None:
        given["root"] = selection.root
    if selection.active_since is not None:
        given["since"] = clock.as_stored(connection, selection.active_since)
    if selection.after is not None:
        active, id = selection.after
        given |= {"after": clock.as_stored(connection, active), "after_id": id}
    return given


def cursor_of(connection: Connection, namespace: str, session_id: str) -> tuple[datetime, str]:
    """Return the cursor of a session for ``SessionFilter.after``. Raises ``UnknownSession``."""
    active = connection.execute(
        select(sessions.c.last_active).where(
            sessions.c.namespace == namespace, sessions.c.id == session_id
        )
    ).scalar_one_or_none()
    if active is None:
        raise UnknownSession(session_id)
    return active, session_id

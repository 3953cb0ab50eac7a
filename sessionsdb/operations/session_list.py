"""Pages of the registry, in the order of the sessions' last activity."""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Select,
    literal,
    select,
    tuple_,
)

from sessionsdb.errors import (
    UnknownSession,
)
from sessionsdb.operations import registry
from sessionsdb.operations.session_rows import SUMMARY, summary_fields
from sessionsdb.schema import KeyText, sessions
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


def list_page(
    connection: Connection, namespace: str, filter: SessionFilter
) -> list[SessionSummary]:
    """Return a page of sessions by ``last_active``, oldest first, equal times by id.

    Each branch is read in that order from an index of its own, at most one page of it. The branches
    are merged here, so neither database sorts anything.
    """
    rows: dict[str, Row[*tuple[Any, ...]]] = {}
    for scope in _scopes(connection, namespace, filter):
        # A session that ends between the two reads is in both, never in neither.
        for ended in _branches(filter):
            statement = _branch(namespace, filter, ended).where(scope.condition)
            if scope.single:  # PostgreSQL would sort the one row
                statement = statement.order_by(None).limit(None)
            rows |= {row.id: row for row in connection.execute(statement)}
    ordered = sorted(rows.values(), key=lambda row: (row.last_active, row.id))
    return [SessionSummary.from_fields(**summary_fields(row)) for row in ordered[: filter.limit]]


class _Scope(NamedTuple):
    """A part of the registry to read."""

    condition: ColumnElement[bool]
    single: bool = False


def _scopes(connection: Connection, namespace: str, filter: SessionFilter) -> list[_Scope]:
    """The whole registry, or a tree and its root."""
    if filter.root is None:
        return [_Scope(sessions.c.namespace == namespace)]
    top = connection.execute(
        select(sessions.c.root_id).where(
            sessions.c.namespace == namespace, sessions.c.id == filter.root
        )
    ).one_or_none()
    if top is None:
        return []
    if top.root_id is None:
        return [
            _Scope(sessions.c.id == filter.root, single=True),
            _Scope(sessions.c.root_id == filter.root),
        ]
    return [_Scope(sessions.c.id.in_(registry.subtree_query(namespace, filter.root)))]


def _branches(filter: SessionFilter) -> tuple[bool | None, ...]:
    """The branches to read: live sessions, ended sessions, or both at once (``None``).

    The indices of trees and of children hold both.
    """
    if not filter.include_ended:
        return (False,)
    return (None,) if filter.root is not None or filter.parent is not None else (False, True)


def _branch(namespace: str, filter: SessionFilter, ended: bool | None) -> Select[Any]:
    order = tuple_(sessions.c.last_active, sessions.c.id)
    conditions = [sessions.c.namespace == namespace]
    if ended is not None:
        conditions.append(
            sessions.c.ended_at.is_not(None) if ended else sessions.c.ended_at.is_(None)
        )
    if filter.channel is not None:
        conditions.append(sessions.c.channel == filter.channel)
    if filter.peer is not None:
        conditions.append(sessions.c.peer == filter.peer)
    if filter.parent is not None:
        conditions.append(sessions.c.parent_id == filter.parent)
    if filter.active_since is not None:
        conditions.append(sessions.c.last_active >= filter.active_since)
    if filter.after is not None:
        active, last_id = filter.after
        conditions.append(
            order > tuple_(literal(active, sessions.c.last_active.type), literal(last_id, KeyText))
        )
    return (
        select(*SUMMARY)
        .where(*conditions)
        .order_by(sessions.c.last_active, sessions.c.id)
        .limit(filter.limit)
    )


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

"""Pages of the registry: which sessions there are, by when they were last active."""

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
from sessionsdb.schema import KeyText, sessions
from sessionsdb.types import SessionSummary


class SessionFilter(NamedTuple):
    """Which sessions ``page`` shows; ``after`` is ``(last_active, id)`` of the last one seen."""

    channel: str | None = None
    peer: str | None = None
    parent: str | None = None
    root: str | None = None
    active_since: datetime | None = None
    include_ended: bool = False
    limit: int | None = None
    after: tuple[datetime, str] | None = None


def list_page(
    connection: Connection, namespace: str, wanted: SessionFilter
) -> list[SessionSummary]:
    """A page of sessions by ``last_active``, oldest first, equal times by id.

    Each branch below is read in that order from an index of its own, no more of it than a page,
    and the branches are merged here: neither database sorts anything.
    """
    rows: dict[str, Row[*tuple[Any, ...]]] = {}
    for scope in _scopes(connection, namespace, wanted):
        # A session that ends between the two reads is in both, never in none.
        for ended in _halves(wanted):
            statement = _branch(namespace, wanted, ended).where(scope.condition)
            if scope.single:  # not worth a sort, which PostgreSQL would make
                statement = statement.order_by(None).limit(None)
            rows |= {row.id: row for row in connection.execute(statement)}
    ordered = sorted(rows.values(), key=lambda row: (row.last_active, row.id))
    return [
        SessionSummary.from_fields(**registry.summary_fields(row))
        for row in ordered[: wanted.limit]
    ]


class _Scope(NamedTuple):
    """A part of the registry to look at."""

    condition: ColumnElement[bool]
    single: bool = False


def _scopes(connection: Connection, namespace: str, wanted: SessionFilter) -> list[_Scope]:
    """All of the registry, or a tree and its root."""
    if wanted.root is None:
        return [_Scope(sessions.c.namespace == namespace)]
    top = connection.execute(
        select(sessions.c.root_id).where(
            sessions.c.namespace == namespace, sessions.c.id == wanted.root
        )
    ).one_or_none()
    if top is None:
        return []
    if top.root_id is None:
        return [
            _Scope(sessions.c.id == wanted.root, single=True),
            _Scope(sessions.c.root_id == wanted.root),
        ]
    return [_Scope(sessions.c.id.in_(registry.subtree_query(namespace, wanted.root)))]


def _halves(wanted: SessionFilter) -> tuple[bool | None, ...]:
    """Whether to read the live ones, the ended, either apart, or both as one (``None``): the
    indices of trees and of children hold both."""
    if not wanted.include_ended:
        return (False,)
    return (None,) if wanted.root is not None or wanted.parent is not None else (False, True)


def _branch(namespace: str, wanted: SessionFilter, ended: bool | None) -> Select[Any]:
    place = tuple_(sessions.c.last_active, sessions.c.id)
    conditions = [sessions.c.namespace == namespace]
    if ended is not None:
        conditions.append(
            sessions.c.ended_at.is_not(None) if ended else sessions.c.ended_at.is_(None)
        )
    if wanted.channel is not None:
        conditions.append(sessions.c.channel == wanted.channel)
    if wanted.peer is not None:
        conditions.append(sessions.c.peer == wanted.peer)
    if wanted.parent is not None:
        conditions.append(sessions.c.parent_id == wanted.parent)
    if wanted.active_since is not None:
        conditions.append(sessions.c.last_active >= wanted.active_since)
    if wanted.after is not None:
        active, last_id = wanted.after
        conditions.append(
            place > tuple_(literal(active, sessions.c.last_active.type), literal(last_id, KeyText))
        )
    return (
        select(*registry.SUMMARY)
        .where(*conditions)
        .order_by(sessions.c.last_active, sessions.c.id)
        .limit(wanted.limit)
    )


def position_of(connection: Connection, namespace: str, session_id: str) -> tuple[datetime, str]:
    """Where a session stands in the order of ``page``. Raises ``UnknownSession``."""
    active = connection.execute(
        select(sessions.c.last_active).where(
            sessions.c.namespace == namespace, sessions.c.id == session_id
        )
    ).scalar_one_or_none()
    if active is None:
        raise UnknownSession(session_id)
    return active, session_id

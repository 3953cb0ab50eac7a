"""Pages of the registry, in the order of the sessions' last activity."""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Select,
    func,
    literal,
    literal_column,
    select,
    tuple_,
)

from sessionsdb.engine import functions
from sessionsdb.errors import UnknownSession
from sessionsdb.operations import registry
from sessionsdb.operations.session_rows import SUMMARY, summary_fields
from sessionsdb.schema import CHANNEL_PREFIX, PEER_PREFIX, KeyText, sessions
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


def list_page(
    connection: Connection, namespace: str, selection: SessionFilter
) -> list[SessionSummary]:
    """Return a page of sessions by ``last_active``, equal times by id, oldest or newest first.

    Each branch is read in that order from an index of its own, at most one page of it. The branches
    are merged here, so neither database sorts anything.
    """
    rows: dict[str, Row[*tuple[Any, ...]]] = {}
    for scope in _scopes(connection, namespace, selection):
        # A session that ends between the two reads is in both, never in neither.
        for ended in _branches(selection):
            statement = _branch(namespace, selection, ended).where(scope.condition)
            if scope.single:  # PostgreSQL would sort the one row
                statement = statement.order_by(None).limit(None)
            rows |= {row.id: row for row in connection.execute(statement)}
    ordered = sorted(
        rows.values(),
        key=lambda row: (row.last_active, row.id),
        reverse=selection.newest_first,
    )
    page = ordered[: selection.limit]
    if selection.details:
        return [registry.details_from(connection, namespace, row) for row in page]
    return [SessionSummary.from_fields(**summary_fields(row)) for row in page]


class _Scope(NamedTuple):
    """A part of the registry to read."""

    condition: ColumnElement[bool]
    single: bool = False


def _scopes(connection: Connection, namespace: str, selection: SessionFilter) -> list[_Scope]:
    """The whole registry, or a tree and its root."""
    if selection.root is None:
        return [_Scope(sessions.c.namespace == namespace)]
    top = connection.execute(
        select(sessions.c.root_id).where(
            sessions.c.namespace == namespace, sessions.c.id == selection.root
        )
    ).one_or_none()
    if top is None:
        return []
    if top.root_id is None:
        return [
            _Scope(sessions.c.id == selection.root, single=True),
            _Scope(sessions.c.root_id == selection.root),
        ]
    return [_Scope(sessions.c.id.in_(registry.subtree_query(namespace, selection.root)))]


def _branches(selection: SessionFilter) -> tuple[bool | None, ...]:
    """The branches to read: live sessions, ended sessions, or both at once (``None``).

    The indices of trees and of children hold both.
    """
    if not selection.include_ended:
        return (False,)
    return (None,) if selection.root is not None or selection.parent is not None else (False, True)


def _branch(namespace: str, selection: SessionFilter, ended: bool | None) -> Select[Any]:
    order = tuple_(sessions.c.last_active, sessions.c.id)
    conditions = [sessions.c.namespace == namespace]
    if ended is not None:
        conditions.append(
            sessions.c.ended_at.is_not(None) if ended else sessions.c.ended_at.is_(None)
        )
    if selection.channel is not None and selection.peer is not None and ended is not None:
        conditions += _of_contact(selection.channel, selection.peer)
    else:
        if selection.channel is not None:
            conditions.append(sessions.c.channel == selection.channel)
        if selection.peer is not None:
            conditions.append(sessions.c.peer == selection.peer)
    if selection.parent is not None:
        conditions.append(sessions.c.parent_id == selection.parent)
    if selection.active_since is not None:
        conditions.append(sessions.c.last_active >= selection.active_since)
    if selection.after is not None:
        active, last_id = selection.after
        place = tuple_(literal(active, sessions.c.last_active.type), literal(last_id, KeyText))
        conditions.append(order < place if selection.newest_first else order > place)
    columns: tuple[Any, ...] = (sessions.c.last_active, sessions.c.id)
    if selection.newest_first:
        columns = tuple(column.desc() for column in columns)
    selected = registry.SELECT_DETAILS if selection.details else select(*SUMMARY)
    return selected.where(*conditions).order_by(*columns).limit(selection.limit)


def _of_contact(channel: str, peer: str) -> list[ColumnElement[bool]]:
    """Return the conditions for a channel and peer, by which the index over both is found.

    The index holds the beginnings only, so the whole texts are compared too.
    """
    # Without coalesce SQLite would put the whole text in place of the column everywhere, also into
    # the expressions of the index. It would not find the index then.
    return [
        functions.start_of(sessions.c.channel, CHANNEL_PREFIX) == channel[:CHANNEL_PREFIX],
        functions.start_of(sessions.c.peer, PEER_PREFIX) == peer[:PEER_PREFIX],
        func.coalesce(sessions.c.channel, literal_column("''")) == channel,
        func.coalesce(sessions.c.peer, literal_column("''")) == peer,
    ]


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

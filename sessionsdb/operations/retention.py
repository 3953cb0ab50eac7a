"""Retention: find old rows, and delete them in small transactions.

Three things have an age: a finished message of an inbox, a session that has ended, and a message of
a transcript. A closed question goes with the finished messages, behind its answer. Unfinished
messages are never deleted. Each transaction also corrects the counters, so a purge can be stopped
at any point and run again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    delete,
    exists,
    select,
    true,
    tuple_,
)

from sessionsdb.engine import functions
from sessionsdb.engine.clock import as_stored
from sessionsdb.engine.statement import Statement
from sessionsdb.operations import old_rows, registry
from sessionsdb.operations.dialect import dialect_of
from sessionsdb.operations.inbox_types import UNFINISHED_SQL
from sessionsdb.operations.keys import SessionKey, chunks, ids_by_namespace
from sessionsdb.operations.row_locks import lock_mailboxes, lock_sessions
from sessionsdb.operations.tree import delete_session
from sessionsdb.schema import KeyText, inbox, messages, questions, sessions
from sessionsdb.types import Children


class RetentionRules(NamedTuple):
    """The rows to delete. ``None`` for a time: no rows of that kind."""

    finished_before: datetime | None = None
    """Inbox rows that were done or cancelled before this time."""
    ended_before: datetime | None = None
    """Sessions that ended before this time, with their transcripts and inboxes."""
    messages_before: datetime | None = None
    """Messages of transcripts that were written before this time."""
    namespace: str | None = None
    """One namespace. ``None``: all of the database."""
    channel: str | None = None
    dead: bool = False
    """Whether to delete dead letters too. They could still be requeued."""
    children: Children = "detach"


class RowCounts(NamedTuple):
    """Numbers of rows, deleted or to be deleted."""

    sessions: int = 0
    messages: int = 0
    inbox: int = 0

    def plus(self, other: RowCounts) -> RowCounts:
        return RowCounts(*(a + b for a, b in zip(self, other, strict=True)))

    @property
    def total(self) -> int:
        return sum(self)


# ---- finding -----------------------------------------------------------------------------------


def session_page(
    connection: Connection, rules: RetentionRules, after: SessionKey | None, limit: int
) -> list[SessionKey]:
    """Return the next ``limit`` sessions in scope that may have rows to delete, in key order."""
    # Most of a million sessions may have no messages: an hour, with a look at each page of them.
    may_have_old = sessions.c.message_count > 0 if rules.finished_before is None else true()
    return _keys(connection, rules, after, limit, may_have_old)


def ended_page(
    connection: Connection, rules: RetentionRules, after: SessionKey | None, limit: int
) -> list[SessionKey]:
    """Return the next ``limit`` ended sessions that are old, in key order."""
    return _keys(connection, rules, after, limit, sessions.c.ended_at < rules.ended_before)


def _keys(
    connection: Connection,
    rules: RetentionRules,
    after: SessionKey | None,
    limit: int,
    condition: Any,
) -> list[SessionKey]:
    key = tuple_(sessions.c.namespace, sessions.c.id)
    statement = (
        select(sessions.c.namespace, sessions.c.id)
        .where(condition, *_scope(rules))
        .order_by(sessions.c.namespace, sessions.c.id)
        .limit(limit)
    )
    if after is not None:
        statement = statement.where(key > tuple_(*after, types=[KeyText, KeyText]))
    return [(row.namespace, row.id) for row in connection.execute(statement)]


def _scope(rules: RetentionRules) -> list[ColumnElement[bool]]:
    scope: list[ColumnElement[bool]] = []
    if rules.namespace is not None:
        scope.append(sessions.c.namespace == rules.namespace)
    if rules.channel is not None:
        scope.append(sessions.c.channel == rules.channel)
    return scope


def expired_subtree(
    connection: Connection, rules: RetentionRules, key: SessionKey
) -> list[SessionKey]:
    """Return the sessions to delete together with this one, or none if it is kept.

    Where children are detached, the session is deleted alone. Otherwise its whole subtree is
    deleted, once each session of it is old and has nothing unfinished: a purge never deletes a live
    session. With ``refuse`` the sessions of the subtree must be in scope too.
    """
    namespace, session_id = key
    ids = [session_id]
    if rules.children != "detach":
        ids = registry.subtree(connection, namespace, session_id)
    if rules.ended_before is None:
        return []
    is_scoped = rules.children != "cascade"
    if is_scoped and rules.namespace not in (None, namespace):
        return []
    dialect = dialect_of(connection)
    channel = rules.channel if is_scoped else None
    [[expired]] = _count_expired(dialect.in_ids, of_channel=channel is not None).rows(
        connection,
        {
            "namespace": namespace,
            "ended_before": as_stored(connection, rules.ended_before),
            "channel": channel,
            **dialect.ids_values(ids),
        },
    )
    return [(namespace, id) for id in ids] if expired == len(ids) else []


@cache
def _count_expired(in_ids: str, *, of_channel: bool) -> Statement:
    return Statement(f"""
SELECT pg_catalog.count(*) FROM sessions AS s
WHERE s.namespace = :namespace AND s.id {in_ids} AND s.ended_at < :ended_before
  {"AND s.channel = :channel" if of_channel else ""}
  AND NOT EXISTS (
      SELECT 1 FROM inbox AS i
      WHERE i.namespace = s.namespace AND i.session_id = s.id AND i.status IN {UNFINISHED_SQL}
  )
""")


def _is_old_message(before: datetime) -> ColumnElement[bool]:
    return messages.c.created_at < before


def _is_old_receipt(rules: RetentionRules) -> ColumnElement[bool]:
    statuses = ["done", "cancelled"] + (["dead"] if rules.dead else [])
    return and_(inbox.c.status.in_(statuses), inbox.c.finished_at < rules.finished_before)


def _is_old_question(before: datetime) -> ColumnElement[bool]:
    """A closed question whose answer is still in the inbox stays with the answer."""
    answer = exists().where(
        inbox.c.namespace == questions.c.namespace,
        inbox.c.session_id == questions.c.session_id,
        inbox.c.position == questions.c.answer_position,
    )
    return and_(questions.c.closed_at < before, ~answer)


# ---- counting -----------------------------------------------------------------------------------


def count_subtree(connection: Connection, page: Sequence[SessionKey]) -> RowCounts:
    """Count the rows of these sessions, and the sessions themselves."""
    return RowCounts(
        len(page),
        _count(connection, messages, page, true()),
        _count(connection, inbox, page, true()),
    )


def count_old(
    connection: Connection, rules: RetentionRules, page: Sequence[SessionKey]
) -> RowCounts:
    """Count the old messages and inbox rows of these sessions."""
    counts = RowCounts()
    if rules.messages_before is not None:
        condition = _is_old_message(rules.messages_before)
        counts = counts._replace(messages=_count(connection, messages, page, condition))
    if rules.finished_before is not None:
        counts = counts._replace(inbox=_count(connection, inbox, page, _is_old_receipt(rules)))
    return counts


def sessions_with_old(
    connection: Connection, rules: RetentionRules, page: Sequence[SessionKey]
) -> dict[SessionKey, int]:
    """Return the sessions of the page that have rows for ``delete_old``, in the order of the page.

    The value is the number of their old messages, inbox rows and closed questions.
    """
    conditions: list[tuple[Any, ColumnElement[bool]]] = []
    if rules.messages_before is not None:
        conditions.append((messages, _is_old_message(rules.messages_before)))
    if rules.finished_before is not None:
        conditions.append((inbox, _is_old_receipt(rules)))
        conditions.append((questions, _is_old_question(rules.finished_before)))
    found: Counter[SessionKey] = Counter()
    for table, condition in conditions:
        for chunk in chunks(page):
            columns = (table.c.namespace, table.c.session_id)
            statement = (
                select(*columns, functions.count())
                .where(tuple_(*columns).in_(chunk), condition)
                .group_by(*columns)
            )
            for namespace, session_id, count in connection.execute(statement):
                found[namespace, session_id] += count
    return {key: found[key] for key in page if key in found}


def _count(connection: Connection, table: Any, page: Sequence[SessionKey], condition: Any) -> int:
    count = 0
    for chunk in chunks(page):
        key = tuple_(table.c.namespace, table.c.session_id)
        statement = select(functions.count()).select_from(table).where(key.in_(chunk), condition)
        count += connection.execute(statement).scalar_one()
    return count


# ---- deleting ----------------------------------------------------------------------------------


def delete_old(
    connection: Connection, rules: RetentionRules, page: Sequence[SessionKey], limit: int
) -> tuple[RowCounts, list[SessionKey]]:
    """Delete old rows of these sessions.

    Of one session at most ``limit`` rows are deleted. Several sessions must have at most ``limit``
    old rows together. Return the numbers of deleted rows, and the sessions that may have more.
    """
    if rules.dead:  # so that no dead letter is requeued while it is deleted
        lock_mailboxes(connection, page)
    if rules.messages_before is not None:
        lock_sessions(connection, page)
    deleted = RowCounts()
    for namespace, ids in ids_by_namespace(page).items():
        if rules.messages_before is not None:
            count = old_rows.delete_messages(
                connection, namespace, ids, rules.messages_before, limit - deleted.total
            )
            deleted = deleted.plus(RowCounts(messages=count))
        if rules.finished_before is not None:
            count = old_rows.delete_receipts(
                connection,
                namespace,
                ids,
                rules.finished_before,
                limit - deleted.total,
                dead=rules.dead,
            )
            deleted = deleted.plus(RowCounts(inbox=count))
    if deleted.total >= limit:
        return deleted, list(page)
    _delete_questions(connection, rules, page)
    return deleted, []


def _delete_questions(
    connection: Connection, rules: RetentionRules, page: Sequence[SessionKey]
) -> None:
    """Delete the old closed questions of these sessions."""
    if rules.finished_before is None:
        return
    for chunk in chunks(page):
        key = tuple_(questions.c.namespace, questions.c.session_id)
        connection.execute(
            delete(questions).where(key.in_(chunk), _is_old_question(rules.finished_before))
        )


def delete_ended(
    connection: Connection, rules: RetentionRules, page: Sequence[SessionKey], limit: int
) -> tuple[RowCounts, list[SessionKey], int]:
    """Delete these sessions with all their rows, about ``limit`` rows at once.

    Return the numbers of deleted rows, the sessions that are left for the next transaction, and how
    many of the page are kept.
    """
    keys = [
        (namespace, id)
        for namespace, session_id in page
        for id in registry.subtree(connection, namespace, session_id)
    ]
    lock_mailboxes(connection, keys)
    lock_sessions(connection, keys)
    deleted, kept = RowCounts(), 0
    for index, key in enumerate(page):
        subtree = expired_subtree(connection, rules, key)
        if not subtree:
            kept += registry.exists(connection, *key)  # otherwise it was deleted with another one
            continue
        for member in subtree:
            count = old_rows.delete_messages(connection, *_one(member), None, limit - deleted.total)
            deleted = deleted.plus(RowCounts(messages=count))
            count = old_rows.delete_receipts(connection, *_one(member), None, limit - deleted.total)
            deleted = deleted.plus(RowCounts(inbox=count))
            if deleted.total >= limit:
                return deleted, list(page[index:]), kept
        children: Children = "detach" if rules.children == "detach" else "cascade"
        delete_session(connection, *key, children)
        deleted = deleted.plus(RowCounts(sessions=len(subtree)))
    return deleted, [], kept


def _one(key: SessionKey) -> tuple[str, list[str]]:
    return key[0], [key[1]]

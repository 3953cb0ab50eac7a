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
    update,
)

from sessionsdb.engine import functions
from sessionsdb.operations import registry, search_index
from sessionsdb.operations.inbox_types import UNFINISHED
from sessionsdb.operations.keys import SessionKey, chunks
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
    """Return the next ``limit`` sessions in scope, in key order."""
    return _keys(connection, rules, after, limit, true())


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
    conditions = [sessions.c.ended_at < rules.ended_before, ~_has_unfinished()]
    if rules.children != "cascade":
        conditions += _scope(rules)
    for chunk in chunks(ids):
        expired = connection.execute(
            select(functions.count())
            .select_from(sessions)
            .where(sessions.c.namespace == namespace, sessions.c.id.in_(chunk), *conditions)
        ).scalar_one()
        if expired < len(chunk):
            return []
    return [(namespace, id) for id in ids]


def _has_unfinished() -> ColumnElement[bool]:
    return exists().where(
        inbox.c.namespace == sessions.c.namespace,
        inbox.c.session_id == sessions.c.id,
        inbox.c.status.in_(UNFINISHED),
    )


def _is_old_message(before: datetime | None) -> ColumnElement[bool]:
    return true() if before is None else messages.c.created_at < before


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
    """Delete at most ``limit`` old rows of these sessions.

    Return the numbers of deleted rows, and the sessions that may have more.
    """
    if rules.dead:  # so that no dead letter is requeued while it is deleted
        lock_mailboxes(connection, page)
    if rules.messages_before is not None:
        lock_sessions(connection, page)
    deleted = RowCounts()
    for index, key in enumerate(page):
        left = limit - deleted.total
        if rules.messages_before is not None:
            count = _delete_messages(connection, key, rules.messages_before, left)
            deleted = deleted.plus(RowCounts(messages=count))
        left = limit - deleted.total
        if rules.finished_before is not None and left > 0:
            count = _delete_receipts(connection, key, _is_old_receipt(rules), left)
            deleted = deleted.plus(RowCounts(inbox=count))
        if deleted.total >= limit:
            _delete_questions(connection, rules, page[:index])
            return deleted, list(page[index:])
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
            deleted = deleted.plus(
                RowCounts(
                    messages=_delete_messages(connection, member, None, limit - deleted.total)
                )
            )
            deleted = deleted.plus(
                RowCounts(inbox=_delete_receipts(connection, member, true(), limit - deleted.total))
            )
            if deleted.total >= limit:
                return deleted, list(page[index:]), kept
        children: Children = "detach" if rules.children == "detach" else "cascade"
        delete_session(connection, *key, children)
        deleted = deleted.plus(RowCounts(sessions=len(subtree)))
    return deleted, [], kept


def _delete_messages(
    connection: Connection, key: SessionKey, before: datetime | None, limit: int
) -> int:
    """The session is locked. Its times stay: a purge is no activity."""
    if limit <= 0:
        return 0
    of_session = and_(messages.c.namespace == key[0], messages.c.session_id == key[1])
    old = (
        select(messages.c.seq)
        .where(of_session, _is_old_message(before))
        .order_by(messages.c.seq)
        .limit(limit)
    )
    search_index.forget_messages(connection, key, old)
    count = connection.execute(delete(messages).where(of_session, messages.c.seq.in_(old))).rowcount
    if count:
        search_index.move_mark(connection, key, count)
        connection.execute(
            update(sessions)
            .where(sessions.c.namespace == key[0], sessions.c.id == key[1])
            .values(message_count=sessions.c.message_count - count, version=sessions.c.version + 1)
        )
    return count


def _delete_receipts(
    connection: Connection, key: SessionKey, condition: ColumnElement[bool], limit: int
) -> int:
    if limit <= 0:
        return 0
    of_session = and_(inbox.c.namespace == key[0], inbox.c.session_id == key[1])
    finished = inbox.c.status.not_in(UNFINISHED)
    old = (
        select(inbox.c.position)
        .where(of_session, finished, condition)
        .order_by(inbox.c.position)
        .limit(limit)
    )
    statement = delete(inbox).where(of_session, finished, inbox.c.position.in_(old))
    return connection.execute(statement).rowcount

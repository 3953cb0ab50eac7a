"""Retention: what is old enough to go, and its going in small transactions.

Three things have an age: a finished message of an inbox, a session that has ended, a message of a
transcript. What is unfinished is never among them. Whatever goes, the counters go with it, so a
purge can be broken off anywhere and run again.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    delete,
    exists,
    func,
    or_,
    select,
    true,
    tuple_,
    update,
)

from sessionsdb.operations import registry
from sessionsdb.operations.mailbox import UNFINISHED
from sessionsdb.operations.row_locks import SessionKey, lock_mailboxes, lock_sessions
from sessionsdb.operations.tree import delete_session as remove_session
from sessionsdb.schema import inbox, messages, sessions
from sessionsdb.types import Children


class RetentionRules(NamedTuple):
    """What is to go. ``None`` for a time: nothing of that sort."""

    finished_before: datetime | None = None
    """Inbox rows that were done or cancelled before."""
    ended_before: datetime | None = None
    """Sessions that ended before, with all they have."""
    messages_before: datetime | None = None
    """Messages of transcripts that were written before."""
    namespace: str | None = None
    """One namespace, or all of the database."""
    channel: str | None = None
    dead: bool = False
    """Dead letters too; else they stay, for they can be requeued."""
    children: Children = "detach"


class RowCounts(NamedTuple):
    """How much went, or would."""

    sessions: int = 0
    messages: int = 0
    inbox: int = 0

    def plus(self, other: RowCounts) -> RowCounts:
        return RowCounts(*(a + b for a, b in zip(self, other, strict=True)))

    @property
    def total(self) -> int:
        return sum(self)


# ---- which --------------------------------------------------------------------------------------


def session_page(
    connection: Connection, rules: RetentionRules, after: SessionKey | None, most: int
) -> list[SessionKey]:
    """The next sessions in scope, in key order."""
    return _keys(connection, rules, after, most, true())


def ended_page(
    connection: Connection, rules: RetentionRules, after: SessionKey | None, most: int
) -> list[SessionKey]:
    """The next sessions in scope that ended before, in key order."""
    return _keys(connection, rules, after, most, sessions.c.ended_at < rules.ended_before)


def _keys(
    connection: Connection,
    rules: RetentionRules,
    after: SessionKey | None,
    most: int,
    condition: Any,
) -> list[SessionKey]:
    place = tuple_(sessions.c.namespace, sessions.c.id)
    statement = (
        select(sessions.c.namespace, sessions.c.id)
        .where(condition, *_scope(rules))
        .order_by(sessions.c.namespace, sessions.c.id)
        .limit(most)
    )
    if after is not None:
        statement = statement.where(place > tuple_(*after))
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
    """The sessions that go when this one does, itself among them; none if it is kept.

    It goes alone where children are detached. Else it goes with all below it, once each of them
    has ended before, too: no purge takes a session that lives. With ``refuse`` they must be in
    scope themselves.
    """
    namespace, session_id = key
    family = [session_id]
    if rules.children != "detach":
        family = registry.subtree(connection, namespace, session_id)
    conditions = [sessions.c.ended_at < rules.ended_before, ~_has_unfinished()]
    if rules.children != "cascade":
        conditions += _scope(rules)
    for chunk in _chunks(family):
        going = connection.execute(
            select(func.count())
            .select_from(sessions)
            .where(sessions.c.namespace == namespace, sessions.c.id.in_(chunk), *conditions)
        ).scalar_one()
        if going < len(chunk):
            return []
    return [(namespace, member) for member in family]


def _has_unfinished() -> ColumnElement[bool]:
    return exists().where(
        inbox.c.namespace == sessions.c.namespace,
        inbox.c.session_id == sessions.c.id,
        inbox.c.status.in_(UNFINISHED),
    )


def _is_old_message(before: datetime | None) -> ColumnElement[bool]:
    return true() if before is None else messages.c.created_at < before


def _is_old_receipt(rules: RetentionRules) -> ColumnElement[bool]:
    """Finished before. But a row that says which session sent a message stays as long as the
    message is in the transcript: without it an agent's words would pass for a user's."""
    statuses = ["done", "cancelled"] + (["dead"] if rules.dead else [])
    in_transcript = exists().where(
        messages.c.namespace == inbox.c.namespace,
        messages.c.session_id == inbox.c.session_id,
        messages.c.seq.between(inbox.c.first_seq, inbox.c.last_seq),
        ~_is_old_message(rules.messages_before) if rules.messages_before else true(),
    )
    return and_(
        inbox.c.status.in_(statuses),
        inbox.c.finished_at < rules.finished_before,
        or_(inbox.c.sender.is_(None), ~in_transcript),
    )


# ---- how much -----------------------------------------------------------------------------------


def count_subtree(connection: Connection, family: Sequence[SessionKey]) -> RowCounts:
    """What these sessions have, themselves included."""
    return RowCounts(
        len(family),
        _count(connection, messages, family, true()),
        _count(connection, inbox, family, true()),
    )


def count_old(
    connection: Connection, rules: RetentionRules, page: Sequence[SessionKey]
) -> RowCounts:
    """What of these sessions is old, but for the sessions themselves."""
    found = RowCounts()
    if rules.messages_before is not None:
        condition = _is_old_message(rules.messages_before)
        found = found._replace(messages=_count(connection, messages, page, condition))
    if rules.finished_before is not None:
        found = found._replace(inbox=_count(connection, inbox, page, _is_old_receipt(rules)))
    return found


def _count(connection: Connection, table: Any, page: Sequence[SessionKey], condition: Any) -> int:
    found = 0
    for chunk in _chunks(page):
        place = tuple_(table.c.namespace, table.c.session_id)
        statement = select(func.count()).select_from(table).where(place.in_(chunk), condition)
        found += connection.execute(statement).scalar_one()
    return found


# ---- going --------------------------------------------------------------------------------------


def delete_old(
    connection: Connection, rules: RetentionRules, page: Sequence[SessionKey], most: int
) -> tuple[RowCounts, list[SessionKey]]:
    """Delete at most ``most`` old rows of these sessions; what went, and the sessions that may
    have more."""
    if rules.dead:  # a requeue of one must not meet its deletion
        lock_mailboxes(connection, page)
    if rules.messages_before is not None:
        lock_sessions(connection, page)
    gone = RowCounts()
    for place, key in enumerate(page):
        left = most - gone.total
        if rules.messages_before is not None:
            count = _delete_messages(connection, key, rules.messages_before, left)
            gone = gone.plus(RowCounts(messages=count))
        left = most - gone.total
        if rules.finished_before is not None and left > 0:
            count = _delete_receipts(connection, key, _is_old_receipt(rules), left)
            gone = gone.plus(RowCounts(inbox=count))
        if gone.total >= most:
            return gone, list(page[place:])
    return gone, []


def delete_ended(
    connection: Connection, rules: RetentionRules, page: Sequence[SessionKey], most: int
) -> tuple[RowCounts, list[SessionKey], int]:
    """Delete these sessions and what goes with them, about ``most`` rows of it; what went, the
    sessions that are still to go, and how many of the page are kept."""
    families = [
        (namespace, member)
        for namespace, session_id in page
        for member in registry.subtree(connection, namespace, session_id)
    ]
    lock_mailboxes(connection, families)
    lock_sessions(connection, families)
    gone, kept = RowCounts(), 0
    for place, key in enumerate(page):
        family = expired_subtree(connection, rules, key)
        if not family:
            kept += registry.exists(connection, *key)  # else it went with another one
            continue
        for member in family:
            gone = gone.plus(
                RowCounts(messages=_delete_messages(connection, member, None, most - gone.total))
            )
            gone = gone.plus(
                RowCounts(inbox=_delete_receipts(connection, member, true(), most - gone.total))
            )
            if gone.total >= most:
                return gone, list(page[place:]), kept
        children: Children = "detach" if rules.children == "detach" else "cascade"
        remove_session(connection, *key, children)
        gone = gone.plus(RowCounts(sessions=len(family)))
    return gone, [], kept


def _delete_messages(
    connection: Connection, key: SessionKey, before: datetime | None, most: int
) -> int:
    """Of a session that is held. Its times stay: a purge is no activity."""
    if most <= 0:
        return 0
    ours = and_(messages.c.namespace == key[0], messages.c.session_id == key[1])
    going = (
        select(messages.c.seq)
        .where(ours, _is_old_message(before))
        .order_by(messages.c.seq)
        .limit(most)
    )
    count = connection.execute(delete(messages).where(ours, messages.c.seq.in_(going))).rowcount
    if count:
        connection.execute(
            update(sessions)
            .where(sessions.c.namespace == key[0], sessions.c.id == key[1])
            .values(message_count=sessions.c.message_count - count, version=sessions.c.version + 1)
        )
    return count


def _delete_receipts(
    connection: Connection, key: SessionKey, condition: ColumnElement[bool], most: int
) -> int:
    if most <= 0:
        return 0
    ours = and_(inbox.c.namespace == key[0], inbox.c.session_id == key[1])
    finished = inbox.c.status.not_in(UNFINISHED)
    going = (
        select(inbox.c.position)
        .where(ours, finished, condition)
        .order_by(inbox.c.position)
        .limit(most)
    )
    statement = delete(inbox).where(ours, finished, inbox.c.position.in_(going))
    return connection.execute(statement).rowcount


def _chunks(page: Collection[Any], size: int = 400) -> list[list[Any]]:
    # Databases limit the parameters of a statement.
    items = list(page)
    return [items[start : start + size] for start in range(0, len(items), size)]

"""Schedules: messages that workers send later. ``firing.py`` sends them.

Each change of a schedule is made while the mailbox of its session is locked. So a schedule is not
replaced, removed or fired twice at once, and none enters a session that ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import cache
from typing import Any, NamedTuple
from uuid import uuid4

from sqlalchemy import Connection, Row, delete, insert, select, update

from sessionsdb.cron import Cron
from sessionsdb.engine import clock, functions
from sessionsdb.engine.statement import Statement
from sessionsdb.errors import InvalidArgument, SessionEnded, UnknownSession
from sessionsdb.messages.codec import StoredMessage, decode, from_inbox, inbox_payload
from sessionsdb.messages.extra import decode_extra
from sessionsdb.operations import registry
from sessionsdb.operations.chains import chain_of
from sessionsdb.operations.dialect import dialect_of
from sessionsdb.operations.inbox_types import Chain, Send
from sessionsdb.operations.row_conditions import is_mailbox
from sessionsdb.operations.row_locks import lock_mailboxes
from sessionsdb.schema import mailboxes, schedules
from sessionsdb.types import CatchUp, Limits, Schedule, SessionId


class NewSchedule(NamedTuple):
    """A message to send later. Exactly one of ``at`` and ``cron`` is given."""

    namespace: str
    session_id: str
    id: str
    message: StoredMessage
    at: datetime | None
    cron: Cron | None
    tz: str
    name: str | None
    extra: str | None
    """Author and metadata: see ``messages/extra.py``."""
    sender: str | None
    """The session whose agent schedules the message."""
    catch_up: CatchUp

    @property
    def times(self) -> dict[str, Any]:
        """Return the columns on which the next due time depends."""
        cron = None if self.cron is None else self.cron.expression
        return {"at": self.at, "cron": cron, "tz": self.tz}

    @property
    def columns(self) -> dict[str, Any]:
        """Return the columns that a schedule of the same name takes over."""
        return {
            "content": self.message.content,
            "payload": inbox_payload(self.message),
            "extra": self.extra,
            "sender": self.sender,
            "catch_up": self.catch_up,
            **self.times,
        }

    @property
    def request(self) -> Send:
        """Return the send that it would be now."""
        return Send(
            self.namespace,
            self.session_id,
            self.message,
            fingerprint=self.id,
            sender=self.sender,
            extra=self.extra,
        )

    def first_due(self, present: datetime) -> datetime:
        if self.cron is not None:
            return self.cron.next_after(present)
        assert self.at is not None
        return self.at


def new_schedule_id() -> str:
    return f"schedule-{uuid4()}"


def put(connection: Connection, new: NewSchedule, limits: Limits) -> Schedule:
    """Store a schedule, and return it.

    A schedule of the session that has the name already takes over what is new. It keeps its id, and
    its next due time unless the times are new. Raises ``UnknownSession``, ``SessionEnded``, and
    ``InvalidArgument`` for one schedule too many. For a sender ``UnknownSession`` and
    ``HopLimitReached``.
    """
    key = (new.namespace, new.session_id)
    lock_mailboxes(connection, [key])
    closed = connection.execute(select(mailboxes.c.closed).where(*is_mailbox(key))).scalar()
    if closed is None:
        raise UnknownSession(new.session_id)
    if closed:
        raise SessionEnded(new.session_id)
    chain = _chain(connection, new, limits)
    named = None if new.name is None else _find_named(connection, new, new.name)
    if named is None:
        _check_limit(connection, new, limits)
        id = new.id
        _insert(connection, new, chain)
    else:
        id = named.id
        _replace(connection, new, named, chain)
    return schedule_from(connection.execute(_of_id(new.namespace, id)).one())


def _chain(connection: Connection, new: NewSchedule, limits: Limits) -> Chain:
    """Return the place of the message in a chain, as of the turn that schedules it.

    Otherwise two agents could send messages to each other without end.
    """
    chain = chain_of(connection, new.request)
    if chain is None:
        raise UnknownSession(str(new.sender), is_sender=True)
    if chain.hops > limits.hops:
        raise new.request.too_far(limits, chain.origin)
    return chain


def _find_named(
    connection: Connection, new: NewSchedule, name: str
) -> Row[*tuple[Any, ...]] | None:
    return connection.execute(
        select(schedules).where(
            schedules.c.namespace == new.namespace,
            schedules.c.session_id == new.session_id,
            schedules.c.name == name,
        )
    ).one_or_none()


def _check_limit(connection: Connection, new: NewSchedule, limits: Limits) -> None:
    count = connection.execute(
        select(functions.count())
        .select_from(schedules)
        .where(schedules.c.namespace == new.namespace, schedules.c.session_id == new.session_id)
    ).scalar_one()
    if count >= limits.schedules:
        raise InvalidArgument(
            f"session {new.session_id} has {count} schedules, the limit is {limits.schedules}; "
            "remove one with unschedule, or raise Limits.schedules"
        )


def _insert(connection: Connection, new: NewSchedule, chain: Chain) -> None:
    present = clock.read_now(connection)
    due_at = new.first_due(present)
    connection.execute(
        insert(schedules).values(
            namespace=new.namespace,
            session_id=new.session_id,
            id=new.id,
            name=new.name,
            created_at=present,
            due_at=due_at,
            try_at=due_at,
            hops=chain.hops,
            origin=chain.origin,
            **new.columns,
        )
    )


def _replace(
    connection: Connection, new: NewSchedule, old: Row[*tuple[Any, ...]], chain: Chain
) -> None:
    changes = {name: value for name, value in new.columns.items() if old._mapping[name] != value}
    if not changes:
        return
    if changes.keys() & new.times.keys():
        due_at = new.first_due(clock.read_now(connection))
        changes |= {"due_at": due_at, "try_at": due_at, "refused_at": None}
    connection.execute(
        update(schedules)
        .where(schedules.c.namespace == new.namespace, schedules.c.id == old.id)
        .values(hops=chain.hops, origin=chain.origin, **changes)
    )


def _of_id(namespace: str, id: str) -> Any:
    return select(schedules).where(schedules.c.namespace == namespace, schedules.c.id == id)


def read(connection: Connection, namespace: str, session_id: str | None) -> list[Schedule]:
    """Return the schedules of a session or of the namespace, the next due one first.

    Raises ``UnknownSession``.
    """
    if session_id is not None:
        registry.require(connection, namespace, session_id)
    found = select(schedules).where(schedules.c.namespace == namespace)
    if session_id is not None:
        found = found.where(schedules.c.session_id == session_id)
    rows = connection.execute(found.order_by(schedules.c.due_at, schedules.c.id))
    return [schedule_from(row) for row in rows]


def remove(connection: Connection, namespace: str, id: str) -> bool:
    """Delete a schedule. Return false if there is none with this id."""
    session_id = connection.execute(
        select(schedules.c.session_id).where(
            schedules.c.namespace == namespace, schedules.c.id == id
        )
    ).scalar()
    if session_id is None:
        return False
    lock_mailboxes(connection, [(namespace, session_id)])
    gone = connection.execute(
        delete(schedules).where(schedules.c.namespace == namespace, schedules.c.id == id)
    )
    return gone.rowcount > 0


@cache
def _remove_of_sessions(in_ids: str) -> Statement:
    return Statement(f"DELETE FROM schedules WHERE namespace = :namespace AND session_id {in_ids}")


def remove_of_sessions(connection: Connection, namespace: str, ids: Sequence[str]) -> None:
    """Delete the schedules of sessions that end. Their mailboxes are locked."""
    dialect = dialect_of(connection)
    _remove_of_sessions(dialect.in_ids).rows(
        connection, {"namespace": namespace, **dialect.ids_values(ids)}
    )


def schedule_from(row: Row[*tuple[Any, ...]]) -> Schedule:
    role = from_inbox(row.content, row.payload).role
    extra = decode_extra(row.extra)
    return Schedule.from_fields(
        id=row.id,
        session_id=SessionId(row.session_id),
        message=decode(role, row.content, row.payload),
        at=row.at,
        cron=row.cron,
        tz=row.tz,
        name=row.name,
        sender=None if row.sender is None else SessionId(row.sender),
        author=extra.author,
        metadata=extra.metadata,
        catch_up=row.catch_up,
        created_at=row.created_at,
        due_at=row.due_at,
        refused_at=row.refused_at,
        last_fired_at=row.last_fired_at,
    )

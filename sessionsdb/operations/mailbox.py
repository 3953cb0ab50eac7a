"""The mailbox: the state machine of a session's inbox, top to bottom.

A mailbox is one narrow row a session. Its messages stand in ``inbox``; those of ``head … tail``
are unfinished, and so are requeued ones before ``head``. The row is in one of five states:

=========  ========  =======  =====  ======  =====================================================
state      ready_at  wake_at  owner  closed  meaning
=========  ========  =======  =====  ======  =====================================================
idle       –         –        –      no      nothing waits
ready      set       –        –      no      a message waits for a worker
leased     –         –        set    no      a worker runs a turn, until ``lease_until``
waiting    –         set      –      no      the head message failed and is tried again later
closed     –         –        –      yes     the session has ended; nothing waits, nothing enters
=========  ========  =======  =====  ======  =====================================================

==========  ==================  =================  ================================================
transition  from                to                 what happens to messages
==========  ==================  =================  ================================================
send        idle                ready              a new one is ``pending`` behind ``tail``
send        ready, leased,      the same           the same
            waiting
claim       ready               leased, epoch + 1  those at the head are ``running``, attempt + 1
heartbeat   leased              leased             –
commit      leased              ready or idle      ``done``, and in the transcript
fail        leased              waiting            ``pending`` again, with the error
fail        leased              ready or idle      ``dead``, after the last attempt
release     leased              ready              ``pending`` again, the attempt not counted
reap        leased, expired     ready or idle      ``pending`` again, or ``dead`` after the last
wake        waiting, due        ready              –
requeue     idle                ready              a ``dead`` one is ``pending`` again, attempts 0
requeue     ready, leased,      the same           the same
            waiting
end         any                 closed, epoch + 1  all unfinished are ``cancelled``
==========  ==================  =================  ================================================

``commit``, ``fail``, ``release`` and ``heartbeat`` name the worker and the epoch they were given:
that is the fence. Whoever lost the lease finds no row, and changes nothing.

``claim``, ``commit``, ``heartbeat`` and ``send`` are hot and have a form for each database, in
``mailbox_postgresql`` and ``mailbox_sqlite``. The others are the same statements on both.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, Protocol

from sqlalchemy import (
    BigInteger,
    Connection,
    Integer,
    Text,
    and_,
    bindparam,
    case,
    exists,
    func,
    or_,
    select,
    true,
    tuple_,
    update,
)

from sessionsdb.engine import clock
from sessionsdb.engine.clock import now
from sessionsdb.errors import (
    InvalidArgument,
    LeaseLost,
    SessionEnded,
    SessionsDBError,
    UnknownReceipt,
    UnknownSession,
)
from sessionsdb.operations import registry
from sessionsdb.operations import tree as families
from sessionsdb.operations.inbox_types import Commit, Due, Fail, Lease, Send
from sessionsdb.operations.postgresql import mailbox as postgresql
from sessionsdb.operations.row_locks import SessionKey, lock_mailboxes, lock_sessions
from sessionsdb.operations.sqlite import mailbox as sqlite
from sessionsdb.schema import UTCDateTime, inbox, mailboxes, sessions
from sessionsdb.types import Limits, Receipt

UNFINISHED = ("pending", "running")

EVERYWHERE = None
"""In place of a list of namespaces: all of the database."""


class _Hot(Protocol):
    """The hot transitions, as ``mailbox_postgresql`` and ``mailbox_sqlite`` have them."""

    def send(
        self, connection: Connection, requests: Sequence[Send], limits: Limits
    ) -> list[Receipt | SessionsDBError]: ...

    def claim(
        self,
        connection: Connection,
        worker: str,
        namespaces: Collection[str] | None,
        slots: int,
        batch: int,
        lease_seconds: float,
    ) -> list[Lease]: ...

    def heartbeat(
        self,
        connection: Connection,
        worker: str,
        held: Sequence[tuple[SessionKey, int]],
        lease_seconds: float,
    ) -> set[SessionKey]: ...

    def commit(
        self, connection: Connection, worker: str, turns: Sequence[Commit]
    ) -> list[bool]: ...


def _hot(connection: Connection) -> _Hot:
    """The form for this database."""
    return postgresql if connection.dialect.name == "postgresql" else sqlite


# ---- send --------------------------------------------------------------------------------------


def send(
    connection: Connection, requests: Sequence[Send], limits: Limits
) -> list[Receipt | SessionsDBError]:
    """Queue each message; its receipt, or ``UnknownSession``, ``SessionEnded``, ``InboxFull``,
    ``HopLimitReached`` or ``IdempotencyConflict``. Order within a session is that of the list.
    A request that repeats another's key shares its fate; see ``apart``."""
    firsts, repeats = _distinct(requests)
    if not repeats:
        return _hot(connection).send(connection, requests, limits)
    distinct = [requests[place] for place in firsts]
    found = _hot(connection).send(connection, distinct, limits)
    answers = dict(zip(firsts, found, strict=True))
    for place, first in repeats.items():
        answers[place] = _repeated(requests[place], requests[first], answers[first])
    return [answers[place] for place in range(len(requests))]


def split_conflicting_keys(requests: Sequence[Send]) -> tuple[list[int], list[int]]:
    """The places of what may be sent as one list, and of what must come after it: other arguments
    under the key of an earlier request. What refuses the one (a chain of sends too long) may be no
    reason to refuse the other."""
    together: list[int] = []
    later: list[int] = []
    keys: dict[tuple[str, str, str], str] = {}
    for place, request in enumerate(requests):
        if request.idempotency_key is not None:
            key = (request.namespace, request.session_id, request.idempotency_key)
            if keys.setdefault(key, request.fingerprint) != request.fingerprint:
                later.append(place)
                continue
        together.append(place)
    return together, later


def _distinct(requests: Sequence[Send]) -> tuple[list[int], dict[int, int]]:
    """The places of the requests to make, and for each that repeats another's key, that other."""
    firsts: list[int] = []
    repeats: dict[int, int] = {}
    keys: dict[tuple[str, str, str], int] = {}
    for place, request in enumerate(requests):
        if request.idempotency_key is not None:
            key = (request.namespace, request.session_id, request.idempotency_key)
            if (first := keys.setdefault(key, place)) != place:
                repeats[place] = first
                continue
        firsts.append(place)
    return firsts, repeats


def _repeated(
    request: Send, first: Send, answer: Receipt | SessionsDBError
) -> Receipt | SessionsDBError:
    if isinstance(answer, SessionsDBError):
        return answer
    return request.known(answer.position, same=request.fingerprint == first.fingerprint)


def find_sent(connection: Connection, request: Send) -> Receipt | None:
    """The receipt of a send whose answer was lost with the connection, if it was committed.

    It carries its fingerprint, and is looked for backwards from the inbox's end.
    """
    recent = (
        select(inbox.c.position, inbox.c.fingerprint)
        .where(inbox.c.namespace == request.namespace, inbox.c.session_id == request.session_id)
        .order_by(inbox.c.position.desc())
        .limit(10_000)
        .subquery()
    )
    position = connection.execute(
        select(recent.c.position).where(recent.c.fingerprint == request.fingerprint)
    ).scalar()
    return None if position is None else request.accepted(position)


# ---- claim -------------------------------------------------------------------------------------


def claim(
    connection: Connection,
    worker: str,
    *,
    namespaces: Collection[str] | None,
    slots: int,
    batch: int,
    lease_seconds: float,
) -> list[Lease]:
    """Lease at most ``slots`` sessions, those ready longest first, with up to ``batch`` messages
    each. Costs the same whatever waits behind."""
    return _hot(connection).claim(connection, worker, namespaces, slots, batch, lease_seconds)


# ---- heartbeat, commit -------------------------------------------------------------------------


def heartbeat(
    connection: Connection,
    worker: str,
    held: Sequence[tuple[SessionKey, int]],
    *,
    lease_seconds: float,
) -> set[SessionKey]:
    """Renew leases, given as key and epoch; those that are still held."""
    return _hot(connection).heartbeat(connection, worker, held, lease_seconds)


def commit(connection: Connection, worker: str, turns: Sequence[Commit]) -> list[bool | LeaseLost]:
    """Write each turn to its transcript, acknowledge its messages and give its lease back: true;
    or ``LeaseLost``, and then nothing of that turn has happened."""
    held = _hot(connection).commit(connection, worker, turns)
    return [
        True if kept else LeaseLost(turn.lease.session.id)
        for turn, kept in zip(turns, held, strict=True)
    ]


def find_committed(connection: Connection, worker: str, turn: Commit) -> bool | None:
    """True if a turn whose answer was lost with the connection has been committed: its message is
    done, by this worker and on this attempt. ``None`` if not."""
    delivery = turn.lease.deliveries[0]
    found = connection.execute(
        select(inbox.c.status, inbox.c.worker, inbox.c.attempts).where(
            *_message(turn.lease.namespace, turn.lease.session.id, delivery.position)
        )
    ).first()
    done = found is not None and tuple(found) == ("done", worker, delivery.attempt)
    return True if done else None


# ---- fail, release -----------------------------------------------------------------------------


def fail(connection: Connection, worker: str, failures: Sequence[Fail]) -> list[bool]:
    """Record each failed attempt and give its lease back: the mailbox waits for the next attempt,
    or its messages are dead and the next one gets its chance. False where the lease was lost."""
    held = _held(connection, worker, [failure.lease for failure in failures])
    present = clock.read_now(connection)
    changes = _StateChanges(connection)
    for failure in failures:
        lease = failure.lease
        if lease.fence not in held:
            continue
        if failure.retry_in is None:
            changes.mark_dead(lease.key, lease.positions, failure.error)
            changes.end_lease(lease.key, buried=lease.positions)
        else:
            changes.return_to_pending(lease.key, lease.positions, error=failure.error)
            changes.wait(lease.key, until=present + timedelta(seconds=failure.retry_in))
    changes.make()
    return [failure.lease.fence in held for failure in failures]


def release(connection: Connection, worker: str, leases: Sequence[Lease]) -> None:
    """Give leases back untouched: the attempt is not counted, and anyone may claim at once."""
    held = _held(connection, worker, leases)
    changes = _StateChanges(connection)
    for lease in leases:
        if lease.fence in held:
            changes.return_to_pending(lease.key, lease.positions, uncounted=1)
            changes.end_lease(lease.key)
    changes.make()


def release_unknown(connection: Connection, worker: str, known: Collection[SessionKey]) -> int:
    """Give back what is leased to this worker without its knowing: the answer to a claim was
    lost with the connection. How many there were."""
    owned = connection.execute(
        select(mailboxes.c.namespace, mailboxes.c.session_id).where(mailboxes.c.owner == worker)
    )
    strays = [key for row in owned if (key := (row.namespace, row.session_id)) not in known]
    lock_mailboxes(connection, strays)
    changes = _StateChanges(connection)
    running = _running(connection, strays)
    for key in strays:
        changes.return_to_pending(key, running.get(key, ()), uncounted=1)
        changes.end_lease(key)
    changes.make()
    return len(strays)


# ---- reap, wake --------------------------------------------------------------------------------


def reap(
    connection: Connection,
    *,
    namespaces: Collection[str] | None,
    max_attempts: int,
    most: int = 100,
) -> int:
    """Take back leases that have expired; how many.

    The worker died, froze or lost its database: the attempt counts. What has used up
    ``max_attempts`` so is dead, since a message that kills its worker would do it for ever.
    """
    expired = (
        select(mailboxes.c.namespace, mailboxes.c.session_id, mailboxes.c.owner)
        .where(
            mailboxes.c.owner.is_not(None),
            mailboxes.c.lease_until < now(connection),
            _within(namespaces),
        )
        .order_by(mailboxes.c.namespace, mailboxes.c.session_id)
        .limit(most)
        .with_for_update(key_share=True, skip_locked=True)
    )
    owners = {(ns, id): owner for ns, id, owner in connection.execute(expired)}
    changes = _StateChanges(connection)
    running = _running(connection, list(owners))
    for key, owner in owners.items():
        attempts = running.get(key, {})
        worn_out = [position for position, n in attempts.items() if n >= max_attempts]
        left = [position for position in attempts if position not in worn_out]
        error = f"LeaseExpired: worker {owner} did not finish"
        changes.return_to_pending(key, left, error=error)
        verdict = f"{error}, as those before it; given up after {max_attempts} attempts"
        changes.mark_dead(key, worn_out, verdict)
        changes.end_lease(key, buried=worn_out)
    changes.make()
    return len(owners)


def wake(connection: Connection, *, namespaces: Collection[str] | None, most: int = 1_000) -> int:
    """Make mailboxes whose backoff is over ready; how many."""
    due = (
        select(mailboxes.c.namespace, mailboxes.c.session_id)
        .where(
            mailboxes.c.wake_at.is_not(None),
            mailboxes.c.wake_at <= now(connection),
            _within(namespaces),
        )
        .order_by(mailboxes.c.wake_at)
        .limit(most)
        .with_for_update(key_share=True, skip_locked=True)
    )
    keys = [_key_parameters((row.namespace, row.session_id)) for row in connection.execute(due)]
    if keys:
        connection.execute(_END_BACKOFF, keys)
    return len(keys)


def next_due(connection: Connection, *, namespaces: Collection[str] | None) -> Due:
    """What a worker would find: the one cheap query of an idle poll."""
    present = now(connection).label("present")
    waking = select(func.min(mailboxes.c.wake_at)).where(
        mailboxes.c.wake_at.is_not(None), _within(namespaces)
    )
    expiring = select(func.min(mailboxes.c.lease_until)).where(
        mailboxes.c.owner.is_not(None), _within(namespaces)
    )
    ready = exists().where(mailboxes.c.ready_at.is_not(None), _within(namespaces))
    row = connection.execute(
        select(
            ready.label("ready"),
            waking.scalar_subquery().label("waking"),
            expiring.scalar_subquery().label("expiring"),
            present,
        )
    ).one()
    moments = [moment for moment in (row.waking, row.expiring) if moment is not None]
    soonest = min(moments, default=None)
    return Due(
        bool(row.ready),
        None if soonest is None else max(0.0, (soonest - row.present).total_seconds()),
    )


# ---- requeue, end ------------------------------------------------------------------------------


def requeue(connection: Connection, namespace: str, session_id: str, position: int) -> None:
    """Give a dead message another life, before those that wait, under its old receipt.

    Raises ``UnknownReceipt``, ``SessionEnded``, and ``InvalidArgument`` if it is not dead.
    """
    key = (namespace, session_id)
    lock_mailboxes(connection, [key])
    message = connection.execute(
        select(inbox.c.status, mailboxes.c.closed)
        .join(
            mailboxes,
            and_(
                mailboxes.c.namespace == inbox.c.namespace,
                mailboxes.c.session_id == inbox.c.session_id,
            ),
        )
        .where(*_message(namespace, session_id, position))
    ).first()
    if message is None:
        raise UnknownReceipt(session_id, position)
    if message.closed:
        raise SessionEnded(session_id)
    if message.status != "dead":
        raise InvalidArgument(
            f"message {position} of session {session_id} is {message.status}; "
            "only a dead message can be requeued"
        )
    connection.execute(
        update(inbox)
        .where(*_message(namespace, session_id, position))
        .values(status="pending", attempts=0, requeued=True, dead_at=None, finished_at=None)
    )
    idle = and_(
        mailboxes.c.ready_at.is_(None), mailboxes.c.wake_at.is_(None), mailboxes.c.owner.is_(None)
    )
    connection.execute(
        update(mailboxes)
        .where(*_mailbox(key))
        .values(
            pending=mailboxes.c.pending + 1,
            ready_at=case((idle, now(connection)), else_=mailboxes.c.ready_at),
        )
    )


def end(
    connection: Connection,
    namespace: str,
    session_id: str,
    *,
    subtree: bool = False,
    reason: str | None = None,
) -> int:
    """End a session, with all below it if ``subtree``: nothing enters or leaves their inboxes any
    more, what waited is cancelled, and a turn that runs can't commit. How many were ended.

    Raises ``UnknownSession``. A session that has ended before is not counted.
    """
    if subtree:
        family = families.lock_subtree(connection, namespace, session_id)
    else:
        family = [session_id]
        lock_mailboxes(connection, [(namespace, session_id)])
        lock_sessions(connection, [(namespace, session_id)])
    if not family or not registry.exists(connection, namespace, session_id):
        raise UnknownSession(session_id)
    present = now(connection)
    ended = 0
    for member in family:
        key = (namespace, member)
        head = connection.execute(select(mailboxes.c.head).where(*_mailbox(key))).scalar_one()
        closed = connection.execute(
            update(mailboxes)
            .where(*_mailbox(key), mailboxes.c.closed.is_(False))
            .values(
                **_NO_LEASE,
                ready_at=None,
                wake_at=None,
                closed=True,
                epoch=mailboxes.c.epoch + 1,
                pending=0,
                head=mailboxes.c.tail + 1,
            )
            .returning(mailboxes.c.epoch)
        ).first()
        if closed is None:
            continue
        ended += 1
        connection.execute(
            update(inbox)
            .where(
                inbox.c.namespace == namespace,
                inbox.c.session_id == member,
                inbox.c.status.in_(UNFINISHED),
                or_(inbox.c.position >= head, inbox.c.requeued),
            )
            .values(status="cancelled", finished_at=present, requeued=False)
        )
        connection.execute(
            update(sessions)
            .where(sessions.c.namespace == namespace, sessions.c.id == member)
            .values(ended_at=present, end_reason=reason)
        )
    return ended


# ---- parts of the above --------------------------------------------------------------------------

_NO_LEASE: dict[str, Any] = {"owner": None, "lease_until": None, "taken": 0}


def _within(namespaces: Collection[str] | None) -> Any:
    return true() if namespaces is None else mailboxes.c.namespace.in_(sorted(namespaces))


def _mailbox(key: SessionKey) -> tuple[Any, Any]:
    return mailboxes.c.namespace == key[0], mailboxes.c.session_id == key[1]


def _message(namespace: str, session_id: str, position: int) -> tuple[Any, Any, Any]:
    return (
        inbox.c.namespace == namespace,
        inbox.c.session_id == session_id,
        inbox.c.position == position,
    )


def _held(
    connection: Connection, worker: str, leases: Sequence[Lease]
) -> set[tuple[SessionKey, int]]:
    """Those of the leases that are still this worker's, held until the transaction ends, by key
    and epoch: a lease that was lost may stand beside the one that came after it."""
    keys = [lease.key for lease in leases]
    lock_mailboxes(connection, keys)
    owned = connection.execute(
        select(mailboxes.c.namespace, mailboxes.c.session_id, mailboxes.c.epoch).where(
            _among(keys), mailboxes.c.owner == worker
        )
    )
    return {((row.namespace, row.session_id), row.epoch) for row in owned}


def _running(
    connection: Connection, keys: Collection[SessionKey]
) -> dict[SessionKey, dict[int, int]]:
    """The messages that were handed to the turns that hold these mailboxes, with their attempts:
    those taken from the head, and requeued ones before it."""
    taken = (
        select(inbox.c.namespace, inbox.c.session_id, inbox.c.position, inbox.c.attempts)
        .join(
            mailboxes,
            and_(
                inbox.c.namespace == mailboxes.c.namespace,
                inbox.c.session_id == mailboxes.c.session_id,
            ),
        )
        .where(_among(keys), inbox.c.status == "running")
    )
    last = mailboxes.c.head + mailboxes.c.taken - 1
    at_head = taken.where(inbox.c.position.between(mailboxes.c.head, last))
    running: dict[SessionKey, dict[int, int]] = {}
    for row in connection.execute(at_head.union_all(taken.where(inbox.c.requeued))):
        running.setdefault((row.namespace, row.session_id), {})[row.position] = row.attempts
    return running


def _among(keys: Collection[SessionKey]) -> Any:
    return tuple_(mailboxes.c.namespace, mailboxes.c.session_id).in_(sorted(keys))


_THIS_MAILBOX = (
    mailboxes.c.namespace == bindparam("of_namespace"),
    mailboxes.c.session_id == bindparam("of_session"),
)
_THIS_MESSAGE = (
    inbox.c.namespace == bindparam("of_namespace"),
    inbox.c.session_id == bindparam("of_session"),
    inbox.c.position == bindparam("at"),
)
_PRESENT = bindparam("present", type_=UTCDateTime)
_BURIED = bindparam("buried", type_=BigInteger)
_PASSED = bindparam("passed", type_=BigInteger)

# Messages are pending again.
_RETURN_TO_PENDING = (
    update(inbox)
    .where(*_THIS_MESSAGE)
    .values(
        status="pending",
        attempts=inbox.c.attempts - bindparam("uncounted", type_=Integer),
        error=func.coalesce(bindparam("why", type_=Text), inbox.c.error),
    )
)

# Messages are dead.
_MARK_DEAD = (
    update(inbox)
    .where(*_THIS_MESSAGE)
    .values(
        status="dead",
        error=bindparam("why", type_=Text),
        finished_at=_PRESENT,
        dead_at=_PRESENT,
        requeued=False,
    )
)

# The lease ends, and the next message gets its chance.
_END_LEASE = (
    update(mailboxes)
    .where(*_THIS_MAILBOX)
    .values(
        **_NO_LEASE,
        pending=mailboxes.c.pending - _BURIED,
        head=case((mailboxes.c.head < _PASSED, _PASSED), else_=mailboxes.c.head),
        ready_at=case((mailboxes.c.pending > _BURIED, _PRESENT), else_=None),
    )
)

# The lease ends, and the head message is tried again later.
_END_LEASE_WITH_BACKOFF = (
    update(mailboxes)
    .where(*_THIS_MAILBOX)
    .values(**_NO_LEASE, wake_at=bindparam("later", type_=UTCDateTime))
)

# The backoff is over.
_END_BACKOFF = (
    update(mailboxes)
    .where(*_THIS_MAILBOX, mailboxes.c.wake_at.is_not(None))
    .values(wake_at=None, ready_at=mailboxes.c.wake_at)
)


def _key_parameters(key: SessionKey) -> dict[str, Any]:
    return {"of_namespace": key[0], "of_session": key[1]}


class _StateChanges:
    """What is to happen to many mailboxes and their messages, made with a statement each kind."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._returned: list[dict[str, Any]] = []
        self._dead: list[dict[str, Any]] = []
        self._ended_leases: list[dict[str, Any]] = []
        self._waiting: list[dict[str, Any]] = []

    def return_to_pending(
        self,
        key: SessionKey,
        positions: Iterable[int],
        *,
        error: str | None = None,
        uncounted: int = 0,
    ) -> None:
        self._returned += [
            {**_key_parameters(key), "at": position, "why": error, "uncounted": uncounted}
            for position in positions
        ]

    def mark_dead(self, key: SessionKey, positions: Iterable[int], error: str) -> None:
        self._dead += [
            {**_key_parameters(key), "at": position, "why": error} for position in positions
        ]

    def end_lease(self, key: SessionKey, *, buried: Collection[int] = ()) -> None:
        self._ended_leases.append(
            {**_key_parameters(key), "buried": len(buried), "passed": max(buried, default=0) + 1}
        )

    def wait(self, key: SessionKey, *, until: datetime) -> None:
        self._waiting.append({**_key_parameters(key), "later": until})

    def make(self) -> None:
        present = {"present": clock.read_now(self._connection)}
        for statement, rows in (
            (_RETURN_TO_PENDING, self._returned),
            (_MARK_DEAD, [row | present for row in self._dead]),
            (_END_LEASE, [row | present for row in self._ended_leases]),
            (_END_LEASE_WITH_BACKOFF, self._waiting),
        ):
            if rows:
                self._connection.execute(statement, rows)

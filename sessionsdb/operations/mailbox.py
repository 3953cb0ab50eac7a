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

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import (
    Connection,
    Row,
    and_,
    case,
    exists,
    func,
    literal,
    or_,
    select,
    true,
    update,
)

from sessionsdb.content import StoredMessage
from sessionsdb.errors import (
    HopLimitReached,
    IdempotencyConflict,
    InboxFull,
    InvalidArgument,
    LeaseLost,
    SessionEnded,
    SessionsDBError,
    UnknownReceipt,
    UnknownSession,
)
from sessionsdb.operations import mailbox_postgresql as postgresql
from sessionsdb.operations import mailbox_sqlite as sqlite
from sessionsdb.operations import registry
from sessionsdb.operations.arrays import columns
from sessionsdb.operations.clock import as_utc, later, now, sqlite_now
from sessionsdb.operations.locks import Key, lock_mailboxes, lock_sessions
from sessionsdb.schema import inbox, mailboxes, sessions
from sessionsdb.types import Limits, Receipt, SessionDetails, SessionId

UNFINISHED = ("pending", "running")

EVERYWHERE = None
"""In place of a list of namespaces: all of the database."""


# ---- requests and what they give ---------------------------------------------------------------


class Chain(NamedTuple):
    """A message's place in a chain of sends from session to session."""

    hops: int
    """How many sessions have handed it on: none, for what a user sent."""
    origin: str | None
    """The session that was the first to; the one a user spoke to, where one did."""

    def next(self, sender: str) -> Chain:
        """The place of what ``sender`` sends while it works on this message."""
        return Chain(self.hops + 1, self.origin or sender)


class Send(NamedTuple):
    """A message for a session's inbox."""

    namespace: str
    session_id: str
    message: StoredMessage
    fingerprint: str
    """With a key: a digest of the arguments. Without: an id of this write."""
    sender: str | None = None
    idempotency_key: str | None = None
    chain: Chain | None = None
    """With a sender: where in a chain of sends this stands. ``None``: behind what the sender is
    running now."""


class Delivery(NamedTuple):
    """One message that was handed to a turn."""

    position: int
    message: StoredMessage
    sender: str | None
    attempt: int
    enqueued_at: datetime
    chain: Chain


class Lease(NamedTuple):
    """A worker's right to run a session's turn over the deliveries."""

    namespace: str
    session: SessionDetails
    epoch: int
    deliveries: list[Delivery]

    @property
    def key(self) -> Key:
        return (self.namespace, self.session.id)

    @property
    def positions(self) -> list[int]:
        return [delivery.position for delivery in self.deliveries]

    @property
    def chain(self) -> Chain:
        """The place of the message that has come furthest."""
        return max((d.chain for d in self.deliveries), key=lambda chain: chain.hops)


class Commit(NamedTuple):
    """A finished turn: the messages for the transcript, the last ``replies`` of them answers."""

    lease: Lease
    messages: list[StoredMessage]
    model: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None


class Fail(NamedTuple):
    """A failed turn. ``retry_in`` seconds from now, or never: then its messages are dead."""

    lease: Lease
    error: str
    retry_in: float | None


class Due(NamedTuple):
    """What there is to do: now, and in how many seconds at the latest something else."""

    ready: bool
    in_seconds: float | None


# ---- send --------------------------------------------------------------------------------------


def send(
    connection: Connection, requests: Sequence[Send], limits: Limits
) -> list[Receipt | SessionsDBError]:
    """Queue each message; its receipt, or ``UnknownSession``, ``SessionEnded``, ``InboxFull``,
    ``HopLimitReached`` or ``IdempotencyConflict``. Order within a session is that of the list."""
    firsts, repeats = _distinct(requests)
    distinct = [requests[place] for place in firsts]
    if connection.dialect.name == "postgresql":
        found = _send_on_postgresql(connection, distinct, limits)
    else:
        found = _send_on_sqlite(connection, distinct, limits)
    answers = dict(zip(firsts, found, strict=True))
    for place, first in repeats.items():
        answers[place] = _repeated(requests[place], requests[first], answers[first])
    return [answers[place] for place in range(len(requests))]


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
    if request.fingerprint != first.fingerprint:
        return IdempotencyConflict(request.session_id, str(request.idempotency_key))
    return _receipt(request, answer.position, duplicate=True)


def _receipt(request: Send, position: int, *, duplicate: bool = False) -> Receipt:
    return Receipt.model_construct(
        session_id=SessionId(request.session_id), position=position, duplicate=duplicate
    )


def _send_on_postgresql(
    connection: Connection, requests: Sequence[Send], limits: Limits
) -> list[Receipt | SessionsDBError]:
    rows = connection.execute(
        postgresql.SEND,
        {
            "namespaces": [r.namespace for r in requests],
            "ids": [r.session_id for r in requests],
            "contents": [r.message.content for r in requests],
            "payloads": [r.message.payload for r in requests],
            "senders": [r.sender for r in requests],
            "keys": [r.idempotency_key for r in requests],
            "fingerprints": [r.fingerprint for r in requests],
            "hops": [None if r.chain is None else r.chain.hops for r in requests],
            "origins": [None if r.chain is None else r.chain.origin for r in requests],
            "pending_limit": limits.pending,
            "hop_limit": limits.hops,
        },
    )
    answers: list[Receipt | SessionsDBError] = []
    for request, row in zip(requests, rows, strict=True):
        closed, known_position, same, position, too_far, origin = row
        if position is not None:
            answers.append(_receipt(request, position))
        elif closed is None:
            answers.append(UnknownSession(request.session_id))
        elif known_position is not None:
            answers.append(_known(request, known_position, same))
        elif closed:
            answers.append(SessionEnded(request.session_id))
        elif too_far:
            answers.append(_too_far(request, limits, origin))
        else:
            answers.append(InboxFull(request.session_id, limits.pending))
    return answers


def _send_on_sqlite(
    connection: Connection, requests: Sequence[Send], limits: Limits
) -> list[Receipt | SessionsDBError]:
    present = sqlite_now(connection)
    answers: list[Receipt | SessionsDBError] = []
    queued: list[dict[str, Any]] = []
    for request in requests:
        key = {"namespace": request.namespace, "session_id": request.session_id}
        if request.idempotency_key is not None:
            known = connection.execute(
                sqlite.KNOWN_KEY, key | {"key": request.idempotency_key}
            ).first()
            if known is not None:
                answers.append(
                    _known(request, known.position, known.fingerprint == request.fingerprint)
                )
                continue
        chain = _chain_on_sqlite(connection, request)
        position = None
        if chain.hops <= limits.hops:
            position = connection.execute(
                sqlite.SEND, key | {"now": present, "pending_limit": limits.pending}
            ).scalar_one_or_none()
        if position is None:
            mailbox = connection.execute(sqlite.REFUSED, key).first()
            if mailbox is None:
                answers.append(UnknownSession(request.session_id))
            elif mailbox.closed:
                answers.append(SessionEnded(request.session_id))
            elif chain.hops > limits.hops:
                answers.append(_too_far(request, limits, chain.origin))
            else:
                answers.append(InboxFull(request.session_id, limits.pending))
            continue
        answers.append(_receipt(request, position))
        queued.append(
            key
            | {
                "position": position,
                "content": request.message.content,
                "payload": request.message.payload,
                "sender": request.sender,
                "hops": chain.hops,
                "origin": chain.origin,
                "key": request.idempotency_key,
                "fingerprint": request.fingerprint,
                "now": present,
            }
        )
    if queued:
        connection.execute(sqlite.QUEUE, queued)
        connection.execute(sqlite.TOUCH, queued)
    return answers


def _chain_on_sqlite(connection: Connection, request: Send) -> Chain:
    """Where a message stands: behind the furthest of those its sender is running."""
    if request.sender is None:
        return Chain(0, None)
    if request.chain is not None:
        return request.chain
    running = connection.execute(
        sqlite.CHAIN, {"namespace": request.namespace, "sender": request.sender}
    ).first()
    behind = Chain(0, None) if running is None else Chain(running.hops, running.origin)
    return behind.next(request.sender)


def _too_far(request: Send, limits: Limits, origin: str | None) -> HopLimitReached:
    return HopLimitReached(request.session_id, str(request.sender), limits.hops, origin)


def _known(request: Send, position: int, same: bool) -> Receipt | SessionsDBError:
    if same:
        return _receipt(request, position, duplicate=True)
    return IdempotencyConflict(request.session_id, str(request.idempotency_key))


def sent(connection: Connection, request: Send) -> Receipt | None:
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
    return None if position is None else _receipt(request, position)


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
    on_postgresql = connection.dialect.name == "postgresql"
    run = _claim_on_postgresql if on_postgresql else _claim_on_sqlite
    return run(connection, worker, namespaces, slots, batch, lease_seconds)


def _claim_on_postgresql(
    connection: Connection,
    worker: str,
    namespaces: Collection[str] | None,
    slots: int,
    batch: int,
    lease_seconds: float,
) -> list[Lease]:
    rows = connection.execute(
        postgresql.CLAIM,
        {
            "namespaces": [] if namespaces is None else sorted(namespaces),
            "everywhere": namespaces is None,
            "slots": slots,
            "batch": batch,
            "worker": worker,
            "lease": lease_seconds,
        },
    )
    leases: dict[Key, Lease] = {}
    for row in rows:
        key = (row.namespace, row.session_id)
        if key not in leases:
            leases[key] = _lease(row.namespace, row, row.epoch, row.waiting)
        leases[key].deliveries.append(_delivery(row, row.text, row.attempts))
    return list(leases.values())


def _claim_on_sqlite(
    connection: Connection,
    worker: str,
    namespaces: Collection[str] | None,
    slots: int,
    batch: int,
    lease_seconds: float,
) -> list[Lease]:
    if namespaces is None:
        ready = list(connection.execute(sqlite.READY_ANYWHERE, {"slots": slots}))
    else:
        ready = [
            row
            for namespace in sorted(namespaces)
            for row in connection.execute(sqlite.READY, {"namespace": namespace, "slots": slots})
        ]
        if len(namespaces) > 1:
            ready.sort(key=lambda row: row.ready_at)
    present = sqlite_now(connection)
    lease_until = sqlite_now(connection, plus=lease_seconds)
    leases = []
    for mailbox in ready[:slots]:
        key = {"namespace": mailbox.namespace, "session_id": mailbox.session_id}
        head = connection.execute(
            sqlite.HEAD, key | {"batch": batch, "head": mailbox.head, "tail": mailbox.tail}
        ).all()
        tried = next((i for i, row in enumerate(head) if row.attempts > 0), len(head))
        taken = head[: max(tried, 1)]
        leased = connection.execute(
            sqlite.LEASE,
            key | {"worker": worker, "lease_until": lease_until, "taken": len(taken)},
        ).one()
        connection.execute(
            sqlite.TAKE,
            [key | {"position": row.position, "now": present, "worker": worker} for row in taken],
        )
        session = connection.execute(sqlite.SESSION, key).one()
        lease = _lease(mailbox.namespace, session, leased.epoch, leased.waiting)
        lease.deliveries.extend(_delivery(row, row.content, row.attempts + 1) for row in taken)
        leases.append(lease)
    return leases


def _lease(namespace: str, session: Row[*tuple[Any, ...]], epoch: int, waiting: int) -> Lease:
    details = registry.details(session, pending=waiting, running=True)
    return Lease(namespace, details, epoch, [])


def _delivery(row: Row[*tuple[Any, ...]], content: str, attempt: int) -> Delivery:
    return Delivery(
        row.position,
        StoredMessage("user", content, row.payload),
        row.sender,
        attempt,
        as_utc(row.enqueued_at),
        Chain(row.hops, row.origin),
    )


# ---- heartbeat, commit -------------------------------------------------------------------------


def heartbeat(
    connection: Connection, worker: str, held: Sequence[tuple[Key, int]], *, lease_seconds: float
) -> set[Key]:
    """Renew leases, given as key and epoch; those that are still held."""
    if connection.dialect.name == "postgresql":
        rows = connection.execute(
            postgresql.HEARTBEAT,
            {
                "namespaces": [key[0] for key, _ in held],
                "ids": [key[1] for key, _ in held],
                "epochs": [epoch for _, epoch in held],
                "worker": worker,
                "lease": lease_seconds,
            },
        )
        return {(row.namespace, row.session_id) for row in rows}
    lease_until = sqlite_now(connection, plus=lease_seconds)
    renewed: set[Key] = set()
    for (namespace, session_id), epoch in held:
        row = connection.execute(
            sqlite.HEARTBEAT,
            {
                "namespace": namespace,
                "session_id": session_id,
                "worker": worker,
                "epoch": epoch,
                "lease_until": lease_until,
            },
        ).first()
        if row is not None:
            renewed.add((namespace, session_id))
    return renewed


def commit(connection: Connection, worker: str, turns: Sequence[Commit]) -> list[bool | LeaseLost]:
    """Write each turn to its transcript, acknowledge its messages and give its lease back: true;
    or ``LeaseLost``, and then nothing of that turn has happened."""
    if connection.dialect.name == "postgresql":
        held = _commit_on_postgresql(connection, worker, turns)
    else:
        held = _commit_on_sqlite(connection, worker, turns)
    return [
        True if kept else LeaseLost(turn.lease.session.id)
        for turn, kept in zip(turns, held, strict=True)
    ]


def _positions(turn: Commit) -> list[int | None]:
    """For each message of the turn the inbox message it came from or, for a reply, answers."""
    asked: list[int | None] = list(turn.lease.positions)
    return asked + [asked[-1]] * (len(turn.messages) - len(asked))


def _commit_on_postgresql(
    connection: Connection, worker: str, turns: Sequence[Commit]
) -> list[bool]:
    answered = [
        # The usage is that of the turn: it stands with the last message only, so that sums are
        # right.
        (
            number,
            position,
            turn.input_tokens if position == turn.lease.positions[-1] else None,
            turn.output_tokens if position == turn.lease.positions[-1] else None,
        )
        for number, turn in enumerate(turns, 1)
        for position in turn.lease.positions
    ]
    written = [
        (number, place, *message, position)
        for number, turn in enumerate(turns, 1)
        for place, (message, position) in enumerate(
            zip(turn.messages, _positions(turn), strict=True), 1
        )
    ]
    answered_numbers, answered_positions, input_tokens, output_tokens = columns(answered, 4)
    numbers, places, roles, contents, payloads, positions = columns(written, 6)
    rows = connection.execute(
        postgresql.COMMIT,
        {
            "namespaces": [turn.lease.namespace for turn in turns],
            "ids": [turn.lease.session.id for turn in turns],
            "epochs": [turn.lease.epoch for turn in turns],
            "counts": [len(turn.messages) for turn in turns],
            "models": [turn.model for turn in turns],
            "worker": worker,
            "answered_numbers": answered_numbers,
            "answered_positions": answered_positions,
            "input_tokens": input_tokens,
            "output_tokens": output_tokens,
            "numbers": numbers,
            "places": places,
            "roles": roles,
            "contents": contents,
            "payloads": payloads,
            "positions": positions,
        },
    )
    return [held for (held,) in rows]


def _commit_on_sqlite(connection: Connection, worker: str, turns: Sequence[Commit]) -> list[bool]:
    present = sqlite_now(connection)
    held: list[bool] = []
    written: list[dict[str, Any]] = []
    finished: list[dict[str, Any]] = []
    for turn in turns:
        positions = turn.lease.positions
        key = {"namespace": turn.lease.namespace, "session_id": turn.lease.session.id}
        released = connection.execute(
            sqlite.RELEASE,
            key
            | {
                "worker": worker,
                "epoch": turn.lease.epoch,
                "answered": len(positions),
                "last_position": max(positions),
                "now": present,
            },
        ).first()
        held.append(released is not None)
        if released is None:
            continue
        base = connection.execute(
            sqlite.ADVANCE, key | {"count": len(turn.messages), "now": present}
        ).scalar_one()
        for place, (message, position) in enumerate(
            zip(turn.messages, _positions(turn), strict=True), 1
        ):
            written.append(
                key
                | message._asdict()
                | {"seq": base + place, "position": position, "now": present}
            )
        for position in positions:
            last = position == positions[-1]
            finished.append(
                key
                | {
                    "position": position,
                    "first_seq": base + 1,
                    "last_seq": base + len(turn.messages),
                    "model": turn.model,
                    "input_tokens": turn.input_tokens if last else None,
                    "output_tokens": turn.output_tokens if last else None,
                    "now": present,
                }
            )
    if written:
        connection.execute(sqlite.WRITE, written)
        connection.execute(sqlite.FINISH, finished)
    return held


def committed(connection: Connection, worker: str, turn: Commit) -> bool | None:
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
    for failure in failures:
        if failure.lease.key not in held:
            continue
        lease = failure.lease
        if failure.retry_in is None:
            _bury(connection, lease.key, lease.positions, failure.error)
            _give_back(connection, lease.key, buried=lease.positions)
        else:
            _return(connection, lease.key, lease.positions, error=failure.error)
            wake_at = later(connection, failure.retry_in)
            _set_mailbox(connection, lease.key, **_NO_LEASE, wake_at=wake_at)
    return [failure.lease.key in held for failure in failures]


def release(connection: Connection, worker: str, leases: Sequence[Lease]) -> None:
    """Give leases back untouched: the attempt is not counted, and anyone may claim at once."""
    held = _held(connection, worker, leases)
    for lease in leases:
        if lease.key in held:
            _return(connection, lease.key, lease.positions, attempts=inbox.c.attempts - 1)
            _set_mailbox(connection, lease.key, **_NO_LEASE, ready_at=now(connection))


def release_unknown(connection: Connection, worker: str, known: Collection[Key]) -> int:
    """Give back what is leased to this worker without its knowing: the answer to a claim was
    lost with the connection. How many there were."""
    owned = select(mailboxes.c.namespace, mailboxes.c.session_id).where(mailboxes.c.owner == worker)
    strays = [key for row in connection.execute(owned) if (key := (row[0], row[1])) not in known]
    lock_mailboxes(connection, strays)
    for key in strays:
        positions = _running(connection, key)
        _return(connection, key, positions, attempts=inbox.c.attempts - 1)
        _set_mailbox(connection, key, **_NO_LEASE, ready_at=now(connection))
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
    rows = connection.execute(expired).all()
    for namespace, session_id, worker in rows:
        key = (namespace, session_id)
        running = _running(connection, key)
        worn_out = list(
            connection.execute(
                select(inbox.c.position).where(
                    *_messages(key, running), inbox.c.attempts >= max_attempts
                )
            ).scalars()
        )
        left = sorted(set(running) - set(worn_out))
        _return(connection, key, left, error=f"LeaseExpired: worker {worker} did not finish")
        if worn_out:
            reason = (
                f"LeaseExpired: worker {worker} did not finish, as those before it; "
                f"given up after {max_attempts} attempts"
            )
            _bury(connection, key, worn_out, reason)
        _give_back(connection, key, buried=worn_out)
    return len(rows)


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
    keys = [(row.namespace, row.session_id) for row in connection.execute(due)]
    for key in keys:
        _set_mailbox(connection, key, wake_at=None, ready_at=mailboxes.c.wake_at)
    return len(keys)


def due(connection: Connection, *, namespaces: Collection[str] | None) -> Due:
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
    _set_mailbox(
        connection,
        key,
        pending=mailboxes.c.pending + 1,
        ready_at=case((idle, now(connection)), else_=mailboxes.c.ready_at),
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
        family = registry.hold_subtree(connection, namespace, session_id)
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


def _mailbox(key: Key) -> tuple[Any, Any]:
    return mailboxes.c.namespace == key[0], mailboxes.c.session_id == key[1]


def _message(namespace: str, session_id: str, position: int) -> tuple[Any, Any, Any]:
    return (
        inbox.c.namespace == namespace,
        inbox.c.session_id == session_id,
        inbox.c.position == position,
    )


def _messages(key: Key, positions: Collection[int]) -> tuple[Any, Any, Any]:
    return (
        inbox.c.namespace == key[0],
        inbox.c.session_id == key[1],
        inbox.c.position.in_(sorted(positions)),
    )


def _set_mailbox(connection: Connection, key: Key, **values: Any) -> None:
    connection.execute(update(mailboxes).where(*_mailbox(key)).values(**values))


def _held(connection: Connection, worker: str, leases: Sequence[Lease]) -> set[Key]:
    """Those of the leases that are still this worker's, held until the transaction ends."""
    lock_mailboxes(connection, [lease.key for lease in leases])
    held: set[Key] = set()
    for lease in leases:
        found = connection.execute(
            select(literal(1)).where(
                *_mailbox(lease.key),
                mailboxes.c.owner == worker,
                mailboxes.c.epoch == lease.epoch,
            )
        ).first()
        if found is not None:
            held.add(lease.key)
    return held


def _running(connection: Connection, key: Key) -> list[int]:
    """The messages that were handed to the turn that holds this mailbox: those taken from the
    head, and requeued ones before it."""
    mailbox = connection.execute(
        select(mailboxes.c.head, mailboxes.c.taken).where(*_mailbox(key))
    ).one()
    mine = (inbox.c.namespace == key[0], inbox.c.session_id == key[1])
    running = inbox.c.status == "running"
    at_head = inbox.c.position.between(mailbox.head, mailbox.head + mailbox.taken - 1)
    return sorted(
        set(connection.execute(select(inbox.c.position).where(*mine, running, at_head)).scalars())
        | set(
            connection.execute(
                select(inbox.c.position).where(*mine, running, inbox.c.requeued)
            ).scalars()
        )
    )


def _return(connection: Connection, key: Key, positions: Collection[int], **values: Any) -> None:
    """Messages are pending again."""
    if positions:
        connection.execute(
            update(inbox).where(*_messages(key, positions)).values(status="pending", **values)
        )


def _bury(connection: Connection, key: Key, positions: Collection[int], error: str) -> None:
    """Messages are dead."""
    present = now(connection)
    connection.execute(
        update(inbox)
        .where(*_messages(key, positions))
        .values(status="dead", error=error, finished_at=present, dead_at=present, requeued=False)
    )


def _give_back(connection: Connection, key: Key, *, buried: Collection[int]) -> None:
    """The lease ends, and the next message gets its chance."""
    left = mailboxes.c.pending - len(buried)
    passed = max(buried, default=0) + 1
    _set_mailbox(
        connection,
        key,
        **_NO_LEASE,
        pending=left,
        head=case((mailboxes.c.head < passed, passed), else_=mailboxes.c.head),
        ready_at=case((left > 0, now(connection)), else_=None),
    )

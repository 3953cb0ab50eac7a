"""The mailbox: the state machine of a session's inbox, top to bottom.

A mailbox is one narrow row for each session. Its messages are rows of ``inbox``. Unfinished
messages stand from ``head`` to ``tail``. Between them are holes: messages that were cancelled, died
or were handled ahead of their turn. A claim walks over a hole once, and stores the new ``head``. A
message that is marked as ``ahead`` is claimed before all others, wherever it stands. It is found by
an index of its own, and never moves ``head``. The row is in one of six states:

=========  ========  =======  =====  ======  =====================================================
state      ready_at  wake_at  owner  closed  meaning
=========  ========  =======  =====  ======  =====================================================
idle       –         –        –      no      nothing waits
ready      set       –        –      no      a message waits for a worker
leased     –         –        set    no      a worker runs a turn, until ``lease_until``
waiting    –         set      –      no      the head message failed and is tried again later
held       –         set      –      no      a question is open, until the time in ``wake_at``: see
                                             the column ``question``
closed     –         –        –      yes     the session has ended; nothing waits, nothing enters
=========  ========  =======  =====  ======  =====================================================

==========  ==================  =================  ================================================
transition  from                to                 what happens to messages
==========  ==================  =================  ================================================
send        idle                ready              a new one is ``pending`` behind ``tail``
send        ready, leased,      the same           the same
            waiting, held
send        held, and the       ready              the new one is ``pending``, ahead of all: it is
            question takes                         the answer
            messages
claim       ready               leased, epoch + 1  those at the head are ``running``, attempt + 1.
                                                   An answer is claimed first, and alone
heartbeat   leased              leased             –
join        leased              leased             the next ``pending`` ones are ``running`` and
                                                   ``joined``, attempts as they were
give back   leased              leased             those that joined and that the handler did not
                                                   get are ``pending`` again
commit      leased              ready or idle      ``done``, and in the transcript
hold        leased              held               the same: the turn asks a question
answer      held                ready              a new one is ``pending``, ahead of all
expire      held, due           ready              a notice is ``pending``, ahead of all
rerun       leased              ready              ``pending`` again, the attempt not counted: the
                                                   transcript was rewritten during the turn
fail        leased              waiting            ``pending`` again, with the error
fail        leased              ready or idle      ``dead``, after the last attempt
release     leased              ready              ``pending`` again, the attempt not counted
reap        leased, expired     ready or idle      ``pending`` again, or ``dead`` after the last
wake        waiting, due        ready              –
requeue     idle                ready              a ``dead`` one is ``pending`` again, attempts 0.
                                                   An answer is claimed first, and alone
requeue     ready, leased,      the same           the same
            waiting, held
cancel      ready, leased,      the same, or idle  a ``pending`` one is ``cancelled``. An answer:
            waiting, held                          its question is withdrawn
cancel      waiting             ready or idle      the one that is tried again is ``cancelled``
cancel      leased              ready or idle,     the named one is ``cancelled``, with the partial
                                epoch + 1          reply in the transcript if wanted, and the
                                                   others of the turn are ``pending`` again
interrupt   leased              ready or idle,     all of the turn are ``cancelled``, with the
                                epoch + 1          partial reply in the transcript if wanted
interrupt   waiting             ready or idle      those that are tried again are ``cancelled``
interrupt   held                ready or idle      none: the question is withdrawn
end         any                 closed, epoch + 1  all unfinished are ``cancelled``
reopen      closed              idle               –
==========  ==================  =================  ================================================

``commit``, ``join``, ``give back``, ``rerun``, ``fail``, ``release`` and ``heartbeat`` name the
worker and the epoch of its lease: this is the fence. A worker that has lost its lease finds no row,
and changes nothing.

A message that joined a turn is ``done`` or ``cancelled`` with it. In all other ends of the turn it
is ``pending`` again with the attempts that it had: neither the attempt nor the death is its own.

A commit, a fail, a reap and an end may tell the parent of a child what came of it. That message is
a send to the mailbox of the parent, in the same transaction: see ``child_reports.py``.

A transcript is rewritten when a message is removed or replaced. ``sessions.rewrites`` counts such
writes. A claim hands the number out, and a commit compares it while the session is locked. An
append leaves the number as it is, so appends beside a turn do not disturb it.

``send``, ``claim``, ``heartbeat`` and ``commit`` are hot and have a form for each database, see
``dialect.py``. The others are the same statements on all: ``requeue`` here, ``join`` and
``give back`` in ``joining.py``, ``fail``, ``release`` and ``rerun`` in ``lease_ends.py``, ``reap``
and ``wake`` in ``expiry.py``, ``cancel`` and ``interrupt`` in ``stopping.py``, ``end`` and
``reopen`` in ``session_end.py``. ``hold`` and the ends of questions are in ``questions.py``,
``answer`` in ``question_answers.py``.

A question is in one row of ``questions``, which a mailbox that is held points to. The column
``answer`` of a mailbox points to an answer, or to the notice of an expiry, until it is finished.
Dead ones that are requeued wait for that. Then it points to the first of them: see
``state_changes.point_to_answers``. An answer that is cancelled withdraws its question.
``sessions.withdrawn`` is that question, or one that an interrupt withdrew, until a turn commits
that has seen so.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from sqlalchemy import Connection, and_, case, func, select, update

from sessionsdb.engine.clock import now
from sessionsdb.engine.repeatable import repeatable
from sessionsdb.engine.statement import Statement
from sessionsdb.errors import (
    InvalidArgument,
    LeaseLost,
    SessionEnded,
    SessionsDBError,
    TranscriptRewritten,
    UnknownReceipt,
)
from sessionsdb.operations.dialect import dialect_of
from sessionsdb.operations.fair_shares import share_slots
from sessionsdb.operations.inbox_types import Commit, Lease, Send
from sessionsdb.operations.keys import Fence, SessionKey
from sessionsdb.operations.row_conditions import is_mailbox, is_message
from sessionsdb.operations.row_locks import lock_mailboxes
from sessionsdb.operations.state_changes import point_to_answers
from sessionsdb.schema import inbox, mailboxes
from sessionsdb.types import Limits, Receipt

RECENT_MESSAGES = 10_000
"""How many of an inbox's newest messages are searched for the one that a lost send made."""

# ---- send --------------------------------------------------------------------------------------


class SendGroups(NamedTuple):
    """The indices of requests in a batch, grouped by their idempotency keys."""

    first: list[int]
    """The requests to send, as one list: no key is in it twice."""
    repeats: dict[int, int]
    """Requests that are equal to an earlier one, whose index this gives."""
    later: list[int]
    """Requests with the key of an earlier one and other arguments.

    They are sent one by one, after the others: the reason that refuses the earlier request (a chain
    of sends that is too long) may not apply to them.
    """


def group_by_key(requests: Sequence[Send]) -> SendGroups:
    groups = SendGroups([], {}, [])
    index_of_key: dict[tuple[str, str, str], int] = {}
    for index, request in enumerate(requests):
        if request.idempotency_key is not None:
            key = (request.namespace, request.session_id, request.idempotency_key)
            first = index_of_key.setdefault(key, index)
            if first != index:
                if request.fingerprint == requests[first].fingerprint:
                    groups.repeats[index] = first
                else:
                    groups.later.append(index)
                continue
        groups.first.append(index)
    return groups


def send(
    connection: Connection, requests: Sequence[Send], limits: Limits
) -> list[Receipt | SessionsDBError]:
    """Queue each message, and return its receipt or its error.

    The errors are ``UnknownSession``, ``SessionEnded``, ``InboxFull``, ``HopLimitReached`` and
    ``IdempotencyConflict``. The order within a session is the order of the list. No two requests
    have the same idempotency key: see ``group_by_key``.
    """
    return dialect_of(connection).send(connection, requests, limits)


def find_sent(connection: Connection, request: Send) -> Receipt | None:
    """Return the receipt of a send whose answer was lost, ``None`` if it was not committed.

    The message bears the key and the fingerprint. The fingerprint of a message without a key is of
    this write alone, and is searched backwards from the end of the inbox. With a key it is of the
    arguments, which a message with another key may have too.
    """
    of_session = select(inbox.c.position, inbox.c.fingerprint).where(
        inbox.c.namespace == request.namespace, inbox.c.session_id == request.session_id
    )
    if request.idempotency_key is None:
        recent = of_session.order_by(inbox.c.position.desc()).limit(RECENT_MESSAGES).subquery()
    else:
        recent = of_session.where(inbox.c.idempotency_key == request.idempotency_key).subquery()
    position = connection.execute(
        select(recent.c.position).where(recent.c.fingerprint == request.fingerprint)
    ).scalar()
    return None if position is None else request.accepted(position)


# ---- claim, heartbeat, commit ------------------------------------------------------------------

# A worker's leases are few, and each is one entry of the index of leased mailboxes.
HELD = Statement("SELECT namespace, session_id, epoch FROM mailboxes WHERE owner = :worker")


@repeatable(
    "the leases name the worker as their owner, and it releases leases that it does not know: "
    "lease_ends.release_unknown"
)
def claim(
    connection: Connection,
    worker: str,
    *,
    namespaces: Collection[str] | None,
    slots: int,
    batch: int,
    lease_seconds: float,
    after: str = "",
    held: Mapping[str, int] = MappingProxyType({}),
    asked: list[str] | None = None,
) -> list[Lease]:
    """Lease at most ``slots`` sessions, each with at most ``batch`` messages.

    ``namespaces``: ``None`` means all of the database. Of one namespace the sessions that have been
    ready longest are taken. Several namespaces share the slots, see ``share_slots``: ``held`` are
    the slots that each of them has already, and the namespaces behind ``after`` go first. A share
    that a namespace can't use is left free. The cost depends neither on how many messages wait nor
    on how many namespaces have work. ``asked`` is set to the namespaces that got a share.
    """
    dialect = dialect_of(connection)
    if namespaces is not None and len(namespaces) == 1:
        shares = dict.fromkeys(namespaces, slots)
    else:
        # Enough to find a namespace without a slot for every free slot.
        found = dialect.ready_namespaces(connection, namespaces, after, slots + len(held))
        shares = share_slots(found, held, slots)
    if asked is not None:
        asked[:] = shares
    if not shares:
        return []
    return dialect.claim(connection, worker, shares, batch, lease_seconds)


@repeatable("a lease that is renewed again ends a little later, and only its holder may renew it")
def heartbeat(
    connection: Connection,
    worker: str,
    fences: Sequence[Fence],
    *,
    lease_seconds: float,
    wait_for_locks: bool = False,
) -> set[SessionKey]:
    """Renew leases, given by key and epoch, and return the keys of the renewed ones.

    A mailbox that another transaction has locked is passed over, so that it holds up no other
    lease. ``held_fences`` tells such a lease from a lost one. With ``wait_for_locks`` this waits
    for the lock instead, and leaves a lease that has run out meanwhile as it is.
    """
    return dialect_of(connection).heartbeat(
        connection, worker, fences, lease_seconds, wait_for_locks=wait_for_locks
    )


def held_fences(connection: Connection, worker: str) -> set[Fence]:
    """Return the key and epoch of each lease that a worker holds. One read by an index."""
    rows = HELD.rows(connection, {"worker": worker})
    return {((namespace, session_id), epoch) for namespace, session_id, epoch in rows}


def commit(
    connection: Connection, worker: str, turns: Sequence[Commit]
) -> list[bool | LeaseLost | TranscriptRewritten]:
    """Write each turn to its transcript, finish its messages and end its lease.

    Return true for each turn, or the reason why nothing of that turn has taken place. After
    ``TranscriptRewritten`` the lease is still held, until ``lease_ends.rerun`` or ``fail``. It is
    the answer too if a message has joined that the lease does not name: see ``find_joined``.

    Turns over answers to questions commit in a transaction only.
    """
    committed = dialect_of(connection).commit(connection, worker, turns)
    # A statement of its own sees answers that were requeued until the mailbox was locked.
    point_to_answers(
        connection,
        [
            turn.lease.key
            for turn, done in zip(turns, committed, strict=True)
            if done and turn.lease.deliveries[0].answers is not None
        ],
    )
    return [
        done or (LeaseLost if done is False else TranscriptRewritten)(turn.lease.session_id)
        for turn, done in zip(turns, committed, strict=True)
    ]


def find_committed(connection: Connection, turn: Commit) -> bool | None:
    """Return true if a turn whose answer was lost has been committed, ``None`` if not.

    Its message is then done, under the epoch of its lease. An attempt number would prove nothing:
    it comes again after a requeue.
    """
    delivery = turn.lease.deliveries[0]
    row = connection.execute(
        select(inbox.c.status, inbox.c.epoch).where(
            *is_message(turn.lease.namespace, turn.lease.session_id, delivery.position)
        )
    ).first()
    done = row is not None and tuple(row) == ("done", turn.lease.epoch)
    return True if done else None


# ---- requeue -----------------------------------------------------------------------------------


def requeue(connection: Connection, namespace: str, session_id: str, position: int) -> None:
    """Make a dead message pending again, before all that wait, under the same receipt.

    Raises ``UnknownReceipt``, ``SessionEnded``, and ``InvalidArgument`` if it is not dead.
    """
    key = (namespace, session_id)
    lock_mailboxes(connection, [key])
    message = connection.execute(
        select(inbox.c.status, inbox.c.answers, mailboxes.c.closed)
        .join(
            mailboxes,
            and_(
                mailboxes.c.namespace == inbox.c.namespace,
                mailboxes.c.session_id == inbox.c.session_id,
            ),
        )
        .where(*is_message(namespace, session_id, position))
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
        .where(*is_message(namespace, session_id, position))
        .values(status="pending", attempts=0, ahead=True, reruns=0, dead_at=None, finished_at=None)
    )
    idle = and_(
        mailboxes.c.ready_at.is_(None), mailboxes.c.wake_at.is_(None), mailboxes.c.owner.is_(None)
    )
    connection.execute(
        update(mailboxes)
        .where(*is_mailbox(key))
        .values(
            pending=mailboxes.c.pending + 1,
            ready_at=case((idle, now(connection)), else_=mailboxes.c.ready_at),
            **requeued_answer(message.answers, position),
        )
    )


def requeued_answer(answers: int | None, position: int) -> dict[str, Any]:
    """Return the columns of a mailbox whose dead answer is requeued: it is handled alone again.

    If another answer is unfinished, that one comes first: see ``point_to_answers``.
    """
    if answers is None:
        return {}
    return {"answer": func.coalesce(mailboxes.c.answer, position)}

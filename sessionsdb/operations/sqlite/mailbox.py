"""The hot transitions of a mailbox on SQLite.

The writing transaction is the only one. So a transition is a conditional UPDATE, and the number of
changed rows says whether it took place. Or its conditions are read before, by a statement of their
own. RETURNING would take longer, see ``Statement.changes``.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection

from sessionsdb.engine.sqlite.clock import stored_now
from sessionsdb.engine.statement import Statement
from sessionsdb.errors import InboxFull, SessionEnded, SessionsDBError, UnknownSession
from sessionsdb.operations.chains import chain_of
from sessionsdb.operations.fair_shares import in_rotation
from sessionsdb.operations.inbox_types import (
    DELIVERY_COLUMNS,
    SENT_COLUMNS,
    UNFINISHED_SQL,
    AnswerWanted,
    Commit,
    Delivery,
    Lease,
    Send,
    delivery_from,
    lease_from,
    sent_values,
    split_columns,
)
from sessionsdb.operations.keys import SessionKey
from sessionsdb.operations.session_rows import SESSION_COLUMNS
from sessionsdb.operations.sqlite.transcripts import advance
from sessionsdb.types import Limits, Receipt

KNOWN_KEY = Statement("""
SELECT position, fingerprint FROM inbox
WHERE namespace = :namespace AND session_id = :session_id AND idempotency_key = :key
""")

# Assigns the next position if the session is open, its inbox has room, and no question may take the
# message as its answer.
SEND = Statement("""
UPDATE mailboxes
SET tail = tail + 1,
    pending = pending + 1,
    ready_at = CASE
        WHEN ready_at IS NULL AND wake_at IS NULL AND owner IS NULL THEN :now
        ELSE ready_at
    END
WHERE namespace = :namespace AND session_id = :session_id
  AND NOT closed AND NOT accepts_message AND pending < :pending_limit
""")

# The position that SEND has assigned.
TAIL = Statement("""
SELECT tail FROM mailboxes WHERE namespace = :namespace AND session_id = :session_id
""")

# The reason why SEND assigned none.
REFUSED = Statement("""
SELECT closed, accepts_message FROM mailboxes
WHERE namespace = :namespace AND session_id = :session_id
""")

QUEUE = Statement(f"""
INSERT INTO inbox (namespace, session_id, position, {", ".join(SENT_COLUMNS)}, status, enqueued_at)
VALUES (:namespace, :session_id, :position, {sent_values(":")},
        'pending', :now)
""")

TOUCH = Statement("""
UPDATE sessions SET last_active = max(last_active, :now)
WHERE namespace = :namespace AND id = :session_id
""")

# The mailboxes that have been ready longest. The statement names its index: with statistics from a
# time of few mailboxes the planner would walk over all of them at a time of many. The last column
# says whether a message is ahead: few have one, and HEAD takes half of the time of HEAD_AHEAD.
READY = Statement("""
SELECT m.ready_at, m.namespace, m.session_id, m.head, m.tail, m.epoch, m.pending, m.answer,
       EXISTS (
           SELECT 1 FROM inbox AS i INDEXED BY ix_inbox_ahead
           WHERE i.namespace = m.namespace AND i.session_id = m.session_id AND i.ahead
       ) AS any_ahead
FROM mailboxes AS m INDEXED BY ix_mailboxes_ready
WHERE m.namespace = :namespace AND m.ready_at IS NOT NULL
ORDER BY m.ready_at, m.session_id LIMIT :slots
""")

# The first namespace behind another one that has a ready session: a step of a walk over the
# index that reads one entry for each namespace.
READY_NAMESPACE = Statement("""
SELECT namespace FROM mailboxes INDEXED BY ix_mailboxes_ready
WHERE ready_at IS NOT NULL AND namespace > :after
ORDER BY namespace LIMIT 1
""")

IS_READY = Statement("""
SELECT namespace FROM mailboxes INDEXED BY ix_mailboxes_ready
WHERE ready_at IS NOT NULL AND namespace = :namespace LIMIT 1
""")

# The messages at a mailbox's head, each with its session. A second statement for the session takes
# 4 µs more.
HEAD = Statement(f"""
SELECT {DELIVERY_COLUMNS}, {SESSION_COLUMNS}
FROM sessions AS s CROSS JOIN inbox AS i
WHERE s.namespace = :namespace AND s.id = :session_id
  AND i.namespace = :namespace AND i.session_id = :session_id
  AND i.position BETWEEN :head AND :tail
  AND NOT i.ahead AND i.status IN {UNFINISHED_SQL}
ORDER BY i.position LIMIT :batch
""")

# The same where messages are ahead: those come before others.
HEAD_AHEAD = Statement(f"""
SELECT {DELIVERY_COLUMNS}, {SESSION_COLUMNS}
FROM sessions AS s CROSS JOIN inbox AS i
WHERE s.namespace = :namespace AND s.id = :session_id
  AND i.namespace = :namespace AND i.session_id = :session_id AND i.position IN (
    SELECT position FROM (
        SELECT position FROM inbox
        WHERE namespace = :namespace AND session_id = :session_id AND ahead
          AND status IN {UNFINISHED_SQL}
        ORDER BY position LIMIT :batch
    )
    UNION ALL
    SELECT position FROM (
        SELECT position FROM inbox
        WHERE namespace = :namespace AND session_id = :session_id
          AND position BETWEEN :head AND :tail
          AND NOT ahead AND status IN {UNFINISHED_SQL}
        ORDER BY position LIMIT :batch
    )
)
ORDER BY i.ahead DESC, i.position LIMIT :batch
""")

# The answer to a question, which is delivered alone, before all other messages.
HEAD_ANSWER = Statement(f"""
SELECT {DELIVERY_COLUMNS}, {SESSION_COLUMNS}
FROM sessions AS s CROSS JOIN inbox AS i
WHERE s.namespace = :namespace AND s.id = :session_id
  AND i.namespace = :namespace AND i.session_id = :session_id AND i.position = :answer
  AND i.status IN {UNFINISHED_SQL}
""")

TAKE = Statement("""
UPDATE inbox
SET status = 'running', attempts = attempts + 1, claimed_at = :now, worker = :worker,
    epoch = :epoch
WHERE namespace = :namespace AND session_id = :session_id AND position = :position
""")

# The new head is the first delivered position. So holes before it are walked over once.
LEASE = Statement("""
UPDATE mailboxes
SET ready_at = NULL, owner = :worker, epoch = epoch + 1, lease_until = :lease_until,
    taken = :taken, head = max(head, :first), last_taken = :last
WHERE namespace = :namespace AND session_id = :session_id
""")

# The fence: it finds the lease if it is still held. The turn commits if the transcript is the same
# as at the claim, not rewritten, and if the worker knows of all messages of the turn. If not,
# nothing of the turn takes place.
FENCE = Statement("""
SELECT s.last_seq, s.rewrites = :rewrites AND m.taken = :answered AS same
FROM mailboxes AS m CROSS JOIN sessions AS s
WHERE m.namespace = :namespace AND m.session_id = :session_id
  AND m.owner = :worker AND m.epoch = :epoch
  AND s.namespace = :namespace AND s.id = :session_id
""")

RELEASE = Statement("""
UPDATE mailboxes
SET owner = NULL,
    lease_until = NULL,
    taken = 0,
    last_taken = 0,
    pending = pending - :answered,
    head = max(head, :last_position + 1),
    answer = NULL,
    ready_at = CASE WHEN pending > :answered THEN :now END
WHERE namespace = :namespace AND session_id = :session_id
""")

ADVANCE = Statement(f"""
UPDATE sessions {advance(":count")}
WHERE namespace = :namespace AND id = :session_id
""")

WRITE = Statement("""
INSERT INTO messages (namespace, session_id, seq, role, content, payload, created_at, position,
                      sender, sent_at, extra)
VALUES (:namespace, :session_id, :seq, :role, :content, :payload, :now, :position,
        :sender, :sent_at, :extra)
""")

FINISH = Statement("""
UPDATE inbox
SET status = 'done', finished_at = :now, error = NULL, ahead = false, joined = false,
    first_seq = :first_seq, last_seq = :last_seq, model = :model,
    input_tokens = coalesce(:input_tokens + coalesce(input_tokens, 0), input_tokens),
    output_tokens = coalesce(:output_tokens + coalesce(output_tokens, 0), output_tokens)
WHERE namespace = :namespace AND session_id = :session_id AND position = :position
""")

HEARTBEAT = Statement("""
UPDATE mailboxes SET lease_until = :lease_until
WHERE namespace = :namespace AND session_id = :session_id
  AND owner = :worker AND epoch = :epoch
RETURNING namespace, session_id
""")


def send(
    connection: Connection, requests: Sequence[Send], limits: Limits
) -> list[Receipt | SessionsDBError]:
    present = stored_now(connection)
    answers: list[Receipt | SessionsDBError] = []
    queued: list[tuple[Any, ...]] = []
    touched: dict[SessionKey, tuple[Any, ...]] = {}
    for request in requests:
        key = {"namespace": request.namespace, "session_id": request.session_id}
        if request.idempotency_key is not None:
            known = KNOWN_KEY.row(connection, key | {"key": request.idempotency_key})
            if known is not None:
                position, fingerprint = known
                answers.append(request.known(position, same=fingerprint == request.fingerprint))
                continue
        chain = chain_of(connection, request)
        moved = 0
        if chain is not None and chain.hops <= limits.hops:
            given = {**key, "now": present, "pending_limit": limits.pending}
            moved = SEND.changes(connection, given)
        if not moved:
            mailbox = REFUSED.row(connection, key)
            if mailbox is None:
                answers.append(UnknownSession(request.session_id))
            elif chain is None:
                answers.append(UnknownSession(str(request.sender), is_sender=True))
            elif mailbox[0]:
                answers.append(SessionEnded(request.session_id))
            elif chain.hops > limits.hops:
                answers.append(request.too_far(limits, chain.origin))
            elif mailbox[1]:
                answers.append(AnswerWanted())
            else:
                answers.append(InboxFull(request.session_id, limits.pending))
            continue
        assert chain is not None
        [[position]] = TAIL.rows(connection, key)
        answers.append(request.accepted(position))
        where = (request.namespace, request.session_id)
        queued.append((*where, position, *request.columns(chain), present))
        touched[where] = (present, *where)
    QUEUE.each(connection, queued)
    TOUCH.each(connection, list(touched.values()))
    return answers


def claim(
    connection: Connection,
    worker: str,
    shares: Mapping[str, int],
    batch: int,
    lease_seconds: float,
) -> list[Lease]:
    ready = [
        row
        for namespace, slots in shares.items()
        for row in READY.rows(connection, {"namespace": namespace, "slots": slots})
    ]
    present = stored_now(connection)
    lease_until = stored_now(connection, plus=lease_seconds)
    leases: list[Lease] = []
    leased: list[tuple[Any, ...]] = []
    taken: list[tuple[Any, ...]] = []
    for _, namespace, session_id, head, tail, epoch, unfinished, answer, any_ahead in ready:
        key = {"namespace": namespace, "session_id": session_id}
        if answer is None:
            statement = HEAD_AHEAD if any_ahead else HEAD
            rows = statement.rows(connection, {**key, "batch": batch, "head": head, "tail": tail})
        else:
            rows = HEAD_ANSWER.rows(connection, key | {"answer": answer})
        if not rows:
            continue  # the tables were changed by hand: there is nothing to lease
        waiting = [split_columns(row) for row in rows]
        session = waiting[0][1]
        deliveries = _alone_if_tried(
            [delivery_from(row, attempt=row.attempts + 1) for row, _ in waiting]
        )
        leases.append(lease_from(namespace, session, epoch + 1, deliveries, unfinished))
        normal = [one.position for one in deliveries if not one.ahead] or [0]
        leased.append(
            (worker, lease_until, len(deliveries), normal[0], normal[-1], namespace, session_id)
        )
        taken += [
            (present, worker, epoch + 1, namespace, session_id, one.position) for one in deliveries
        ]
    LEASE.each(connection, leased)
    TAKE.each(connection, taken)
    return leases


def ready_namespaces(
    connection: Connection, namespaces: Collection[str] | None, after: str, limit: int
) -> list[str]:
    if namespaces is not None:
        rotated = in_rotation(namespaces, after)
        ready = (name for name in rotated if IS_READY.row(connection, {"namespace": name}))
        return list(itertools.islice(ready, limit))
    ahead = _walk(connection, after, limit)
    behind = _walk(connection, "", limit - len(ahead)) if after else []
    return ahead + [name for name in behind if name <= after]


def _walk(connection: Connection, after: str, limit: int) -> list[str]:
    found: list[str] = []
    while len(found) < limit:
        row = READY_NAMESPACE.row(connection, {"after": found[-1] if found else after})
        if row is None:
            break
        found.append(row[0])
    return found


def _alone_if_tried(waiting: list[Delivery]) -> list[Delivery]:
    """A message that was tried before is delivered alone."""
    if waiting[0].attempt > 1:
        return waiting[:1]
    return list(itertools.takewhile(lambda delivery: delivery.attempt == 1, waiting))


def heartbeat(
    connection: Connection,
    worker: str,
    fences: Sequence[tuple[SessionKey, int]],
    lease_seconds: float,
) -> set[SessionKey]:
    lease_until = stored_now(connection, plus=lease_seconds)
    renewed: set[SessionKey] = set()
    for (namespace, session_id), epoch in fences:
        row = HEARTBEAT.row(
            connection,
            {
                "namespace": namespace,
                "session_id": session_id,
                "worker": worker,
                "epoch": epoch,
                "lease_until": lease_until,
            },
        )
        if row is not None:
            renewed.add((namespace, session_id))
    return renewed


def commit(connection: Connection, worker: str, turns: Sequence[Commit]) -> list[bool | None]:
    present = stored_now(connection)
    committed: list[bool | None] = []
    released: dict[SessionKey, tuple[Any, ...]] = {}
    advanced: list[tuple[Any, ...]] = []
    written: list[tuple[Any, ...]] = []
    finished: list[tuple[Any, ...]] = []
    for turn in turns:
        lease, key = turn.lease, turn.lease.key
        answered, count = len(lease.deliveries), len(turn.messages)
        held = FENCE.row(
            connection,
            {
                "namespace": lease.namespace,
                "session_id": lease.session_id,
                "worker": worker,
                "epoch": lease.epoch,
                "rewrites": lease.rewrites,
                "answered": answered,
            },
        )
        # The same lease twice in a list: the first one ends it.
        if held is None or key in released:
            committed.append(False)
            continue
        base, same = held
        if not same:
            committed.append(None)
            continue
        committed.append(True)
        released[key] = (answered, lease.last_position, answered, present, *key)
        advanced.append((count, count, present, present, *key))
        for seq, (message, beside) in enumerate(
            zip(turn.messages, turn.attributes, strict=True), base + 1
        ):
            written.append((*key, seq, *message, present, *beside[:-1]))
        for position, input_tokens, output_tokens in turn.answered:
            usage = (turn.model, input_tokens, output_tokens)
            finished.append((present, base + 1, base + count, *usage, *key, position))
    RELEASE.each(connection, list(released.values()))
    ADVANCE.each(connection, advanced)
    WRITE.each(connection, written)
    FINISH.each(connection, finished)
    return committed

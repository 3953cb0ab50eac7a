"""The hot transitions of a mailbox on PostgreSQL: one statement each, for a list of requests.

All have the same shape. The mailboxes are locked first, in key order, and are read in their current
state. Everything else in a statement is read as of its snapshot, which may be older. So each
decision is made by the locked row, the clock is read while the locks are held, and only then the
session rows are locked, in key order too.

The values of a request are joined once, with the row that it locks, and are carried along from
there. The planner takes an array for one row or ten, and joins two of them by comparing each row
with each.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

from sqlalchemy import Connection

from sessionsdb.engine.postgresql.arrays import ArrayTable
from sessionsdb.engine.statement import Statement
from sessionsdb.errors import InboxFull, SessionEnded, SessionsDBError, UnknownSession
from sessionsdb.operations.inbox_types import (
    DELIVERY_COLUMNS,
    SENT_COLUMNS,
    UNFINISHED_SQL,
    Chain,
    Commit,
    Lease,
    Send,
    delivery_from,
    lease_from,
    sent_values,
    split_columns,
)
from sessionsdb.operations.keys import SessionKey
from sessionsdb.operations.postgresql.transcripts import advance
from sessionsdb.operations.session_rows import SESSION_COLUMNS
from sessionsdb.types import Limits, Receipt

_LOOKUPS = ArrayTable(
    "r", namespace="text", session_id="text", key="text", sender="text", ordinality="number"
)

# For requests with a key or a sender, before they are queued: the message that has the key already,
# and the place in a chain of the furthest message that the sender is handling. The latter is found
# through the sender's mailbox, by the primary key. Nothing is locked. A turn that ends at this
# moment counts as one that still runs. Of two sends with one key at this moment the later fails in
# uq_inbox_idempotency, and finds the first one's row when it is repeated.
LOOK_UP = Statement(f"""
SELECT k.position, k.fingerprint, x.hops, x.origin
FROM {_LOOKUPS}
LEFT JOIN inbox AS k ON k.namespace = r.namespace AND k.session_id = r.session_id
    AND k.idempotency_key = r.key
LEFT JOIN LATERAL (
    SELECT i.hops, i.origin
    FROM mailboxes AS b, LATERAL (
        SELECT n.hops, n.origin FROM inbox AS n
        WHERE n.namespace = b.namespace AND n.session_id = b.session_id
          AND n.position BETWEEN b.head AND b.head + b.taken - 1 AND n.status = 'running'
        UNION ALL
        SELECT n.hops, n.origin FROM inbox AS n
        WHERE n.namespace = b.namespace AND n.session_id = b.session_id
          AND n.requeued AND n.status = 'running'
    ) AS i
    WHERE b.namespace = r.namespace AND b.session_id = r.sender AND b.taken > 0
    ORDER BY i.hops DESC
    LIMIT 1
) AS x ON true
ORDER BY r.number
""")

_INBOXES = ArrayTable("r", namespace="text", session_id="text", count="bigint", ordinality="number")
_SENT = ArrayTable(
    "w",
    number="bigint",
    ordinal="bigint",
    **{name: "bigint" if name == "hops" else "text" for name in SENT_COLUMNS},
)

# Queues the messages of each session behind its tail, in the order of their ordinals, if the
# session is open and as far as its inbox has room. A mailbox without a new message is locked all
# the same. So the transaction commits something, and the row of a known key has reached the
# standbys that commits wait for.
SEND = Statement(f"""
WITH mailbox AS MATERIALIZED (
    SELECT m.namespace, m.session_id, m.tail, m.closed, r.number,
           CASE
               WHEN m.closed THEN 0
               ELSE greatest(least(r.count, :pending_limit - m.pending), 0)
           END AS room
    FROM {_INBOXES}
    JOIN mailboxes AS m ON m.namespace = r.namespace AND m.session_id = r.session_id
    ORDER BY m.namespace, m.session_id
    FOR NO KEY UPDATE OF m
),
clock AS MATERIALIZED (
    SELECT clock_timestamp() AS now, count(*) AS locked FROM mailbox
),
moved AS (
    UPDATE mailboxes AS m
    SET tail = m.tail + b.room,
        pending = m.pending + b.room,
        ready_at = CASE
            WHEN m.ready_at IS NULL AND m.wake_at IS NULL AND m.owner IS NULL THEN clock.now
            ELSE m.ready_at
        END
    FROM clock, mailbox AS b
    WHERE m.namespace = b.namespace AND m.session_id = b.session_id AND b.room > 0
),
queued AS (
    INSERT INTO inbox (namespace, session_id, position, {", ".join(SENT_COLUMNS)},
                       status, enqueued_at)
    SELECT b.namespace, b.session_id, b.tail + w.ordinal, {sent_values("w.")},
           'pending', clock.now
    FROM clock, mailbox AS b
    JOIN {_SENT} ON w.number = b.number AND w.ordinal <= b.room
),
session AS MATERIALIZED (
    SELECT s.namespace, s.id
    FROM mailbox AS b JOIN sessions AS s ON s.namespace = b.namespace AND s.id = b.session_id
    WHERE b.room > 0 AND (SELECT locked FROM clock) > 0
    ORDER BY s.namespace, s.id
    FOR NO KEY UPDATE OF s
),
touched AS (
    UPDATE sessions AS s
    SET last_active = greatest(s.last_active, clock.now)
    FROM clock, session AS l
    WHERE s.namespace = l.namespace AND s.id = l.id
)
SELECT number, closed, tail, room FROM mailbox
""")

# Leases the mailboxes that have been ready longest, and delivers the messages at their heads,
# requeued messages before others. Mailboxes that another worker is claiming are passed over. A
# message that was tried before is delivered alone, so that one bad message takes no others with it.
# The status of a message is checked by the UPDATE, on the row itself. A mailbox that has changed
# since this statement's snapshot yields no rows, stays ready, and is claimed by the next claim.
CLAIM = Statement(f"""
WITH named AS MATERIALIZED (
    SELECT c.*
    FROM unnest(CAST(:namespaces AS text[])) AS n(namespace), LATERAL (
        SELECT m.namespace, m.session_id, m.head, m.tail, m.epoch, m.pending, m.ready_at
        FROM mailboxes AS m
        WHERE m.namespace = n.namespace AND m.ready_at IS NOT NULL
        ORDER BY m.ready_at, m.session_id
        LIMIT :slots
        FOR NO KEY UPDATE SKIP LOCKED
    ) AS c
),
anywhere AS MATERIALIZED (
    SELECT m.namespace, m.session_id, m.head, m.tail, m.epoch, m.pending, m.ready_at
    FROM mailboxes AS m
    WHERE m.ready_at IS NOT NULL AND CAST(:everywhere AS boolean)
    ORDER BY m.ready_at, m.namespace, m.session_id
    LIMIT :slots
    FOR NO KEY UPDATE SKIP LOCKED
),
candidate AS MATERIALIZED (
    SELECT * FROM (SELECT * FROM named UNION ALL SELECT * FROM anywhere) AS u
    ORDER BY u.ready_at
    LIMIT :slots
),
clock AS MATERIALIZED (
    SELECT clock_timestamp() AS now, count(*) AS locked FROM candidate
),
waiting AS MATERIALIZED (
    SELECT c.namespace, c.session_id, c.epoch, c.pending, x.position,
           row_number() OVER first_ones AS ordinal,
           bool_or(x.attempts > 0) OVER first_ones AS tried
    FROM candidate AS c, LATERAL (
        SELECT * FROM (
            (SELECT i.position, i.attempts FROM inbox AS i
             WHERE i.namespace = c.namespace AND i.session_id = c.session_id AND i.requeued
             ORDER BY i.position LIMIT :batch)
            UNION ALL
            (SELECT i.position, i.attempts FROM inbox AS i
             WHERE i.namespace = c.namespace AND i.session_id = c.session_id
               AND i.position BETWEEN c.head AND c.tail
             ORDER BY i.position LIMIT :batch)
        ) AS u
        ORDER BY u.position LIMIT :batch
    ) AS x
    WINDOW first_ones AS (PARTITION BY c.namespace, c.session_id ORDER BY x.position)
),
-- As arrays, because the planner takes unnest for a few rows and looks each up by its key. It takes
-- a LIMIT by a parameter for a tenth of all ready mailboxes: with 10,000 sessions ready it walked
-- over the inbox, 40,000 rows and 25 ms for 8 leases.
chosen AS MATERIALIZED (
    SELECT array_agg(w.namespace) AS namespaces, array_agg(w.session_id) AS ids,
           array_agg(w.epoch) AS epochs, array_agg(w.pending) AS pendings,
           array_agg(w.position) AS positions
    FROM waiting AS w
    WHERE w.ordinal = 1 OR NOT w.tried
),
taken AS (
    UPDATE inbox AS i
    SET status = 'running', attempts = i.attempts + 1, claimed_at = clock.now, worker = :worker
    FROM clock, chosen AS c,
         unnest(c.namespaces, c.ids, c.epochs, c.pendings, c.positions)
            AS w(namespace, session_id, epoch, pending, position)
    WHERE i.namespace = w.namespace AND i.session_id = w.session_id AND i.position = w.position
      AND i.status IN {UNFINISHED_SQL}
    RETURNING w.namespace, w.session_id, w.epoch + 1 AS epoch, w.pending, {DELIVERY_COLUMNS}
),
leased AS (
    UPDATE mailboxes AS m
    SET ready_at = NULL,
        owner = :worker,
        epoch = m.epoch + 1,
        lease_until = clock.now + make_interval(secs => CAST(:lease AS double precision)),
        taken = t.count
    FROM clock, (SELECT namespace, session_id, count(*) AS count FROM taken GROUP BY 1, 2) AS t
    WHERE m.namespace = t.namespace AND m.session_id = t.session_id
)
SELECT i.namespace, i.session_id, i.epoch, i.pending, {DELIVERY_COLUMNS}, {SESSION_COLUMNS}
FROM taken AS i JOIN sessions AS s ON s.namespace = i.namespace AND s.id = i.session_id
ORDER BY i.namespace, i.session_id, i.position
""")

_TURNS = ArrayTable(
    "r",
    namespace="text",
    session_id="text",
    epoch="bigint",
    count="bigint",
    model="text",
    answered="bigint",
    last_position="bigint",
    ordinality="number",
)
_WRITTEN = ArrayTable(
    "w",
    number="bigint",
    ordinal="bigint",
    role="text",
    content="text",
    payload="text",
    position="bigint",
)
_ANSWERED = ArrayTable(
    "a", number="bigint", position="bigint", input_tokens="bigint", output_tokens="bigint"
)

# The fence is checked first. A mailbox that is not this worker's at this epoch is not locked, and
# then nothing else of its turn takes place. The fence is one condition on both tables: by the owner
# alone the planner would search this worker's mailboxes, which it takes for few, and compare each
# of them with each request (1.1 ms of 4 for 64 turns).
COMMIT = Statement(f"""
WITH mailbox AS MATERIALIZED (
    SELECT m.namespace, m.session_id, r.count, r.model, r.answered, r.last_position, r.number
    FROM {_TURNS}
    JOIN mailboxes AS m ON m.namespace = r.namespace AND m.session_id = r.session_id
    WHERE r.epoch = CASE WHEN m.owner = :worker THEN m.epoch END
    ORDER BY m.namespace, m.session_id
    FOR NO KEY UPDATE OF m
),
clock AS MATERIALIZED (
    SELECT clock_timestamp() AS now, count(*) AS locked FROM mailbox
),
session AS MATERIALIZED (
    SELECT s.namespace, s.id, b.number, b.count, b.model
    FROM mailbox AS b JOIN sessions AS s ON s.namespace = b.namespace AND s.id = b.session_id
    WHERE (SELECT locked FROM clock) > 0
    ORDER BY s.namespace, s.id
    FOR NO KEY UPDATE OF s
),
changed AS (
    UPDATE sessions AS s {advance("l.count", now="clock.now")}
    FROM clock, session AS l
    WHERE s.namespace = l.namespace AND s.id = l.id
    RETURNING l.number, l.model, s.namespace, s.id, s.last_seq - l.count AS base, s.last_seq
),
written AS (
    INSERT INTO messages
        (namespace, session_id, seq, role, content, payload, created_at, position)
    SELECT c.namespace, c.id, c.base + w.ordinal, w.role, w.content, w.payload, clock.now,
           w.position
    FROM clock, changed AS c JOIN {_WRITTEN} ON w.number = c.number
),
finished AS (
    UPDATE inbox AS i
    SET status = 'done', finished_at = clock.now, error = NULL, requeued = false,
        first_seq = c.base + 1, last_seq = c.last_seq, model = c.model,
        input_tokens = a.input_tokens, output_tokens = a.output_tokens
    FROM clock, changed AS c JOIN {_ANSWERED} ON a.number = c.number
    WHERE i.namespace = c.namespace AND i.session_id = c.id AND i.position = a.position
),
released AS (
    UPDATE mailboxes AS m
    SET owner = NULL,
        lease_until = NULL,
        taken = 0,
        pending = m.pending - b.answered,
        head = greatest(m.head, b.last_position + 1),
        ready_at = CASE WHEN m.pending > b.answered THEN clock.now END
    FROM clock, mailbox AS b
    WHERE m.namespace = b.namespace AND m.session_id = b.session_id
)
SELECT number FROM mailbox
""")

_FENCES = ArrayTable("r", namespace="text", session_id="text", epoch="bigint")

# All leases of a worker at once. A lease that is not returned was lost or cancelled.
HEARTBEAT = Statement(f"""
WITH held AS MATERIALIZED (
    SELECT m.namespace, m.session_id
    FROM mailboxes AS m
    JOIN {_FENCES} ON m.namespace = r.namespace AND m.session_id = r.session_id
    WHERE r.epoch = CASE WHEN m.owner = :worker THEN m.epoch END
    ORDER BY m.namespace, m.session_id
    FOR NO KEY UPDATE OF m
)
UPDATE mailboxes AS m
SET lease_until = clock_timestamp() + make_interval(secs => CAST(:lease AS double precision))
FROM held AS h
WHERE m.namespace = h.namespace AND m.session_id = h.session_id
RETURNING m.namespace, m.session_id
""")


def send(
    connection: Connection, requests: Sequence[Send], limits: Limits
) -> list[Receipt | SessionsDBError]:
    looked_up = _look_up(connection, requests)
    numbers: dict[SessionKey, int] = {}
    counts: list[int] = []
    ordinals: list[tuple[int, int]] = []
    """For each request the number of its session, and its ordinal among the session's messages."""
    sent: list[tuple[Any, ...]] = []
    for request, (known, chain) in zip(requests, looked_up, strict=True):
        number = numbers.setdefault((request.namespace, request.session_id), len(numbers) + 1)
        if number > len(counts):
            counts.append(0)
        if known is not None or chain.hops > limits.hops:
            ordinals.append((number, 0))
            continue
        ordinal = counts[number - 1] = counts[number - 1] + 1
        ordinals.append((number, ordinal))
        sent.append((number, ordinal, *request.columns(chain)))
    inboxes = [(*key, count) for key, count in zip(numbers, counts, strict=True)]
    rows = SEND.rows(
        connection,
        {
            **_INBOXES.parameters(inboxes),
            **_SENT.parameters(sent),
            "pending_limit": limits.pending,
        },
    )
    mailboxes = {number: (closed, tail, room) for number, closed, tail, room in rows}
    answers: list[Receipt | SessionsDBError] = []
    for request, (known, chain), (number, ordinal) in zip(
        requests, looked_up, ordinals, strict=True
    ):
        if known is not None:
            position, fingerprint = known
            answers.append(request.known(position, same=fingerprint == request.fingerprint))
            continue
        mailbox = mailboxes.get(number)
        if mailbox is None:
            answers.append(UnknownSession(request.session_id))
            continue
        closed, tail, room = mailbox
        if 0 < ordinal <= room:
            answers.append(request.accepted(tail + ordinal))
        elif closed:
            answers.append(SessionEnded(request.session_id))
        elif not ordinal:
            answers.append(request.too_far(limits, chain.origin))
        else:
            answers.append(InboxFull(request.session_id, limits.pending))
    return answers


_Known = tuple[int, str]
"""Position and fingerprint of a message."""


def _look_up(connection: Connection, requests: Sequence[Send]) -> list[tuple[_Known | None, Chain]]:
    """For each request the message that has its key already, and the request's place in a chain."""
    indices = [
        index
        for index, request in enumerate(requests)
        if request.idempotency_key is not None or request.needs_chain
    ]
    answers: list[tuple[_Known | None, Chain]] = [(None, r.chain_behind(None)) for r in requests]
    if not indices:
        return answers
    lookups = [
        (r.namespace, r.session_id, r.idempotency_key, r.sender if r.needs_chain else None)
        for r in (requests[index] for index in indices)
    ]
    rows = LOOK_UP.rows(connection, _LOOKUPS.parameters(lookups))
    for index, (position, fingerprint, hops, origin) in zip(indices, rows, strict=True):
        known = None if position is None else (position, fingerprint)
        running = None if hops is None else Chain(hops, origin)
        answers[index] = (known, requests[index].chain_behind(running))
    return answers


_LEASE = itemgetter(0, 1, 2, 3)


def claim(
    connection: Connection,
    worker: str,
    namespaces: Collection[str] | None,
    slots: int,
    batch: int,
    lease_seconds: float,
) -> list[Lease]:
    rows = CLAIM.rows(
        connection,
        {
            "namespaces": [] if namespaces is None else sorted(namespaces),
            "everywhere": namespaces is None,
            "slots": slots,
            "batch": batch,
            "worker": worker,
            "lease": lease_seconds,
        },
    )
    leases = []
    for (namespace, _session_id, epoch, unfinished), group in groupby(rows, key=_LEASE):
        taken = [split_columns(columns) for _, _, _, _, *columns in group]
        deliveries = [delivery_from(row, attempt=row.attempts) for row, _ in taken]
        leases.append(lease_from(namespace, taken[0][1], epoch, deliveries, unfinished))
    return leases


def heartbeat(
    connection: Connection,
    worker: str,
    fences: Sequence[tuple[SessionKey, int]],
    lease_seconds: float,
) -> set[SessionKey]:
    rows = HEARTBEAT.rows(
        connection,
        {
            **_FENCES.parameters([(*key, epoch) for key, epoch in fences]),
            "worker": worker,
            "lease": lease_seconds,
        },
    )
    return {(namespace, session_id) for namespace, session_id in rows}


def commit(connection: Connection, worker: str, turns: Sequence[Commit]) -> list[bool]:
    positions = [turn.lease.positions for turn in turns]
    rows = COMMIT.rows(
        connection,
        {
            "worker": worker,
            **_TURNS.parameters(
                [
                    (
                        *turn.lease.key,
                        turn.lease.epoch,
                        len(turn.messages),
                        turn.model,
                        len(delivered),
                        delivered[-1],
                    )
                    for turn, delivered in zip(turns, positions, strict=True)
                ]
            ),
            **_WRITTEN.parameters(
                [
                    (number, ordinal, *message, position)
                    for number, turn in enumerate(turns, 1)
                    for ordinal, (message, position) in enumerate(
                        zip(turn.messages, turn.positions, strict=True), 1
                    )
                ]
            ),
            **_ANSWERED.parameters(
                [
                    (number, *answered)
                    for number, turn in enumerate(turns, 1)
                    for answered in turn.answered
                ]
            ),
        },
    )
    committed = {number for (number,) in rows}
    return [number in committed for number in range(1, len(turns) + 1)]

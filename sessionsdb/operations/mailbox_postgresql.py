"""The hot transitions of a mailbox on PostgreSQL: one statement each, over a list of requests.

All have the same shape. The mailboxes are locked first, in key order, and are seen as they are
now; whatever else a statement reads, it sees as of its snapshot, which may be older. So every
decision is made by the locked row, the clock is read when the locks are held, and only then the
session rows are locked, in key order too.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from sqlalchemy import Connection

from sessionsdb.errors import InboxFull, SessionEnded, SessionsDBError, UnknownSession
from sessionsdb.operations.arrays import column, columns
from sessionsdb.operations.deliveries import Commit, Lease, Send
from sessionsdb.operations.deliveries import delivery as delivery_of
from sessionsdb.operations.deliveries import lease as lease_of
from sessionsdb.operations.locks import Key
from sessionsdb.operations.registry import SessionRow
from sessionsdb.operations.statement import Statement
from sessionsdb.types import Limits, Receipt

# Queues each request whose session exists, is open and has room: its place behind the mailbox's
# tail becomes its position. A request whose idempotency key is known moves nothing. Two sends of
# one key at the same moment meet in uq_inbox_idempotency: the later statement fails as a whole,
# and finds the first one's row when it is repeated.
#
# A sender's hops come from the messages it is running: they are found through its mailbox, by the
# primary key, and are not locked. A turn that ends in this moment is one that still ran. Requests
# without a sender, or that say their hops, look at nothing.
SEND = Statement("""
WITH request AS MATERIALIZED (
    SELECT * FROM unnest(
        CAST(:namespaces AS text[]), CAST(:ids AS text[]), CAST(:contents AS text[]),
        CAST(:payloads AS text[]), CAST(:senders AS text[]), CAST(:keys AS text[]),
        CAST(:fingerprints AS text[]), CAST(:hops AS bigint[]), CAST(:origins AS text[]),
        CAST(:traces AS text[])
    ) WITH ORDINALITY AS
        r(namespace, session_id, content, payload, sender, key, fingerprint, hops, origin, trace,
          number)
),
chain AS MATERIALIZED (
    SELECT r.number,
           coalesce(r.hops, x.hops + 1, 1) AS hops,
           coalesce(r.origin, x.origin, r.sender) AS origin
    FROM request AS r
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
    ) AS x ON r.hops IS NULL
    WHERE r.sender IS NOT NULL
),
mailbox AS MATERIALIZED (
    SELECT m.namespace, m.session_id, m.tail, m.pending, m.closed
    FROM mailboxes AS m
    WHERE (m.namespace, m.session_id) IN (SELECT r.namespace, r.session_id FROM request AS r)
    ORDER BY m.namespace, m.session_id
    FOR NO KEY UPDATE OF m
),
clock AS MATERIALIZED (
    SELECT clock_timestamp() AS now, count(*) AS locked FROM mailbox
),
known AS MATERIALIZED (
    SELECT r.number, x.position, x.fingerprint = r.fingerprint AS same
    FROM request AS r
    JOIN inbox AS x ON x.namespace = r.namespace AND x.session_id = r.session_id
        AND x.idempotency_key = r.key
),
fresh AS (
    SELECT r.namespace, r.session_id, r.content, r.payload, r.sender, r.key, r.fingerprint,
           r.trace, r.number, coalesce(c.hops, 0) AS hops, c.origin, m.tail, m.pending,
           row_number() OVER (PARTITION BY r.namespace, r.session_id ORDER BY r.number) AS place
    FROM request AS r
    JOIN mailbox AS m ON m.namespace = r.namespace AND m.session_id = r.session_id
    LEFT JOIN chain AS c ON c.number = r.number
    WHERE NOT m.closed AND coalesce(c.hops, 0) <= :hop_limit
      AND NOT EXISTS (SELECT FROM known AS k WHERE k.number = r.number)
),
accepted AS MATERIALIZED (
    SELECT f.*, f.tail + f.place AS position FROM fresh AS f
    WHERE f.pending + f.place <= :pending_limit
),
moved AS (
    UPDATE mailboxes AS m
    SET tail = m.tail + a.count,
        pending = m.pending + a.count,
        ready_at = CASE
            WHEN m.ready_at IS NULL AND m.wake_at IS NULL AND m.owner IS NULL THEN clock.now
            ELSE m.ready_at
        END
    FROM clock, (
        SELECT namespace, session_id, count(*) AS count FROM accepted GROUP BY 1, 2
    ) AS a
    WHERE m.namespace = a.namespace AND m.session_id = a.session_id
),
queued AS (
    INSERT INTO inbox (namespace, session_id, position, status, content, payload, sender,
                       hops, origin, trace, idempotency_key, fingerprint, enqueued_at)
    SELECT a.namespace, a.session_id, a.position, 'pending', a.content, a.payload, a.sender,
           a.hops, a.origin, a.trace, a.key, a.fingerprint, clock.now
    FROM accepted AS a, clock
),
session AS MATERIALIZED (
    SELECT s.namespace, s.id
    FROM sessions AS s
    WHERE (s.namespace, s.id) IN (SELECT a.namespace, a.session_id FROM accepted AS a)
      AND (SELECT locked FROM clock) > 0
    ORDER BY s.namespace, s.id
    FOR NO KEY UPDATE OF s
),
touched AS (
    UPDATE sessions AS s
    SET last_active = greatest(s.last_active, clock.now)
    FROM clock, session AS l
    WHERE s.namespace = l.namespace AND s.id = l.id
)
SELECT m.closed, k.position AS known_position, k.same, a.position,
       c.hops > :hop_limit AS too_far, c.origin
FROM request AS r
LEFT JOIN chain AS c ON c.number = r.number
LEFT JOIN mailbox AS m ON m.namespace = r.namespace AND m.session_id = r.session_id
LEFT JOIN known AS k ON k.number = r.number
LEFT JOIN accepted AS a ON a.number = r.number
ORDER BY r.number
""")

# Leases the mailboxes that have been ready longest and hands out the messages at their heads,
# requeued ones before others. Mailboxes that somebody else is claiming are passed over. A message
# that was tried before is handed out alone, so that one bad message can't take others with it.
# What the inbox rows say is checked on the rows themselves, by the UPDATE: a mailbox that moved on
# after this statement's snapshot yields no rows, stays ready, and is claimed by the next one.
CLAIM = Statement("""
WITH named AS MATERIALIZED (
    SELECT c.*
    FROM unnest(CAST(:namespaces AS text[])) AS n(namespace), LATERAL (
        SELECT m.namespace, m.session_id, m.head, m.tail, m.ready_at
        FROM mailboxes AS m
        WHERE m.namespace = n.namespace AND m.ready_at IS NOT NULL
        ORDER BY m.ready_at, m.session_id
        LIMIT :slots
        FOR NO KEY UPDATE SKIP LOCKED
    ) AS c
),
anywhere AS MATERIALIZED (
    SELECT m.namespace, m.session_id, m.head, m.tail, m.ready_at
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
    SELECT c.namespace, c.session_id, x.position,
           row_number() OVER first_ones AS place,
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
-- As arrays, because the planner takes unnest for a few rows and looks each up by its key. A LIMIT
-- by a parameter it takes for a tenth of what is ready: with 10,000 sessions ready it walked over
-- the inbox, 40,000 rows and 25 ms for 8 leases.
chosen AS MATERIALIZED (
    SELECT array_agg(w.namespace) AS namespaces, array_agg(w.session_id) AS ids,
           array_agg(w.position) AS positions
    FROM waiting AS w
    WHERE w.place = 1 OR NOT w.tried
),
taken AS (
    UPDATE inbox AS i
    SET status = 'running', attempts = i.attempts + 1, claimed_at = clock.now, worker = :worker
    FROM clock, chosen AS c,
         unnest(c.namespaces, c.ids, c.positions) AS w(namespace, session_id, position)
    WHERE i.namespace = w.namespace AND i.session_id = w.session_id AND i.position = w.position
      AND i.status IN ('pending', 'running')
    RETURNING i.namespace, i.session_id, i.position, i.content, i.payload, i.sender,
              i.hops, i.origin, i.trace, i.attempts, i.enqueued_at
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
    RETURNING m.namespace, m.session_id, m.epoch, m.pending - m.taken AS waiting
)
SELECT l.namespace, l.session_id, l.epoch, l.waiting,
       t.position, t.content, t.payload, t.sender, t.hops, t.origin, t.trace, t.attempts,
       t.enqueued_at,
       s.id, s.channel, s.peer, s.created_at, s.last_active, s.message_count, s.parent_id,
       s.root_id, s.model, s.system, s.tools, s.metadata, s.version, s.ended_at, s.end_reason
FROM leased AS l
JOIN taken AS t ON t.namespace = l.namespace AND t.session_id = l.session_id
JOIN sessions AS s ON s.namespace = l.namespace AND s.id = l.session_id
ORDER BY l.namespace, l.session_id, t.position
""")

# The fence is the first thing read: a mailbox that is not this worker's at this epoch is not
# among the locked ones, and then nothing else of its turn happens.
COMMIT = Statement("""
WITH request AS MATERIALIZED (
    SELECT * FROM unnest(
        CAST(:namespaces AS text[]), CAST(:ids AS text[]), CAST(:epochs AS bigint[]),
        CAST(:counts AS bigint[]), CAST(:models AS text[])
    ) WITH ORDINALITY AS r(namespace, session_id, epoch, count, model, number)
),
mailbox AS MATERIALIZED (
    SELECT m.namespace, m.session_id, r.number
    FROM mailboxes AS m
    JOIN request AS r ON m.namespace = r.namespace AND m.session_id = r.session_id
    WHERE m.owner = :worker AND m.epoch = r.epoch
    ORDER BY m.namespace, m.session_id
    FOR NO KEY UPDATE OF m
),
clock AS MATERIALIZED (
    SELECT clock_timestamp() AS now, count(*) AS locked FROM mailbox
),
answered AS MATERIALIZED (
    SELECT * FROM unnest(
        CAST(:answered_numbers AS bigint[]), CAST(:answered_positions AS bigint[]),
        CAST(:input_tokens AS bigint[]), CAST(:output_tokens AS bigint[])
    ) AS a(number, position, input_tokens, output_tokens)
),
session AS MATERIALIZED (
    SELECT s.namespace, s.id, m.number
    FROM sessions AS s
    JOIN mailbox AS m ON s.namespace = m.namespace AND s.id = m.session_id
    WHERE (SELECT locked FROM clock) > 0
    ORDER BY s.namespace, s.id
    FOR NO KEY UPDATE OF s
),
changed AS (
    UPDATE sessions AS s
    SET version = s.version + 1,
        last_seq = s.last_seq + r.count,
        message_count = s.message_count + r.count,
        updated_at = greatest(s.updated_at, clock.now),
        last_active = greatest(s.last_active, clock.now)
    FROM clock, session AS l JOIN request AS r ON r.number = l.number
    WHERE s.namespace = l.namespace AND s.id = l.id
    RETURNING l.number, s.namespace, s.id, s.last_seq - r.count AS base, s.last_seq
),
written AS (
    INSERT INTO messages
        (namespace, session_id, seq, role, content, payload, created_at, position)
    SELECT c.namespace, c.id, c.base + w.place, w.role, w.content, w.payload, clock.now,
           w.position
    FROM clock, changed AS c JOIN unnest(
        CAST(:numbers AS bigint[]), CAST(:places AS bigint[]), CAST(:roles AS text[]),
        CAST(:contents AS text[]), CAST(:payloads AS text[]), CAST(:positions AS bigint[])
    ) AS w(number, place, role, content, payload, position) ON w.number = c.number
),
finished AS (
    UPDATE inbox AS i
    SET status = 'done', finished_at = clock.now, error = NULL, requeued = false,
        first_seq = c.base + 1, last_seq = c.last_seq, model = r.model,
        input_tokens = a.input_tokens, output_tokens = a.output_tokens
    FROM clock, changed AS c
    JOIN answered AS a ON a.number = c.number
    JOIN request AS r ON r.number = c.number
    WHERE i.namespace = c.namespace AND i.session_id = c.id AND i.position = a.position
),
released AS (
    UPDATE mailboxes AS m
    SET owner = NULL,
        lease_until = NULL,
        taken = 0,
        pending = m.pending - a.count,
        head = greatest(m.head, a.last_position + 1),
        ready_at = CASE WHEN m.pending > a.count THEN clock.now END
    FROM clock, (
        SELECT b.namespace, b.session_id, count(*) AS count, max(a.position) AS last_position
        FROM mailbox AS b JOIN answered AS a ON a.number = b.number
        GROUP BY 1, 2
    ) AS a
    WHERE m.namespace = a.namespace AND m.session_id = a.session_id
)
SELECT m.number IS NOT NULL AS held
FROM request AS r LEFT JOIN mailbox AS m ON m.number = r.number
ORDER BY r.number
""")

# All leases of a worker at once. What does not come back was lost or cancelled.
HEARTBEAT = Statement("""
WITH held AS MATERIALIZED (
    SELECT m.namespace, m.session_id
    FROM mailboxes AS m
    JOIN unnest(CAST(:namespaces AS text[]), CAST(:ids AS text[]), CAST(:epochs AS bigint[]))
        AS r(namespace, session_id, epoch)
        ON m.namespace = r.namespace AND m.session_id = r.session_id
    WHERE m.owner = :worker AND m.epoch = r.epoch
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
    rows = SEND.rows(
        connection,
        {
            "namespaces": [r.namespace for r in requests],
            "ids": [r.session_id for r in requests],
            "contents": [r.message.content for r in requests],
            "payloads": column([r.message.payload for r in requests]),
            "senders": column([r.sender for r in requests]),
            "keys": column([r.idempotency_key for r in requests]),
            "fingerprints": [r.fingerprint for r in requests],
            "hops": column([None if r.chain is None else r.chain.hops for r in requests]),
            "origins": column([None if r.chain is None else r.chain.origin for r in requests]),
            "traces": column([r.trace for r in requests]),
            "pending_limit": limits.pending,
            "hop_limit": limits.hops,
        },
    )
    answers: list[Receipt | SessionsDBError] = []
    for request, row in zip(requests, rows, strict=True):
        closed, known_position, same, position, too_far, origin = row
        if position is not None:
            answers.append(request.accepted(position))
        elif closed is None:
            answers.append(UnknownSession(request.session_id))
        elif known_position is not None:
            answers.append(request.known(known_position, same=same))
        elif closed:
            answers.append(SessionEnded(request.session_id))
        elif too_far:
            answers.append(request.too_far(limits, origin))
        else:
            answers.append(InboxFull(request.session_id, limits.pending))
    return answers


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
    leases: dict[Key, Lease] = {}
    for namespace, session_id, epoch, waiting, *delivered in rows:
        key = (namespace, session_id)
        if key not in leases:
            leases[key] = lease_of(namespace, SessionRow(*delivered[9:]), epoch, waiting)
        leases[key].deliveries.append(delivery_of(*delivered[:9]))
    return list(leases.values())


def heartbeat(
    connection: Connection, worker: str, held: Sequence[tuple[Key, int]], lease_seconds: float
) -> set[Key]:
    rows = HEARTBEAT.rows(
        connection,
        {
            "namespaces": [key[0] for key, _ in held],
            "ids": [key[1] for key, _ in held],
            "epochs": [epoch for _, epoch in held],
            "worker": worker,
            "lease": lease_seconds,
        },
    )
    return {(namespace, session_id) for namespace, session_id in rows}


def commit(connection: Connection, worker: str, turns: Sequence[Commit]) -> list[bool]:
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
            zip(turn.messages, turn.positions, strict=True), 1
        )
    ]
    answered_numbers, answered_positions, input_tokens, output_tokens = columns(answered, 4)
    numbers, places, roles, contents, payloads, positions = columns(written, 6)
    rows = COMMIT.rows(
        connection,
        {
            "namespaces": [turn.lease.namespace for turn in turns],
            "ids": [turn.lease.session.id for turn in turns],
            "epochs": [turn.lease.epoch for turn in turns],
            "counts": [len(turn.messages) for turn in turns],
            "models": column([turn.model for turn in turns]),
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

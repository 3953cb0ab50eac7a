"""The hot transitions of a mailbox on PostgreSQL: one statement each, over a list of requests.

All have the same shape. The mailboxes are locked first, in key order, and are seen as they are
now; whatever else a statement reads, it sees as of its snapshot, which may be older. So every
decision is made by the locked row, the clock is read when the locks are held, and only then the
session rows are locked, in key order too. What a request brings comes along with the row it has
locked: lists that are joined with each other are compared each with each, since the planner takes
them for a row or ten.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

from sqlalchemy import Connection

from sessionsdb.engine.postgresql.arrays import column, columns
from sessionsdb.engine.statement import Statement
from sessionsdb.errors import InboxFull, SessionEnded, SessionsDBError, UnknownSession
from sessionsdb.operations.inbox_types import Chain, Commit, Lease, Send
from sessionsdb.operations.inbox_types import make_delivery as delivery_of
from sessionsdb.operations.inbox_types import make_lease as lease_of
from sessionsdb.operations.registry import SessionRow
from sessionsdb.operations.row_locks import SessionKey
from sessionsdb.types import Limits, Receipt

# What is to be known of requests with a key or a sender before they are queued: the message that
# has the key already, and how far those have come that the sender is running, which are found
# through its mailbox, by the primary key. Nothing is locked. A turn that ends in this moment is one
# that still ran; and of two sends with one key in this moment the later fails in
# uq_inbox_idempotency, and finds the first one's row when it is repeated.
LOOK_UP = Statement("""
SELECT k.position, k.fingerprint, x.hops, x.origin
FROM unnest(
    CAST(:namespaces AS text[]), CAST(:ids AS text[]), CAST(:keys AS text[]),
    CAST(:senders AS text[])
) WITH ORDINALITY AS r(namespace, session_id, key, sender, number)
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

# Queues messages, a session's behind its tail in the order of their places, as far as the session
# is open and its inbox has room. A mailbox without a new message is held all the same: that commits
# something, so that what is said of a known key has reached the standbys that commits wait for.
SEND = Statement("""
WITH mailbox AS MATERIALIZED (
    SELECT m.namespace, m.session_id, m.tail, m.closed, r.number,
           CASE
               WHEN m.closed THEN 0
               ELSE greatest(least(r.count, :pending_limit - m.pending), 0)
           END AS room
    FROM unnest(CAST(:namespaces AS text[]), CAST(:ids AS text[]), CAST(:counts AS bigint[]))
        WITH ORDINALITY AS r(namespace, session_id, count, number)
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
    INSERT INTO inbox (namespace, session_id, position, status, content, payload, sender,
                       hops, origin, trace, idempotency_key, fingerprint, enqueued_at)
    SELECT b.namespace, b.session_id, b.tail + w.place, 'pending', w.content, w.payload, w.sender,
           coalesce(w.hops, 0), w.origin, w.trace, w.key, w.fingerprint, clock.now
    FROM clock, mailbox AS b JOIN unnest(
        CAST(:numbers AS bigint[]), CAST(:places AS bigint[]), CAST(:contents AS text[]),
        CAST(:payloads AS text[]), CAST(:senders AS text[]), CAST(:hops AS bigint[]),
        CAST(:origins AS text[]), CAST(:traces AS text[]), CAST(:keys AS text[]),
        CAST(:fingerprints AS text[])
    ) AS w(number, place, content, payload, sender, hops, origin, trace, key, fingerprint)
        ON w.number = b.number AND w.place <= b.room
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

# Leases the mailboxes that have been ready longest and hands out the messages at their heads,
# requeued ones before others. Mailboxes that somebody else is claiming are passed over. A message
# that was tried before is handed out alone, so that one bad message can't take others with it.
# What the inbox rows say is checked on the rows themselves, by the UPDATE: a mailbox that moved on
# after this statement's snapshot yields no rows, stays ready, and is claimed by the next one.
CLAIM = Statement("""
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
           array_agg(w.epoch) AS epochs, array_agg(w.pending) AS pendings,
           array_agg(w.position) AS positions
    FROM waiting AS w
    WHERE w.place = 1 OR NOT w.tried
),
taken AS (
    UPDATE inbox AS i
    SET status = 'running', attempts = i.attempts + 1, claimed_at = clock.now, worker = :worker
    FROM clock, chosen AS c,
         unnest(c.namespaces, c.ids, c.epochs, c.pendings, c.positions)
            AS w(namespace, session_id, epoch, pending, position)
    WHERE i.namespace = w.namespace AND i.session_id = w.session_id AND i.position = w.position
      AND i.status IN ('pending', 'running')
    RETURNING w.namespace, w.session_id, w.epoch + 1 AS epoch, w.pending, i.position, i.content,
              i.payload, i.sender, i.hops, i.origin, i.trace, i.attempts, i.enqueued_at
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
SELECT t.namespace, t.session_id, t.epoch, t.pending, t.position, t.content, t.payload,
       t.sender, t.hops, t.origin, t.trace, t.attempts, t.enqueued_at,
       s.id, s.channel, s.peer, s.created_at, s.last_active, s.message_count, s.parent_id,
       s.root_id, s.model, s.system, s.tools, s.metadata, s.version, s.ended_at, s.end_reason
FROM taken AS t JOIN sessions AS s ON s.namespace = t.namespace AND s.id = t.session_id
ORDER BY t.namespace, t.session_id, t.position
""")

# The fence is the first thing read: a mailbox that is not this worker's at this epoch is not
# among the locked ones, and then nothing else of its turn happens. It is one condition on both
# tables: by the owner alone the planner would look for this worker's mailboxes, which it takes for
# few, and compare each with each request (1.1 ms of 4 for 64 turns).
COMMIT = Statement("""
WITH mailbox AS MATERIALIZED (
    SELECT m.namespace, m.session_id, r.count, r.model, r.answered, r.last_position, r.number
    FROM unnest(
        CAST(:namespaces AS text[]), CAST(:ids AS text[]), CAST(:epochs AS bigint[]),
        CAST(:counts AS bigint[]), CAST(:models AS text[]), CAST(:answered AS bigint[]),
        CAST(:last_positions AS bigint[])
    ) WITH ORDINALITY
        AS r(namespace, session_id, epoch, count, model, answered, last_position, number)
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
    UPDATE sessions AS s
    SET version = s.version + 1,
        last_seq = s.last_seq + l.count,
        message_count = s.message_count + l.count,
        updated_at = greatest(s.updated_at, clock.now),
        last_active = greatest(s.last_active, clock.now)
    FROM clock, session AS l
    WHERE s.namespace = l.namespace AND s.id = l.id
    RETURNING l.number, l.model, s.namespace, s.id, s.last_seq - l.count AS base, s.last_seq
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
        first_seq = c.base + 1, last_seq = c.last_seq, model = c.model,
        input_tokens = a.input_tokens, output_tokens = a.output_tokens
    FROM clock, changed AS c JOIN unnest(
        CAST(:answered_numbers AS bigint[]), CAST(:answered_positions AS bigint[]),
        CAST(:input_tokens AS bigint[]), CAST(:output_tokens AS bigint[])
    ) AS a(number, position, input_tokens, output_tokens) ON a.number = c.number
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

# All leases of a worker at once. What does not come back was lost or cancelled.
HEARTBEAT = Statement("""
WITH held AS MATERIALIZED (
    SELECT m.namespace, m.session_id
    FROM mailboxes AS m
    JOIN unnest(CAST(:namespaces AS text[]), CAST(:ids AS text[]), CAST(:epochs AS bigint[]))
        AS r(namespace, session_id, epoch)
        ON m.namespace = r.namespace AND m.session_id = r.session_id
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
    looked_up = _looked_up(connection, requests)
    numbers: dict[SessionKey, int] = {}
    counts: list[int] = []
    places: list[tuple[int, int]] = []  # the session's number, and which of its messages it is
    queued: list[tuple[Any, ...]] = []
    for request, (known, chain) in zip(requests, looked_up, strict=True):
        number = numbers.setdefault((request.namespace, request.session_id), len(numbers) + 1)
        if number > len(counts):
            counts.append(0)
        if known is not None or chain.hops > limits.hops:
            places.append((number, 0))
            continue
        place = counts[number - 1] = counts[number - 1] + 1
        places.append((number, place))
        _role, content, payload = request.message
        queued.append(
            (
                number,
                place,
                content,
                payload,
                request.sender,
                chain.hops or None,
                chain.origin,
                request.trace,
                request.idempotency_key,
                request.fingerprint,
            )
        )
    mailboxes = _queue(connection, list(numbers), counts, queued, limits)
    answers: list[Receipt | SessionsDBError] = []
    for request, (known, chain), (number, place) in zip(requests, looked_up, places, strict=True):
        if known is not None:
            position, fingerprint = known
            answers.append(request.known(position, same=fingerprint == request.fingerprint))
            continue
        mailbox = mailboxes.get(number)
        if mailbox is None:
            answers.append(UnknownSession(request.session_id))
            continue
        closed, tail, room = mailbox
        if 0 < place <= room:
            answers.append(request.accepted(tail + place))
        elif closed:
            answers.append(SessionEnded(request.session_id))
        elif not place:
            answers.append(request.too_far(limits, chain.origin))
        else:
            answers.append(InboxFull(request.session_id, limits.pending))
    return answers


_Known = tuple[int, str]
"""A message's position and fingerprint."""


def _looked_up(
    connection: Connection, requests: Sequence[Send]
) -> list[tuple[_Known | None, Chain]]:
    """For each request the message that has its key already, and where it stands in a chain."""
    asked = [
        (place, r.namespace, r.session_id, r.idempotency_key, r.sender if r.is_behind else None)
        for place, r in enumerate(requests)
        if r.idempotency_key is not None or r.is_behind
    ]
    found: list[tuple[_Known | None, Chain]] = [(None, r.chain_behind(None)) for r in requests]
    if not asked:
        return found
    asking, namespaces, ids, keys, senders = map(list, zip(*asked, strict=True))
    rows = LOOK_UP.rows(
        connection,
        {
            "namespaces": namespaces,
            "ids": ids,
            "keys": column(keys),
            "senders": column(senders),
        },
    )
    for place, (position, fingerprint, hops, origin) in zip(asking, rows, strict=True):
        known = None if position is None else (position, fingerprint)
        running = None if hops is None else Chain(hops, origin)
        found[place] = (known, requests[place].chain_behind(running))
    return found


def _queue(
    connection: Connection,
    keys: Sequence[SessionKey],
    counts: Sequence[int],
    queued: Sequence[Sequence[Any]],
    limits: Limits,
) -> dict[int, tuple[bool, int, int]]:
    """Of each mailbox that there is, by its number: whether it is closed, its tail before, and how
    many of its messages were queued."""
    (numbers, places, contents, payloads, senders, hops, origins, traces, idempotency_keys,
     fingerprints) = columns(queued, 10)  # fmt: skip
    rows = SEND.rows(
        connection,
        {
            "namespaces": [namespace for namespace, _ in keys],
            "ids": [session_id for _, session_id in keys],
            "counts": counts,
            "numbers": numbers,
            "places": places,
            "contents": contents,
            "payloads": payloads,
            "senders": senders,
            "hops": hops,
            "origins": origins,
            "traces": traces,
            "keys": idempotency_keys,
            "fingerprints": fingerprints,
            "pending_limit": limits.pending,
        },
    )
    return {number: (closed, tail, room) for number, closed, tail, room in rows}


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
    for (namespace, _session_id, epoch, pending), group in groupby(rows, key=_LEASE):
        taken = [row[4:] for row in group]
        session = SessionRow(*taken[0][9:])
        lease = lease_of(namespace, session, epoch, pending - len(taken))
        lease.deliveries.extend(delivery_of(*row[:9]) for row in taken)
        leases.append(lease)
    return leases


def heartbeat(
    connection: Connection,
    worker: str,
    held: Sequence[tuple[SessionKey, int]],
    lease_seconds: float,
) -> set[SessionKey]:
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
    held = COMMIT.rows(
        connection,
        {
            "namespaces": [turn.lease.namespace for turn in turns],
            "ids": [turn.lease.session.id for turn in turns],
            "epochs": [turn.lease.epoch for turn in turns],
            "counts": [len(turn.messages) for turn in turns],
            "models": column([turn.model for turn in turns]),
            "answered": [len(turn.lease.deliveries) for turn in turns],
            "last_positions": [turn.lease.positions[-1] for turn in turns],
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
    kept = {number for (number,) in held}
    return [number in kept for number in range(1, len(turns) + 1)]

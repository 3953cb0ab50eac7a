"""The hot transitions of a mailbox on PostgreSQL: one statement each, for a list of requests.

All, and ``send`` in ``sending.py``, have the same shape. The mailboxes are locked first, in key
order, and are read in their current state. Everything else in a statement is read as of its
snapshot, which may be older. So each decision is made by the locked row, the clock is read while
the locks are held, and only then the session rows are locked, in key order too.

The values of a request are joined once, with the row that it locks, and are carried along from
there. The planner takes an array for one row or ten, and joins two of them by comparing each row
with each.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import groupby
from operator import itemgetter
from typing import Any

from sqlalchemy import Connection

from sessionsdb.engine.postgresql.arrays import ArrayTable
from sessionsdb.engine.statement import Statement
from sessionsdb.operations.fair_shares import in_rotation
from sessionsdb.operations.inbox_types import (
    DELIVERY_COLUMNS,
    UNFINISHED_SQL,
    Commit,
    Lease,
    delivery_from,
    lease_from,
    split_columns,
)
from sessionsdb.operations.keys import SessionKey
from sessionsdb.operations.postgresql.transcripts import advance
from sessionsdb.operations.session_rows import SESSION_COLUMNS

# Leases the mailboxes that have been ready longest, and delivers the messages at their heads,
# messages that are ahead before others. The answer to a question is delivered alone, before all.
# Mailboxes that another worker is claiming are passed over.
# A message that was tried before is delivered alone, so that one bad message takes no others with
# it. The status of a message is checked by the UPDATE too, on the row itself. A mailbox that has
# changed since this statement's snapshot yields no rows, stays ready, and is claimed by the next
# claim. The new head is the first delivered position. So holes before it are walked over once.
_CLAIM = f"""
WITH candidate AS MATERIALIZED (
    SELECT c.*
    FROM unnest(CAST(:namespaces AS text[]), CAST(:shares AS bigint[])) AS n(namespace, share),
    LATERAL (
        SELECT m.namespace, m.session_id, m.head, m.tail, m.epoch, m.pending, m.ready_at,
               m.answer
        FROM mailboxes AS m
        WHERE m.namespace = n.namespace AND m.ready_at IS NOT NULL
        ORDER BY m.ready_at, m.session_id
        LIMIT {{share}}
        FOR NO KEY UPDATE SKIP LOCKED
    ) AS c
),
clock AS MATERIALIZED (
    SELECT pg_catalog.clock_timestamp() AS now,
           pg_catalog.clock_timestamp()
               + pg_catalog.make_interval(secs => CAST(:lease AS double precision)) AS until,
           pg_catalog.count(*) AS locked
    FROM candidate
),
waiting AS MATERIALIZED (
    SELECT c.namespace, c.session_id, c.epoch, c.pending, x.position,
           pg_catalog.row_number() OVER first_ones AS ordinal,
           pg_catalog.bool_or(x.attempts > 0) OVER first_ones AS tried
    FROM candidate AS c, LATERAL (
        SELECT * FROM (
            (SELECT i.position, i.attempts, i.ahead FROM inbox AS i
             WHERE i.namespace = c.namespace AND i.session_id = c.session_id AND i.ahead
               AND c.answer IS NULL
             ORDER BY i.position LIMIT :batch)
            UNION ALL
            (SELECT i.position, i.attempts, i.ahead FROM inbox AS i
             WHERE i.namespace = c.namespace AND i.session_id = c.session_id
               AND i.position BETWEEN c.head AND c.tail
               AND NOT i.ahead AND i.status IN {UNFINISHED_SQL} AND c.answer IS NULL
             ORDER BY i.position LIMIT :batch)
            UNION ALL
            (SELECT i.position, i.attempts, i.ahead FROM inbox AS i
             WHERE i.namespace = c.namespace AND i.session_id = c.session_id
               AND i.position = c.answer AND i.status IN {UNFINISHED_SQL})
        ) AS u
        ORDER BY u.ahead DESC, u.position LIMIT :batch
    ) AS x
    WINDOW first_ones AS (
        PARTITION BY c.namespace, c.session_id ORDER BY x.ahead DESC, x.position
    )
),
-- As arrays, because the planner takes unnest for a few rows and looks each up by its key. It takes
-- a LIMIT by a parameter for a tenth of all ready mailboxes: with 10,000 sessions ready it walked
-- over the inbox, 40,000 rows and 25 ms for 8 leases.
chosen AS MATERIALIZED (
    SELECT pg_catalog.array_agg(w.namespace) AS namespaces,
           pg_catalog.array_agg(w.session_id) AS ids,
           pg_catalog.array_agg(w.epoch) AS epochs,
           pg_catalog.array_agg(w.pending) AS pendings,
           pg_catalog.array_agg(w.position) AS positions
    FROM waiting AS w
    WHERE w.ordinal = 1 OR NOT w.tried
),
taken AS (
    UPDATE inbox AS i
    SET status = 'running', attempts = i.attempts + 1, claimed_at = clock.now, worker = :worker,
        epoch = w.epoch + 1
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
        lease_until = clock.until,
        taken = t.count,
        head = greatest(m.head, t.first),
        last_taken = t.last
    FROM clock, (
        SELECT namespace, session_id, pg_catalog.count(*) AS count,
               coalesce(pg_catalog.min(CASE WHEN NOT ahead THEN position END), 0) AS first,
               coalesce(pg_catalog.max(CASE WHEN NOT ahead THEN position END), 0) AS last
        FROM taken GROUP BY 1, 2
    ) AS t
    WHERE m.namespace = t.namespace AND m.session_id = t.session_id
)
SELECT i.namespace, i.session_id, i.epoch, i.pending, {DELIVERY_COLUMNS}, {SESSION_COLUMNS}
FROM taken AS i JOIN sessions AS s ON s.namespace = i.namespace AND s.id = i.session_id
ORDER BY i.namespace, i.session_id, i.ahead DESC, i.position
"""

CLAIM = Statement(_CLAIM.format(share=":slots"))
"""For one namespace. The planner knows the value, as it does not know one of an array."""

CLAIM_SHARED = Statement(_CLAIM.format(share="n.share"))
"""For several namespaces, each with its share of the slots."""

# A walk over the index that reads one entry for each namespace with a ready session. The order by
# all columns of the index keeps the planner from the primary key, where the walk would pass all
# sessions that are not ready.
_NEXT_READY = """
    SELECT m.namespace FROM mailboxes AS m
    WHERE m.ready_at IS NOT NULL AND m.namespace > {after}
    ORDER BY m.namespace, m.ready_at, m.session_id LIMIT 1
"""

READY_NAMESPACES = Statement(f"""
WITH RECURSIVE ahead(namespace, number) AS (
    SELECT ({_NEXT_READY.format(after="CAST(:after AS text)")}), 1
    UNION ALL
    SELECT ({_NEXT_READY.format(after="a.namespace")}), a.number + 1
    FROM ahead AS a WHERE a.namespace IS NOT NULL AND a.number < :limit
),
behind(namespace, number) AS (
    SELECT ({_NEXT_READY.format(after="CAST('' AS text)")}), 1
    WHERE CAST(:after AS text) <> CAST('' AS text)
    UNION ALL
    SELECT ({_NEXT_READY.format(after="b.namespace")}), b.number + 1
    FROM behind AS b WHERE b.namespace < CAST(:after AS text) AND b.number < :limit
)
SELECT namespace FROM (
    SELECT namespace, number, 1 AS part FROM ahead WHERE namespace IS NOT NULL
    UNION ALL
    SELECT namespace, number, 2 FROM behind WHERE namespace <= CAST(:after AS text)
) AS found
ORDER BY part, number LIMIT :limit
""")

READY_OF_NAMED = Statement("""
SELECT r.namespace
FROM pg_catalog.unnest(CAST(:namespaces AS text[])) AS n(namespace), LATERAL (
    SELECT m.namespace FROM mailboxes AS m
    WHERE m.namespace = n.namespace AND m.ready_at IS NOT NULL
    ORDER BY m.ready_at, m.session_id LIMIT 1
) AS r
""")

# An array without a value costs nothing. Each element of another one costs the driver up to 1 µs.
# So the values that most turns have are left out: one answered message, no rewrites, and messages
# at the last position. The time of the first message stands with its turn.
_TURNS = ArrayTable(
    "r",
    namespace="text",
    session_id="text",
    epoch="bigint",
    count="bigint",
    model="text",
    answered="bigint",
    last_position="bigint",
    rewrites="bigint",
    sent_at="timestamptz",
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
    sender="text",
    sent_at="timestamptz",
    extra="text",
)
_ANSWERED = ArrayTable(
    "a", number="bigint", position="bigint", input_tokens="bigint", output_tokens="bigint"
)

# The fence is checked first. A mailbox that is not this worker's at this epoch is not locked, and
# then nothing else of its turn takes place. Then the session is locked. If its transcript was
# rewritten since the claim, or if the worker does not know of a message that joined, nothing takes
# place either, and the lease is still held. The fence is one condition on both tables: by the owner
# alone the planner would search this worker's mailboxes, which it takes for few, and compare each
# of them with each request (1.1 ms of 4 for 64 turns).
COMMIT = Statement(f"""
WITH mailbox AS MATERIALIZED (
    SELECT * FROM (
        SELECT m.namespace, m.session_id, r.count, r.model, coalesce(r.answered, 1) AS answered,
               r.last_position, coalesce(r.rewrites, 0) AS rewrites, r.sent_at, r.number, m.taken
        FROM {_TURNS}
        JOIN mailboxes AS m ON m.namespace = r.namespace AND m.session_id = r.session_id
        WHERE r.epoch = CASE WHEN m.owner = :worker THEN m.epoch END
        ORDER BY m.namespace, m.session_id
        FOR NO KEY UPDATE OF m
    ) AS l
),
clock AS MATERIALIZED (
    SELECT pg_catalog.clock_timestamp() AS now, pg_catalog.count(*) AS locked FROM mailbox
),
session AS MATERIALIZED (
    SELECT * FROM (
        SELECT s.namespace, s.id, b.number, b.count, b.model, b.answered, b.last_position,
               b.sent_at
        FROM mailbox AS b JOIN sessions AS s ON s.namespace = b.namespace AND s.id = b.session_id
        WHERE (SELECT locked FROM clock) > 0
          AND s.rewrites = CASE WHEN b.taken = b.answered THEN b.rewrites END
        ORDER BY s.namespace, s.id
        FOR NO KEY UPDATE OF s
    ) AS l
),
changed AS (
    UPDATE sessions AS s {advance("l.count", now="clock.now")}
    FROM clock, session AS l
    WHERE s.namespace = l.namespace AND s.id = l.id
    RETURNING l.number, l.model, l.last_position, l.sent_at, s.namespace, s.id,
              s.last_seq - l.count AS base, s.last_seq
),
written AS (
    INSERT INTO messages
        (namespace, session_id, seq, role, content, payload, created_at, position, sender,
         sent_at, extra)
    SELECT c.namespace, c.id, c.base + w.ordinal, w.role, w.content, w.payload, clock.now,
           coalesce(w.position, c.last_position), w.sender,
           CASE WHEN w.ordinal = 1 THEN coalesce(c.sent_at, w.sent_at) ELSE w.sent_at END, w.extra
    FROM clock, changed AS c JOIN {_WRITTEN} ON w.number = c.number
),
finished AS (
    UPDATE inbox AS i
    SET status = 'done', finished_at = clock.now, error = NULL, ahead = false, joined = false,
        first_seq = c.base + 1, last_seq = c.last_seq, model = c.model,
        input_tokens = coalesce(a.input_tokens + coalesce(i.input_tokens, 0), i.input_tokens),
        output_tokens = coalesce(a.output_tokens + coalesce(i.output_tokens, 0), i.output_tokens)
    FROM clock, changed AS c JOIN {_ANSWERED} ON a.number = c.number
    WHERE i.namespace = c.namespace AND i.session_id = c.id AND i.position = a.position
),
released AS (
    UPDATE mailboxes AS m
    SET owner = NULL,
        lease_until = NULL,
        taken = 0,
        last_taken = 0,
        pending = m.pending - l.answered,
        head = greatest(m.head, l.last_position + 1),
        answer = NULL,
        ready_at = CASE WHEN m.pending > l.answered THEN clock.now END
    FROM clock, session AS l
    WHERE m.namespace = l.namespace AND m.session_id = l.id
)
SELECT (SELECT pg_catalog.array_agg(b.number) FROM mailbox AS b),
       (SELECT pg_catalog.array_agg(l.number) FROM session AS l)
""")

_FENCES = ArrayTable("r", namespace="text", session_id="text", epoch="bigint")

# All leases of a worker at once. A lease that is not returned was lost or cancelled.
HEARTBEAT = Statement(f"""
WITH held AS MATERIALIZED (
    SELECT * FROM (
        SELECT m.namespace, m.session_id
        FROM mailboxes AS m
        JOIN {_FENCES} ON m.namespace = r.namespace AND m.session_id = r.session_id
        WHERE r.epoch = CASE WHEN m.owner = :worker THEN m.epoch END
        ORDER BY m.namespace, m.session_id
        FOR NO KEY UPDATE OF m
    ) AS l
),
clock AS MATERIALIZED (
    SELECT pg_catalog.clock_timestamp()
               + pg_catalog.make_interval(secs => CAST(:lease AS double precision)) AS until,
           pg_catalog.count(*) AS locked
    FROM held
)
UPDATE mailboxes AS m
SET lease_until = clock.until
FROM clock, held AS h
WHERE m.namespace = h.namespace AND m.session_id = h.session_id
RETURNING m.namespace, m.session_id
""")


_LEASE = itemgetter(0, 1, 2, 3)


def claim(
    connection: Connection,
    worker: str,
    shares: Mapping[str, int],
    batch: int,
    lease_seconds: float,
) -> list[Lease]:
    given = {
        "namespaces": list(shares),
        "shares": list(shares.values()),
        "batch": batch,
        "worker": worker,
        "lease": lease_seconds,
    }
    if len(shares) == 1:
        [slots] = shares.values()
        rows = CLAIM.rows(connection, given | {"slots": slots})
    else:
        rows = CLAIM_SHARED.rows(connection, given)
    leases = []
    for (namespace, _session_id, epoch, unfinished), group in groupby(rows, key=_LEASE):
        taken = [split_columns(columns) for _, _, _, _, *columns in group]
        deliveries = [delivery_from(row, attempt=row.attempts) for row, _ in taken]
        leases.append(lease_from(namespace, taken[0][1], epoch, deliveries, unfinished))
    return leases


def ready_namespaces(
    connection: Connection, namespaces: Collection[str] | None, after: str, limit: int
) -> list[str]:
    if namespaces is None:
        rows = READY_NAMESPACES.rows(connection, {"after": after, "limit": limit})
        return [namespace for (namespace,) in rows]
    rows = READY_OF_NAMED.rows(connection, {"namespaces": list(namespaces)})
    return in_rotation((namespace for (namespace,) in rows), after)[:limit]


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


def _usual_rows(number: int, turn: Commit, last: int) -> Iterator[tuple[Any, ...]]:
    """Return the rows of ``_WRITTEN`` for one delivered message and its replies.

    As ``_rows``, in half of its time: most turns have one message.
    """
    [delivery] = turn.lease.deliveries
    position = None if delivery.position == last else delivery.position
    first, *replies = turn.messages
    yield (number, 1, *first, position, delivery.sender, None, delivery.extra)
    for ordinal, message in enumerate(replies, 2):
        yield (number, ordinal, *message, position, None, None, None)


def _rows(
    number: int, turn: Commit, last: int, sent_at: datetime | str | None
) -> Iterator[tuple[Any, ...]]:
    """Return the rows of ``_WRITTEN`` for the messages of a turn.

    ``sent_at`` is the time of the first one, if it stands with the turn.
    """
    for ordinal, (message, beside) in enumerate(
        zip(turn.messages, turn.attributes, strict=True), 1
    ):
        position, sender, moment, extra, _key = beside
        if position == last:
            position = None
        if ordinal == 1 and sent_at is not None:
            moment = None
        yield (number, ordinal, *message, position, sender, moment, extra)


def commit(connection: Connection, worker: str, turns: Sequence[Commit]) -> list[bool | None]:
    leases: list[tuple[Any, ...]] = []
    written: list[tuple[Any, ...]] = []
    answered: list[tuple[Any, ...]] = []
    for number, turn in enumerate(turns, 1):
        lease, last = turn.lease, turn.lease.last_position
        taken = len(lease.deliveries)
        sent_at = lease.deliveries[0].sent_at if turn.beside is None else None
        leases.append(
            (
                *lease.key,
                lease.epoch,
                len(turn.messages),
                turn.model,
                None if taken == 1 else taken,
                last,
                lease.rewrites or None,
                sent_at,
            )
        )
        if taken == 1 and turn.beside is None:
            written += _usual_rows(number, turn, last)
        else:
            written += _rows(number, turn, last, sent_at)
        if taken == 1:
            position = lease.deliveries[0].position
            answered.append((number, position, turn.input_tokens, turn.output_tokens))
        else:
            answered += [(number, *one) for one in turn.answered]
    [(held, same)] = COMMIT.rows(
        connection,
        {
            "worker": worker,
            **_TURNS.parameters(leases),
            **_WRITTEN.parameters(written),
            **_ANSWERED.parameters(answered),
        },
    )
    # True: committed. None: the fence held, and the transcript was rewritten or a message joined.
    results: list[bool | None] = [False] * len(turns)
    for number in held or ():
        results[number - 1] = None
    for number in same or ():
        results[number - 1] = True
    return results

"""The commit of turns on PostgreSQL: one statement, of the shape that ``__init__.py`` explains."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from sessionsdb.engine.postgresql.arrays import ArrayTable
from sessionsdb.engine.statement import Statement
from sessionsdb.operations.inbox_types import Commit
from sessionsdb.operations.postgresql.transcripts import advance

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
# place either. The lease is still held then. The fence is one condition on both tables. By the
# owner alone the planner would search this worker's mailboxes, which it takes for few. It would
# compare each of them with each request (1.1 ms of 4 for 64 turns). The key of an answered message
# is the whole of one relation's. By parts of two, the planner may search the inbox by the session
# alone and read all of its receipts, if the statistics know of no session with many.
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
answered AS MATERIALIZED (
    SELECT c.namespace, c.id, c.base, c.last_seq, c.model, a.position, a.input_tokens,
           a.output_tokens
    FROM changed AS c JOIN {_ANSWERED} ON a.number = c.number
),
finished AS (
    UPDATE inbox AS i
    SET status = 'done', finished_at = clock.now, error = NULL, ahead = false, joined = false,
        first_seq = a.base + 1, last_seq = a.last_seq, model = a.model,
        input_tokens = coalesce(a.input_tokens + coalesce(i.input_tokens, 0), i.input_tokens),
        output_tokens = coalesce(a.output_tokens + coalesce(i.output_tokens, 0), i.output_tokens)
    FROM clock, answered AS a
    WHERE i.namespace = a.namespace AND i.session_id = a.id AND i.position = a.position
),
released AS (
    UPDATE mailboxes AS m
    SET owner = NULL,
        lease_until = NULL,
        taken = 0,
        last_taken = 0,
        pending = m.pending - l.answered,
        head = greatest(m.head, l.last_position + 1),
        ready_at = CASE WHEN m.pending > l.answered THEN clock.now END
    FROM clock, session AS l
    WHERE m.namespace = l.namespace AND m.session_id = l.id
)
SELECT (SELECT pg_catalog.array_agg(b.number) FROM mailbox AS b),
       (SELECT pg_catalog.array_agg(l.number) FROM session AS l)
""")


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

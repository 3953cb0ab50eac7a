"""The send of messages on PostgreSQL: one statement, of the shape that ``__init__.py`` explains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection

from sessionsdb.engine.postgresql.arrays import ArrayTable
from sessionsdb.engine.statement import Statement
from sessionsdb.errors import InboxFull, SessionEnded, SessionsDBError, UnknownSession
from sessionsdb.operations.inbox_types import (
    SENT_COLUMNS,
    AnswerWanted,
    Chain,
    Send,
    sent_values,
)
from sessionsdb.operations.keys import SessionKey
from sessionsdb.types import Limits, Receipt

_LOOKUPS = ArrayTable(
    "r", namespace="text", session_id="text", key="text", sender="text", ordinality="number"
)

# For requests with a key or a sender, before they are queued. It finds the message that has the key
# already, and the place in a chain of the furthest message that the sender is handling. The latter
# is found through the sender's mailbox, by the primary key. Nothing is locked. A turn that ends at
# this moment counts as one that still runs. Of two sends with one key at this moment the later
# fails in uq_inbox_idempotency, and finds the first one's row when it is repeated.
LOOK_UP = Statement(f"""
SELECT k.position, k.fingerprint, b.session_id IS NOT NULL, x.hops, x.origin
FROM {_LOOKUPS}
LEFT JOIN inbox AS k ON k.namespace = r.namespace AND k.session_id = r.session_id
    AND k.idempotency_key = r.key
LEFT JOIN mailboxes AS b ON b.namespace = r.namespace AND b.session_id = r.sender
LEFT JOIN LATERAL (
    SELECT i.hops, i.origin
    FROM (
        SELECT n.hops, n.origin FROM inbox AS n
        WHERE b.taken > 0 AND n.namespace = b.namespace AND n.session_id = b.session_id
          AND n.position BETWEEN b.head AND b.last_taken AND n.status = 'running'
        UNION ALL
        SELECT n.hops, n.origin FROM inbox AS n
        WHERE b.taken > 0 AND n.namespace = b.namespace AND n.session_id = b.session_id
          AND n.ahead AND n.status = 'running'
    ) AS i
    ORDER BY i.hops DESC
    LIMIT 1
) AS x ON true
ORDER BY r.number
""")

# An array that has no value costs nothing, each element of another one up to 1 µs. So the count and
# the ordinal of the only message for a session are left out.
_INBOXES = ArrayTable("r", namespace="text", session_id="text", count="bigint", ordinality="number")
_SENT = ArrayTable(
    "w",
    number="bigint",
    ordinal="bigint",
    **{name: "bigint" if name == "hops" else "text" for name in SENT_COLUMNS},
)

# Queues the messages of each session behind its tail, in the order of their ordinals. The session
# must be open, and its inbox must have room. A mailbox without a new message is locked all
# the same. So the transaction commits something, and the row of a known key has reached the
# standbys that commits wait for. So does nothing move where the next message may be an answer.
SEND = Statement(f"""
WITH mailbox AS MATERIALIZED (
    SELECT * FROM (
        SELECT m.namespace, m.session_id, m.tail, m.closed, m.accepts_message, r.number,
               CASE
                   WHEN m.closed OR m.accepts_message THEN 0
                   ELSE greatest(least(coalesce(r.count, 1), :pending_limit - m.pending), 0)
               END AS room
        FROM {_INBOXES}
        JOIN mailboxes AS m ON m.namespace = r.namespace AND m.session_id = r.session_id
        ORDER BY m.namespace, m.session_id
        FOR NO KEY UPDATE OF m
    ) AS l
),
clock AS MATERIALIZED (
    SELECT pg_catalog.clock_timestamp() AS now, pg_catalog.count(*) AS locked FROM mailbox
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
    SELECT b.namespace, b.session_id, b.tail + coalesce(w.ordinal, 1), {sent_values("w.")},
           'pending', clock.now
    FROM clock, mailbox AS b
    JOIN {_SENT} ON w.number = b.number AND coalesce(w.ordinal, 1) <= b.room
),
session AS MATERIALIZED (
    SELECT * FROM (
        SELECT s.namespace, s.id
        FROM mailbox AS b JOIN sessions AS s ON s.namespace = b.namespace AND s.id = b.session_id
        WHERE b.room > 0 AND (SELECT locked FROM clock) > 0
        ORDER BY s.namespace, s.id
        FOR NO KEY UPDATE OF s
    ) AS l
),
touched AS (
    UPDATE sessions AS s
    SET last_active = greatest(s.last_active, clock.now)
    FROM clock, session AS l
    WHERE s.namespace = l.namespace AND s.id = l.id
)
SELECT number, closed, accepts_message, tail, room FROM mailbox
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
        if known is not None or chain is None or chain.hops > limits.hops:
            ordinals.append((number, 0))
            continue
        ordinal = counts[number - 1] = counts[number - 1] + 1
        ordinals.append((number, ordinal))
        sent.append((number, None if ordinal == 1 else ordinal, *request.columns(chain)))
    inboxes = [
        (*key, None if count == 1 else count) for key, count in zip(numbers, counts, strict=True)
    ]
    rows = SEND.rows(
        connection,
        {
            **_INBOXES.parameters(inboxes),
            **_SENT.parameters(sent),
            "pending_limit": limits.pending,
        },
    )
    mailboxes = {number: columns for number, *columns in rows}
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
        if chain is None:
            answers.append(UnknownSession(str(request.sender), is_sender=True))
            continue
        closed, accepts_message, tail, room = mailbox
        if accepts_message and ordinal:
            answers.append(AnswerWanted())
        elif 0 < ordinal <= room:
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


def _look_up(
    connection: Connection, requests: Sequence[Send]
) -> list[tuple[_Known | None, Chain | None]]:
    """For each request the message that has its key already, and the request's place in a chain.

    The place is ``None`` if there is no such sender.
    """
    indices = [
        index
        for index, request in enumerate(requests)
        if request.idempotency_key is not None or request.needs_chain
    ]
    answers: list[tuple[_Known | None, Chain | None]] = [
        (None, r.chain_behind(None)) for r in requests
    ]
    if not indices:
        return answers
    lookups = [
        (r.namespace, r.session_id, r.idempotency_key, r.sender if r.needs_chain else None)
        for r in (requests[index] for index in indices)
    ]
    rows = LOOK_UP.rows(connection, _LOOKUPS.parameters(lookups))
    for index, (position, fingerprint, is_session, hops, origin) in zip(indices, rows, strict=True):
        known = None if position is None else (position, fingerprint)
        running = None if hops is None else Chain(hops, origin)
        if requests[index].needs_chain and not is_session:
            answers[index] = (known, None)
        else:
            answers[index] = (known, requests[index].chain_behind(running))
    return answers

"""What goes on now: leases, what waits, and how much came and went lately.

The cost is that of what is busy: partial indices lead to the leases and to what waits, and the last
minute is found through the sessions that were active in it, at the ends of their inboxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    cast,
    column,
    func,
    select,
    table,
    true,
)

from sessionsdb.engine import clock
from sessionsdb.engine.statement import Statement
from sessionsdb.schema import UTCDateTime

_COUNTS = ("sessions", "pending", "running", "ready", "retrying", "leased", "overdue", "dead")
_REPORT = table(
    "report_inbox",
    column("namespace"),
    *(column(name, BigInteger) for name in _COUNTS),
    column("oldest_at", UTCDateTime),
)


class QueueDepth(NamedTuple):
    """The inboxes, summed up; see the view ``report_inbox`` for each figure."""

    sessions: int
    pending: int
    running: int
    ready: int
    retrying: int
    leased: int
    overdue: int
    dead: int
    oldest_at: datetime | None


class ActiveLease(NamedTuple):
    """One lease: a turn that runs."""

    worker: str
    namespace: str
    session_id: str
    lease_until: datetime
    claimed_at: datetime | None
    attempt: int
    messages: int


class RecentRates(NamedTuple):
    """What came and went in the last seconds. A requeued message that was answered is counted only
    where none that was answered earlier stands behind it."""

    sends: int
    turns: int
    dead: int


class Load(NamedTuple):
    """How much is unfinished, and how old the oldest readiness is; cheap enough for a gauge."""

    pending: int
    running: int
    leased: int
    ready_seconds: float


# The busy ones are first taken out of a partial index that has all it needs: SQLite, which seldom
# has statistics, would walk over every mailbox of the namespace instead.
WORKERS = Statement("""
SELECT owner, count(*)
FROM mailboxes
WHERE owner IS NOT NULL AND (CAST(:namespace AS text) IS NULL OR namespace = :namespace)
GROUP BY owner
ORDER BY owner
""")

LEASES = Statement("""
WITH held AS (
    SELECT owner, namespace, session_id
    FROM mailboxes
    WHERE owner IS NOT NULL AND (CAST(:namespace AS text) IS NULL OR namespace = :namespace)
),
turn AS (
    SELECT h.owner, h.namespace, h.session_id, m.lease_until, i.claimed_at, i.attempts, m.taken
    FROM held AS h
    JOIN mailboxes AS m ON m.namespace = h.namespace AND m.session_id = h.session_id
    LEFT JOIN inbox AS i ON i.namespace = m.namespace AND i.session_id = m.session_id
        AND i.position BETWEEN m.head AND m.head + m.taken - 1 AND i.status = 'running'
    UNION ALL
    SELECT h.owner, h.namespace, h.session_id, m.lease_until, i.claimed_at, i.attempts, m.taken
    FROM held AS h
    JOIN mailboxes AS m ON m.namespace = h.namespace AND m.session_id = h.session_id
    JOIN inbox AS i ON i.namespace = m.namespace AND i.session_id = m.session_id
        AND i.requeued AND i.status = 'running'
)
SELECT owner, namespace, session_id, lease_until, min(claimed_at), coalesce(max(attempts), 0), taken
FROM turn
GROUP BY owner, namespace, session_id, lease_until, taken
ORDER BY min(claimed_at), namespace, session_id
LIMIT :most
""")

# The sessions of one namespace, or of each, that were active since. Each is in one of two indices
# that begin with the namespace; the next namespace is one look-up away. In an inbox the last
# message that is older is found from its end, and what stands behind it is read.
RECENT_RATES = Statement("""
WITH RECURSIVE name(namespace) AS (
    SELECT coalesce(CAST(:namespace AS text), (SELECT min(namespace) FROM sessions))
    UNION ALL
    SELECT (SELECT min(s.namespace) FROM sessions AS s WHERE s.namespace > n.namespace)
    FROM name AS n
    WHERE CAST(:namespace AS text) IS NULL AND n.namespace IS NOT NULL
),
active AS (
    SELECT s.namespace, s.id
    FROM name AS n
    CROSS JOIN sessions AS s
    WHERE s.namespace = n.namespace AND s.ended_at IS NULL AND s.last_active >= :since
    UNION ALL
    SELECT s.namespace, s.id
    FROM name AS n
    CROSS JOIN sessions AS s
    WHERE s.namespace = n.namespace AND s.ended_at IS NOT NULL AND s.last_active >= :since
),
-- Looked up one by one: a plan that expects many to be active would join by a walk over all.
ends AS (
    SELECT
        a.namespace,
        a.id,
        (
            SELECT m.head FROM mailboxes AS m
            WHERE m.namespace = a.namespace AND m.session_id = a.id
        ) AS head,
        (
            SELECT m.tail FROM mailboxes AS m
            WHERE m.namespace = a.namespace AND m.session_id = a.id
        ) AS tail
    FROM active AS a
)
SELECT
    coalesce(sum((
        SELECT count(*) FROM inbox AS i
        WHERE i.namespace = e.namespace AND i.session_id = e.id
          AND i.enqueued_at >= :since
          AND i.position > coalesce((
              SELECT o.position FROM inbox AS o
              WHERE o.namespace = e.namespace AND o.session_id = e.id
                AND o.position <= e.tail AND o.enqueued_at < :since
              ORDER BY o.position DESC
              LIMIT 1
          ), 0)
    )), 0),
    -- The messages of one turn have written the same rows.
    coalesce(sum((
        SELECT count(DISTINCT i.first_seq) FROM inbox AS i
        WHERE i.namespace = e.namespace AND i.session_id = e.id
          AND i.status = 'done' AND i.finished_at >= :since AND i.position < e.head
          AND i.position > coalesce((
              SELECT o.position FROM inbox AS o
              WHERE o.namespace = e.namespace AND o.session_id = e.id
                AND o.position < e.head AND o.finished_at < :since
              ORDER BY o.position DESC
              LIMIT 1
          ), 0)
    )), 0),
    (
        SELECT count(*)
        FROM name AS n
        CROSS JOIN inbox AS i
        WHERE i.namespace = n.namespace AND i.dead_at IS NOT NULL AND i.dead_at >= :since
    )
FROM ends AS e
""")

LOAD = Statement("""
WITH busy AS (
    SELECT namespace, session_id, ready_at, 0 AS leased
    FROM mailboxes WHERE ready_at IS NOT NULL
    UNION ALL
    SELECT namespace, session_id, NULL, 0 FROM mailboxes WHERE wake_at IS NOT NULL
    UNION ALL
    SELECT namespace, session_id, NULL, 1 FROM mailboxes WHERE owner IS NOT NULL
)
SELECT coalesce(sum(m.pending - m.taken), 0), coalesce(sum(m.taken), 0), coalesce(sum(b.leased), 0),
       min(b.ready_at)
FROM busy AS b
CROSS JOIN mailboxes AS m
WHERE m.namespace = b.namespace AND m.session_id = b.session_id
  AND (CAST(:namespace AS text) IS NULL OR b.namespace = :namespace)
""")


def database_time(connection: Connection) -> datetime:
    """The database's clock."""
    return clock.read_now(connection)


def queue_depths(connection: Connection, namespace: str | None) -> QueueDepth:
    """What waits in a namespace, or in all."""
    sums = (cast(func.coalesce(func.sum(_REPORT.c[name]), 0), BigInteger) for name in _COUNTS)
    row = connection.execute(
        select(*sums, func.min(_REPORT.c.oldest_at, type_=UTCDateTime)).where(
            _within(_REPORT.c.namespace, namespace)
        )
    ).one()
    return QueueDepth._make(row)


def leases(connection: Connection, namespace: str | None, most: int) -> list[ActiveLease]:
    """The leases, those that run longest first."""
    found = []
    for row in LEASES.rows(connection, {"namespace": namespace, "most": most}):
        worker, of, session_id, lease_until, claimed_at, attempt, taken = row
        until, since = clock.as_utc(lease_until), clock.as_utc_or_none(claimed_at)
        found.append(ActiveLease(worker, of, session_id, until, since, attempt, taken))
    return found


def workers(connection: Connection, namespace: str | None) -> dict[str, int]:
    """How many leases each worker holds."""
    return {row[0]: row[1] for row in WORKERS.rows(connection, {"namespace": namespace})}


def recent_rates(connection: Connection, namespace: str | None, seconds: float) -> RecentRates:
    """What was sent, and what was finished, in the last ``seconds``."""
    since = clock.read_now(connection) - timedelta(seconds=seconds)
    stored = clock.as_text(since) if connection.dialect.name == "sqlite" else since
    [row] = RECENT_RATES.rows(connection, {"namespace": namespace, "since": stored})
    return RecentRates(*map(int, row))


def load(connection: Connection, namespaces: Sequence[str] | None) -> Load:
    """What the gauges tell; reads the mailboxes that are busy, and nothing else."""
    pending = running = leased = 0
    oldest: datetime | None = None
    for namespace in [None] if namespaces is None else namespaces:
        [row] = LOAD.rows(connection, {"namespace": namespace})
        pending, running, leased = (
            pending + int(row[0]),
            running + int(row[1]),
            leased + int(row[2]),
        )
        ready_at = clock.as_utc_or_none(row[3])
        if ready_at is not None:
            oldest = ready_at if oldest is None else min(oldest, ready_at)
    waited = 0.0 if oldest is None else (clock.read_now(connection) - oldest).total_seconds()
    return Load(pending, running, leased, max(0.0, waited))


def _within(namespaced: ColumnElement[Any], namespace: str | None) -> ColumnElement[bool]:
    return true() if namespace is None else namespaced == namespace

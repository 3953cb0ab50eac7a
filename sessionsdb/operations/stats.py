"""Statistics of the present: leases, queue depths, and rates of the last seconds.

The cost grows with the busy sessions only. Partial indices lead to the leases and to the waiting
messages. The rates are read at the ends of the inboxes of recently active sessions.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import (
    BigInteger,
    Connection,
    cast,
    column,
    func,
    select,
    table,
)

from sessionsdb.engine import clock, functions
from sessionsdb.engine.statement import Statement
from sessionsdb.operations.row_conditions import within
from sessionsdb.schema import KeyText, PlainText, UTCDateTime, mailboxes

_COUNTS = (
    "sessions", "pending", "running", "ready", "retrying", "leased", "overdue", "dead", "held",
    "due",
)  # fmt: skip
_REPORT = table(
    "report_inbox",
    column("namespace", KeyText),
    *(column(name, BigInteger) for name in _COUNTS),
    column("oldest_at", UTCDateTime),
)


class QueueDepth(NamedTuple):
    """Sums over inboxes. The view ``report_inbox`` explains each figure."""

    sessions: int
    pending: int
    running: int
    ready: int
    retrying: int
    leased: int
    overdue: int
    dead: int
    held: int
    due: int
    oldest_at: datetime | None


class ActiveLease(NamedTuple):
    """A lease, and the turn that runs under it."""

    worker: str
    namespace: str
    session_id: str
    lease_until: datetime
    claimed_at: datetime | None
    attempt: int
    messages: int


class RecentRates(NamedTuple):
    """Sends, turns and dead letters of the last seconds.

    A turn over a requeued message is missing if a message behind it was finished earlier.
    """

    sends: int
    turns: int
    dead: int


class Load(NamedTuple):
    """Unfinished messages, and the wait of the oldest ready session. Cheap enough for a gauge."""

    pending: int
    running: int
    leased: int
    ready_seconds: float


# The leased mailboxes are read from a partial index that holds all needed columns. SQLite, which
# seldom has statistics, would walk over every mailbox of the namespace instead.
WORKERS = Statement("""
SELECT owner, pg_catalog.count(*)
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
        AND i.position BETWEEN m.head AND m.last_taken AND i.status = 'running'
    UNION ALL
    SELECT h.owner, h.namespace, h.session_id, m.lease_until, i.claimed_at, i.attempts, m.taken
    FROM held AS h
    JOIN mailboxes AS m ON m.namespace = h.namespace AND m.session_id = h.session_id
    JOIN inbox AS i ON i.namespace = m.namespace AND i.session_id = m.session_id
        AND i.ahead AND i.status = 'running'
)
SELECT owner, namespace, session_id, lease_until, pg_catalog.min(claimed_at),
       coalesce(pg_catalog.max(attempts), 0), taken
FROM turn
GROUP BY owner, namespace, session_id, lease_until, taken
ORDER BY pg_catalog.min(claimed_at), namespace, session_id
LIMIT :limit
""")

# The sessions of one namespace, or of each namespace, that were active since. Each session is in
# one of two indices that begin with the namespace, and the next namespace is one look-up away. In
# an inbox the newest message that is older is found from the end, and the messages behind it are
# read.
RECENT_RATES = Statement("""
WITH RECURSIVE name(namespace) AS (
    SELECT coalesce(CAST(:namespace AS text), (SELECT pg_catalog.min(namespace) FROM sessions))
    UNION ALL
    SELECT (SELECT pg_catalog.min(s.namespace) FROM sessions AS s WHERE s.namespace > n.namespace)
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
-- Subqueries, because for a join the planner may expect many active sessions, and read all rows.
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
    coalesce(pg_catalog.sum((
        SELECT pg_catalog.count(*) FROM inbox AS i
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
    -- The messages of one turn have the same first_seq.
    coalesce(pg_catalog.sum((
        SELECT pg_catalog.count(DISTINCT i.first_seq) FROM inbox AS i
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
        SELECT pg_catalog.count(*)
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
SELECT coalesce(pg_catalog.sum(m.pending - m.taken), 0),
       coalesce(pg_catalog.sum(m.taken), 0),
       coalesce(pg_catalog.sum(b.leased), 0),
       pg_catalog.min(b.ready_at)
FROM busy AS b
CROSS JOIN mailboxes AS m
WHERE m.namespace = b.namespace AND m.session_id = b.session_id
  AND (CAST(:namespace AS text) IS NULL OR b.namespace = :namespace)
""")


def database_time(connection: Connection) -> datetime:
    """Return the present by the database's clock."""
    return clock.read_now(connection)


def queue_depths(connection: Connection, namespace: str | None) -> QueueDepth:
    """Return the depth of one namespace, or of all."""
    sums = (
        cast(func.coalesce(functions.total(_REPORT.c[name]), 0), BigInteger) for name in _COUNTS
    )
    # The cast does nothing on PostgreSQL. From a plain comparison SQLite 3.53 concludes the
    # namespace of the view's sessions, and then reads every session of it.
    in_namespace = within(
        cast(_REPORT.c.namespace, PlainText), None if namespace is None else [namespace]
    )
    row = connection.execute(
        select(*sums, functions.minimum(_REPORT.c.oldest_at)).where(in_namespace)
    ).one()
    return QueueDepth._make(row)


def leases(connection: Connection, namespace: str | None, limit: int) -> list[ActiveLease]:
    """Return at most ``limit`` leases, longest running first."""
    return [
        ActiveLease(
            worker,
            lease_namespace,
            session_id,
            clock.as_utc(lease_until),
            clock.as_utc_or_none(claimed_at),
            attempt,
            taken,
        )
        for worker, lease_namespace, session_id, lease_until, claimed_at, attempt, taken in (
            LEASES.rows(connection, {"namespace": namespace, "limit": limit})
        )
    ]


def workers(connection: Connection, namespace: str | None) -> dict[str, int]:
    """Return how many leases each worker has."""
    return {row[0]: row[1] for row in WORKERS.rows(connection, {"namespace": namespace})}


def recent_rates(connection: Connection, namespace: str | None, seconds: float) -> RecentRates:
    """Count the messages sent and the turns finished in the last ``seconds``."""
    since = clock.read_now(connection) - timedelta(seconds=seconds)
    [row] = RECENT_RATES.rows(
        connection, {"namespace": namespace, "since": clock.as_stored(connection, since)}
    )
    return RecentRates(*map(int, row))


def load(connection: Connection, namespaces: Sequence[str] | None) -> Load:
    """Return the load of these namespaces, ``None`` for all. Reads only the busy mailboxes."""
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


class OverdueLease(NamedTuple):
    """A lease that has expired, and that no worker has taken back."""

    namespace: str
    session_id: str
    owner: str
    seconds: float


def overdue_leases(connection: Connection, seconds: float) -> list[OverdueLease]:
    """Return the leases that expired more than ``seconds`` ago, longest first."""
    rows = connection.execute(
        select(
            mailboxes.c.namespace,
            mailboxes.c.session_id,
            mailboxes.c.owner,
            mailboxes.c.lease_until,
            clock.now(connection).label("present"),
        )
        .where(mailboxes.c.owner.is_not(None))
        .order_by(mailboxes.c.lease_until)
    )
    leases = (
        OverdueLease(
            r.namespace, r.session_id, r.owner, (r.present - r.lease_until).total_seconds()
        )
        for r in rows
    )
    return [lease for lease in leases if lease.seconds > seconds]

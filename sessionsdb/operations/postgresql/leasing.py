"""The leases of mailboxes on PostgreSQL: claim and heartbeat. See ``__init__.py``."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import groupby
from operator import itemgetter

from sqlalchemy import Connection

from sessionsdb.engine.postgresql.arrays import ArrayTable
from sessionsdb.engine.statement import Statement
from sessionsdb.operations.delivery_rows import (
    DELIVERY_COLUMNS,
    delivery_from,
    lease_from,
    session_from,
)
from sessionsdb.operations.fair_shares import in_rotation
from sessionsdb.operations.inbox_types import UNFINISHED_SQL, Lease
from sessionsdb.operations.keys import Fence, SessionKey
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
               AND i.status IN {UNFINISHED_SQL} AND c.answer IS NULL
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
# all columns of the index keeps the planner from the primary key. There the walk would pass all
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

_FENCES = ArrayTable("r", namespace="text", session_id="text", epoch="bigint")

_HEARTBEAT = f"""
WITH held AS MATERIALIZED (
    SELECT * FROM (
        SELECT m.namespace, m.session_id
        FROM mailboxes AS m
        JOIN {_FENCES} ON m.namespace = r.namespace AND m.session_id = r.session_id
        WHERE r.epoch = CASE WHEN m.owner = :worker THEN m.epoch END
        ORDER BY m.namespace, m.session_id
        FOR NO KEY UPDATE OF m {{wait}}
    ) AS l
),
clock AS MATERIALIZED (
    SELECT pg_catalog.clock_timestamp() AS now,
           pg_catalog.clock_timestamp()
               + pg_catalog.make_interval(secs => CAST(:lease AS double precision)) AS until,
           pg_catalog.count(*) AS locked
    FROM held
)
UPDATE mailboxes AS m
SET lease_until = clock.until
FROM clock, held AS h
WHERE m.namespace = h.namespace AND m.session_id = h.session_id {{unexpired}}
RETURNING m.namespace, m.session_id
"""

HEARTBEAT = Statement(_HEARTBEAT.format(wait="SKIP LOCKED", unexpired=""))
"""All leases of a worker at once. A lease that is not returned was lost, or its mailbox is locked.

It waits for no lock: a transaction of a caller that stays open for long holds up one lease and not
all of them.
"""

HEARTBEAT_WAITING = Statement(_HEARTBEAT.format(wait="", unexpired="AND m.lease_until > clock.now"))
"""The same for leases whose mailboxes may be locked for long. A lease that is not returned was
lost, or has run out meanwhile: its turn was given up, and the session must not wait for it."""

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
        taken = [columns for _, _, _, _, *columns in group]
        deliveries = [delivery_from(columns) for columns in taken]
        leases.append(lease_from(namespace, session_from(taken[0]), epoch, deliveries, unfinished))
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
    fences: Sequence[Fence],
    lease_seconds: float,
    *,
    wait_for_locks: bool,
) -> set[SessionKey]:
    statement = HEARTBEAT_WAITING if wait_for_locks else HEARTBEAT
    rows = statement.rows(
        connection,
        {
            **_FENCES.parameters([(*key, epoch) for key, epoch in fences]),
            "worker": worker,
            "lease": lease_seconds,
        },
    )
    return {(namespace, session_id) for namespace, session_id in rows}

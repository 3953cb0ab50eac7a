-- What waits now, per channel. Mailboxes that have something unfinished, or that a question holds,
-- are in exactly one of three partial indices; from each, its oldest waiting message is one look-up by primary key, and
-- the dead ones have an index of their own. Finished messages are never read.
CREATE VIEW report_inbox AS
WITH busy AS (
    SELECT namespace, session_id, head, tail, pending, taken,
           1 AS ready, 0 AS retrying, 0 AS leased, 0 AS overdue, question
    FROM mailboxes
    WHERE ready_at IS NOT NULL
    UNION ALL
    SELECT namespace, session_id, head, tail, pending, taken,
           0, CASE WHEN question IS NULL THEN 1 ELSE 0 END, 0, 0, question
    FROM mailboxes
    WHERE wake_at IS NOT NULL
    UNION ALL
    SELECT namespace, session_id, head, tail, pending, taken,
           0, 0, 1, CASE WHEN lease_until < pg_catalog.statement_timestamp() THEN 1 ELSE 0 END,
           NULL
    FROM mailboxes
    WHERE owner IS NOT NULL
),
counted AS (
    SELECT b.namespace, b.session_id, CASE WHEN b.pending > 0 THEN 1 ELSE 0 END AS sessions,
           b.pending - b.taken AS pending,
           b.taken AS running, b.ready, b.retrying, b.leased, b.overdue,
           least(head.enqueued_at, requeued.enqueued_at) AS oldest_at, 0 AS dead,
           q.asked_at AS held_at, 0 AS schedules, 0 AS due, CAST(NULL AS timestamptz) AS due_at
    FROM busy AS b
    LEFT JOIN questions AS q
        ON q.namespace = b.namespace AND q.session_id = b.session_id AND q.position = b.question
    LEFT JOIN LATERAL (
        SELECT i.enqueued_at
        FROM inbox AS i
        WHERE i.namespace = b.namespace AND i.session_id = b.session_id
          AND i.position BETWEEN b.head AND b.tail AND i.status = 'pending'
        ORDER BY i.position
        LIMIT 1
    ) AS head ON true
    LEFT JOIN LATERAL (
        SELECT i.enqueued_at
        FROM inbox AS i
        WHERE i.namespace = b.namespace AND i.session_id = b.session_id
          AND i.ahead AND i.status = 'pending'
        ORDER BY i.position
        LIMIT 1
    ) AS requeued ON true
    UNION ALL
    SELECT namespace, session_id, 0, 0, 0, 0, 0, 0, 0, NULL, pg_catalog.count(*), NULL, 0, 0, NULL
    FROM inbox
    WHERE dead_at IS NOT NULL
    GROUP BY namespace, session_id
    UNION ALL
    SELECT namespace, session_id, 0, 0, 0, 0, 0, 0, 0, NULL, 0, NULL, pg_catalog.count(*),
           pg_catalog.count(*) FILTER (WHERE due_at <= pg_catalog.statement_timestamp()),
           pg_catalog.min(due_at)
    FROM schedules
    GROUP BY namespace, session_id
)
SELECT
    n.namespace,
    s.channel,
    pg_catalog.sum(n.sessions) AS sessions,
    CAST(pg_catalog.sum(n.pending) AS bigint) AS pending,
    CAST(pg_catalog.sum(n.running) AS bigint) AS running,
    pg_catalog.sum(n.ready) AS ready,
    pg_catalog.sum(n.retrying) AS retrying,
    pg_catalog.sum(n.leased) AS leased,
    pg_catalog.sum(n.overdue) AS overdue,
    pg_catalog.min(n.oldest_at) AS oldest_at,
    CASE
        WHEN pg_catalog.min(n.oldest_at) IS NOT NULL THEN CAST(
            extract(epoch FROM greatest(pg_catalog.statement_timestamp() - pg_catalog.min(n.oldest_at), interval '0'))
            AS double precision
        )
    END AS oldest_seconds,
    CAST(pg_catalog.sum(n.dead) AS bigint) AS dead,
    pg_catalog.count(n.held_at) AS held,
    CASE
        WHEN pg_catalog.min(n.held_at) IS NOT NULL THEN CAST(
            extract(epoch FROM greatest(pg_catalog.statement_timestamp() - pg_catalog.min(n.held_at), interval '0'))
            AS double precision
        )
    END AS held_seconds,
    CAST(pg_catalog.sum(n.schedules) AS bigint) AS schedules,
    CAST(pg_catalog.sum(n.due) AS bigint) AS due,
    CASE
        WHEN pg_catalog.sum(n.due) > CAST(0 AS numeric) THEN CAST(
            extract(epoch FROM pg_catalog.statement_timestamp() - pg_catalog.min(n.due_at))
            AS double precision
        )
    END AS late_seconds
FROM counted AS n
JOIN sessions AS s ON s.namespace = n.namespace AND s.id = n.session_id
GROUP BY n.namespace, s.channel

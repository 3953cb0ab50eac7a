-- What waits now, per channel. Mailboxes that have something unfinished, or that a question holds,
-- are in exactly one of three partial indices; from each, its oldest waiting message is one look-up by primary key, and
-- the dead ones have an index of their own. Finished messages are never read. The indices are
-- named: without statistics SQLite would walk over all mailboxes instead.
CREATE VIEW report_inbox AS
WITH busy AS (
    SELECT namespace, session_id, head, tail, pending, taken,
           1 AS ready, 0 AS retrying, 0 AS leased, 0 AS overdue, question
    FROM mailboxes INDEXED BY ix_mailboxes_ready
    WHERE ready_at IS NOT NULL
    UNION ALL
    SELECT namespace, session_id, head, tail, pending, taken,
           0, question IS NULL, 0, 0, question
    FROM mailboxes INDEXED BY ix_mailboxes_waiting
    WHERE wake_at IS NOT NULL
    UNION ALL
    SELECT namespace, session_id, head, tail, pending, taken,
           0, 0, 1, lease_until < strftime('%Y-%m-%d %H:%M:%f', 'now'), NULL
    FROM mailboxes INDEXED BY ix_mailboxes_leased
    WHERE owner IS NOT NULL
),
oldest AS (
    SELECT
        b.*,
        (
            SELECT i.enqueued_at FROM inbox AS i
            WHERE i.namespace = b.namespace AND i.session_id = b.session_id
              AND i.position BETWEEN b.head AND b.tail AND i.status = 'pending'
            ORDER BY i.position
            LIMIT 1
        ) AS at_head,
        (
            SELECT i.enqueued_at FROM inbox AS i
            WHERE i.namespace = b.namespace AND i.session_id = b.session_id
              AND i.ahead AND i.status = 'pending'
            ORDER BY i.position
            LIMIT 1
        ) AS requeued,
        (
            SELECT q.asked_at FROM questions AS q
            WHERE q.namespace = b.namespace AND q.session_id = b.session_id
              AND q.position = b.question
        ) AS held_at
    FROM busy AS b
),
counted AS (
    SELECT namespace, session_id, pending > 0 AS sessions, pending - taken AS pending, taken AS running,
           ready, retrying, leased, overdue,
           min(coalesce(at_head, requeued), coalesce(requeued, at_head)) AS oldest_at, 0 AS dead,
           held_at, 0 AS schedules, 0 AS due, NULL AS due_at
    FROM oldest
    UNION ALL
    SELECT namespace, session_id, 0, 0, 0, 0, 0, 0, 0, NULL, count(*), NULL, 0, 0, NULL
    FROM inbox INDEXED BY ix_inbox_dead
    WHERE dead_at IS NOT NULL
    GROUP BY namespace, session_id
    UNION ALL
    SELECT namespace, session_id, 0, 0, 0, 0, 0, 0, 0, NULL, 0, NULL, count(*),
           count(CASE WHEN due_at <= strftime('%Y-%m-%d %H:%M:%f', 'now') THEN 1 END), min(due_at)
    FROM schedules
    GROUP BY namespace, session_id
)
SELECT
    n.namespace,
    s.channel,
    sum(n.sessions) AS sessions,
    sum(n.pending) AS pending,
    sum(n.running) AS running,
    sum(n.ready) AS ready,
    sum(n.retrying) AS retrying,
    sum(n.leased) AS leased,
    sum(n.overdue) AS overdue,
    min(n.oldest_at) AS oldest_at,
    max(
        0.0,
        strftime('%s', 'now') + substr(strftime('%f', 'now'), 3)
        - strftime('%s', substr(min(n.oldest_at), 1, 19)) - substr(min(n.oldest_at), 20)
    ) AS oldest_seconds,
    sum(n.dead) AS dead,
    count(n.held_at) AS held,
    max(
        0.0,
        strftime('%s', 'now') + substr(strftime('%f', 'now'), 3)
        - strftime('%s', substr(min(n.held_at), 1, 19)) - substr(min(n.held_at), 20)
    ) AS held_seconds,
    sum(n.schedules) AS schedules,
    sum(n.due) AS due,
    CASE
        WHEN sum(n.due) > 0 THEN max(
            0.0,
            strftime('%s', 'now') + substr(strftime('%f', 'now'), 3)
            - strftime('%s', substr(min(n.due_at), 1, 19)) - substr(min(n.due_at), 20)
        )
    END AS late_seconds
FROM counted AS n
JOIN sessions AS s ON s.namespace = n.namespace AND s.id = n.session_id
GROUP BY n.namespace, s.channel

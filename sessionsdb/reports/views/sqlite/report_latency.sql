-- Per day and channel, over the messages that were answered. As percentile_cont does it: the p-th
-- of n values in order stands at the place p * (n - 1), and between two of them it is
-- interpolated, so each value counts with 1 less its distance from that place, if that is above 0.
-- Each day and channel is a cell with a number, because a number sorts faster than three texts.
CREATE VIEW report_latency AS
WITH measured AS MATERIALIZED (
    SELECT
        s.namespace,
        substr(i.finished_at, 1, 10) AS day,
        s.channel,
        strftime('%s', substr(i.enqueued_at, 1, 19)) * 1000000
            + CAST(substr(i.enqueued_at, 21) AS INTEGER) AS enqueued,
        strftime('%s', substr(i.claimed_at, 1, 19)) * 1000000
            + CAST(substr(i.claimed_at, 21) AS INTEGER) AS claimed,
        strftime('%s', substr(i.finished_at, 1, 19)) * 1000000
            + CAST(substr(i.finished_at, 21) AS INTEGER) AS finished
    FROM sessions AS s
    CROSS JOIN inbox AS i ON i.namespace = s.namespace AND i.session_id = s.id
    WHERE i.status = 'done'
),
cells AS MATERIALIZED (
    SELECT namespace, day, channel, count(*) AS messages, row_number() OVER () AS cell
    FROM measured
    GROUP BY namespace, day, channel
),
spans AS MATERIALIZED (
    SELECT
        c.cell,
        c.messages - 1 AS last_place,
        (m.claimed - m.enqueued) / 1000000.0 AS wait,
        (m.finished - m.enqueued) / 1000000.0 AS total
    FROM measured AS m
    CROSS JOIN cells AS c
        ON c.namespace = m.namespace AND c.day = m.day AND c.channel = m.channel
),
waits AS (
    SELECT
        cell,
        sum(wait * max(0.0, 1.0 - abs(0.50 * last_place - place))) AS p50,
        sum(wait * max(0.0, 1.0 - abs(0.95 * last_place - place))) AS p95,
        sum(wait * max(0.0, 1.0 - abs(0.99 * last_place - place))) AS p99
    FROM (
        SELECT cell, last_place, wait,
               row_number() OVER (PARTITION BY cell ORDER BY wait) - 1 AS place
        FROM spans
    )
    GROUP BY cell
),
totals AS (
    SELECT
        cell,
        sum(total * max(0.0, 1.0 - abs(0.50 * last_place - place))) AS p50,
        sum(total * max(0.0, 1.0 - abs(0.95 * last_place - place))) AS p95,
        sum(total * max(0.0, 1.0 - abs(0.99 * last_place - place))) AS p99
    FROM (
        SELECT cell, last_place, total,
               row_number() OVER (PARTITION BY cell ORDER BY total) - 1 AS place
        FROM spans
    )
    GROUP BY cell
)
SELECT
    c.namespace,
    c.day,
    c.channel,
    c.messages,
    w.p50 AS wait_p50,
    w.p95 AS wait_p95,
    w.p99 AS wait_p99,
    t.p50 AS total_p50,
    t.p95 AS total_p95,
    t.p99 AS total_p99
FROM cells AS c
JOIN waits AS w ON w.cell = c.cell
JOIN totals AS t ON t.cell = c.cell

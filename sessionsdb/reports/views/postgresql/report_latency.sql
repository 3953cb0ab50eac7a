-- Per day and channel, over the messages that were answered.
CREATE VIEW report_latency AS
SELECT
    namespace,
    day,
    channel,
    messages,
    wait[1] AS wait_p50,
    wait[2] AS wait_p95,
    wait[3] AS wait_p99,
    total[1] AS total_p50,
    total[2] AS total_p95,
    total[3] AS total_p99
FROM (
    SELECT
        i.namespace,
        CAST(i.finished_at AT TIME ZONE 'UTC' AS date) AS day,
        s.channel,
        pg_catalog.count(*) AS messages,
        pg_catalog.percentile_cont(ARRAY[0.5, 0.95, 0.99]) WITHIN GROUP (
            ORDER BY CAST(extract(epoch FROM i.claimed_at - i.enqueued_at) AS double precision)
        ) AS wait,
        pg_catalog.percentile_cont(ARRAY[0.5, 0.95, 0.99]) WITHIN GROUP (
            ORDER BY CAST(extract(epoch FROM i.finished_at - i.enqueued_at) AS double precision)
        ) AS total
    FROM inbox AS i
    JOIN sessions AS s ON s.namespace = i.namespace AND s.id = i.session_id
    WHERE i.status = 'done'
    GROUP BY 1, 2, 3
) AS measured

-- Per day and channel, over the messages that were answered. As percentile_cont does it: the p-th
-- of n values in order stands at the place p * (n - 1), and between two of them it is
-- interpolated, so each value counts with 1 less its distance from that place, if that is above 0.
--
-- Durations are whole microseconds: julianday is good to a few milliseconds only, which is enough
-- to tell the whole seconds when the digits behind them are known. One sort of all rows puts them
-- into their day and channel; then each of these is sorted by itself, as JSON.
CREATE VIEW report_latency AS
SELECT
    c.namespace,
    c.day,
    c.channel,
    c.messages,
    json_extract(p.value, '$[0]') AS wait_p50,
    json_extract(p.value, '$[1]') AS wait_p95,
    json_extract(p.value, '$[2]') AS wait_p99,
    json_extract(p.value, '$[3]') AS total_p50,
    json_extract(p.value, '$[4]') AS total_p95,
    json_extract(p.value, '$[5]') AS total_p99
FROM (
    SELECT
        s.namespace,
        substr(i.finished_at, 1, 10) AS day,
        s.channel,
        count(*) AS messages,
        json_group_array(
            CAST(round(
                (julianday(i.claimed_at) - julianday(i.enqueued_at)) * 86400
                - (substr(i.claimed_at, 21) - substr(i.enqueued_at, 21)) / 1000000.0
            ) AS INTEGER) * 1000000 + substr(i.claimed_at, 21) - substr(i.enqueued_at, 21)
        ) AS waits,
        json_group_array(
            CAST(round(
                (julianday(i.finished_at) - julianday(i.enqueued_at)) * 86400
                - (substr(i.finished_at, 21) - substr(i.enqueued_at, 21)) / 1000000.0
            ) AS INTEGER) * 1000000 + substr(i.finished_at, 21) - substr(i.enqueued_at, 21)
        ) AS totals
    FROM sessions AS s
    CROSS JOIN inbox AS i ON i.namespace = s.namespace AND i.session_id = s.id
    WHERE i.status = 'done'
    GROUP BY s.namespace, substr(i.finished_at, 1, 10), s.channel
) AS c
CROSS JOIN json_each((
    SELECT json_array(json_array(w.p50, w.p95, w.p99, t.p50, t.p95, t.p99))
    FROM (
        SELECT
            sum(wait * max(0.0, 1.0 - abs(0.50 * (c.messages - 1) - place))) / 1000000 AS p50,
            sum(wait * max(0.0, 1.0 - abs(0.95 * (c.messages - 1) - place))) / 1000000 AS p95,
            sum(wait * max(0.0, 1.0 - abs(0.99 * (c.messages - 1) - place))) / 1000000 AS p99
        FROM (
            SELECT value AS wait, row_number() OVER (ORDER BY value) - 1 AS place
            FROM json_each(c.waits)
        )
    ) AS w
    CROSS JOIN (
        SELECT
            sum(total * max(0.0, 1.0 - abs(0.50 * (c.messages - 1) - place))) / 1000000 AS p50,
            sum(total * max(0.0, 1.0 - abs(0.95 * (c.messages - 1) - place))) / 1000000 AS p95,
            sum(total * max(0.0, 1.0 - abs(0.99 * (c.messages - 1) - place))) / 1000000 AS p99
        FROM (
            SELECT value AS total, row_number() OVER (ORDER BY value) - 1 AS place
            FROM json_each(c.totals)
        )
    ) AS t
)) AS p

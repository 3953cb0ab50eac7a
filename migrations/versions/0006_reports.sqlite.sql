-- One row a handled message: done, or dead after its last attempt. Durations are whole microseconds
-- before they are divided: julianday is good to a few milliseconds only, which is enough to tell
-- the whole seconds when the digits behind them are known.
CREATE VIEW report_turns AS
SELECT
    i.namespace,
    i.session_id,
    i.position,
    s.channel,
    i.sender,
    i.status,
    i.attempts,
    i.worker,
    i.model,
    i.enqueued_at,
    i.claimed_at,
    i.finished_at,
    (
        CAST(round(
            (julianday(i.claimed_at) - julianday(i.enqueued_at)) * 86400
            - (substr(i.claimed_at, 21) - substr(i.enqueued_at, 21)) / 1000000.0
        ) AS INTEGER) * 1000000 + substr(i.claimed_at, 21) - substr(i.enqueued_at, 21)
    ) / 1000000.0 AS wait_seconds,
    (
        CAST(round(
            (julianday(i.finished_at) - julianday(i.claimed_at)) * 86400
            - (substr(i.finished_at, 21) - substr(i.claimed_at, 21)) / 1000000.0
        ) AS INTEGER) * 1000000 + substr(i.finished_at, 21) - substr(i.claimed_at, 21)
    ) / 1000000.0 AS work_seconds,
    (
        CAST(round(
            (julianday(i.finished_at) - julianday(i.enqueued_at)) * 86400
            - (substr(i.finished_at, 21) - substr(i.enqueued_at, 21)) / 1000000.0
        ) AS INTEGER) * 1000000 + substr(i.finished_at, 21) - substr(i.enqueued_at, 21)
    ) / 1000000.0 AS total_seconds,
    i.input_tokens,
    i.output_tokens,
    i.first_seq,
    i.last_seq,
    i.error
FROM inbox AS i
JOIN sessions AS s ON s.namespace = i.namespace AND s.id = i.session_id
WHERE i.status IN ('done', 'dead');

-- Per day and channel. What happened is counted session by session, along the primary keys: a sort
-- of one session's rows each time, where one of all rows would go through temporary files. The days
-- of a session come to the outside as JSON, SQLite's way to join a subquery that looks at the row
-- before it, so that a condition on the namespace decides which sessions are looked at.
CREATE VIEW report_activity AS
SELECT
    namespace,
    day,
    channel,
    count(*) AS sessions,
    sum(json_extract(counts, '$[0]')) AS new_sessions,
    sum(json_extract(counts, '$[1]')) AS messages,
    sum(json_extract(counts, '$[2]')) AS turns,
    sum(json_extract(counts, '$[3]')) AS dead,
    sum(json_extract(counts, '$[4]')) AS input_tokens,
    sum(json_extract(counts, '$[5]')) AS output_tokens
FROM (
    SELECT s.namespace, s.channel, days.key AS day, days.value AS counts
    FROM sessions AS s
    CROSS JOIN json_each((
        SELECT json_group_object(
            day,
            json_array(new_sessions, messages, turns, dead, input_tokens, output_tokens)
        )
        FROM (
            SELECT
                day,
                sum(new_sessions) AS new_sessions,
                sum(messages) AS messages,
                sum(turns) AS turns,
                sum(dead) AS dead,
                sum(input_tokens) AS input_tokens,
                sum(output_tokens) AS output_tokens
            FROM (
                SELECT
                    substr(s.created_at, 1, 10) AS day,
                    1 AS new_sessions,
                    0 AS messages,
                    0 AS turns,
                    0 AS dead,
                    0 AS input_tokens,
                    0 AS output_tokens
                UNION ALL
                SELECT substr(m.created_at, 1, 10), 0, count(*), 0, 0, 0, 0
                FROM messages AS m
                WHERE m.namespace = s.namespace AND m.session_id = s.id
                GROUP BY 1
                UNION ALL
                SELECT
                    substr(i.finished_at, 1, 10),
                    0,
                    0,
                    count(DISTINCT i.first_seq),
                    count(CASE WHEN i.status = 'dead' THEN 1 END),
                    coalesce(sum(i.input_tokens), 0),
                    coalesce(sum(i.output_tokens), 0)
                FROM inbox AS i
                WHERE i.namespace = s.namespace AND i.session_id = s.id
                  AND i.status IN ('done', 'dead')
                GROUP BY 1
            )
            GROUP BY day
        )
    )) AS days
)
GROUP BY namespace, day, channel;

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
)) AS p;

-- Every session climbs to its root and adds its work to each session on the way, itself included.
-- It climbs in a recursion of its own, which comes to the outside as JSON, SQLite's way to join a
-- subquery that looks at the row before it: so a condition on the namespace decides which sessions
-- climb. CROSS JOIN keeps this order of joins: without statistics SQLite picks one that is quadratic.
CREATE VIEW report_tree AS
WITH subtree AS (
    SELECT
        s.namespace,
        json_extract(step.value, '$[0]') AS session_id,
        count(*) AS sessions,
        sum(json_extract(step.value, '$[1]')) AS turns,
        sum(json_extract(step.value, '$[2]')) AS input_tokens,
        sum(json_extract(step.value, '$[3]')) AS output_tokens,
        max(s.last_active) AS last_active,
        -- A climb begins at the session itself.
        sum(json_extract(step.value, '$[1]')) FILTER (WHERE step.key = 0) AS own_turns,
        sum(json_extract(step.value, '$[2]')) FILTER (WHERE step.key = 0) AS own_input_tokens,
        sum(json_extract(step.value, '$[3]')) FILTER (WHERE step.key = 0) AS own_output_tokens
    FROM sessions AS s
    CROSS JOIN json_each((
        WITH RECURSIVE climb AS (
            SELECT s.id AS id, s.parent_id AS parent_id
            UNION ALL
            SELECT p.id, p.parent_id
            FROM climb AS c
            CROSS JOIN sessions AS p ON p.namespace = s.namespace AND p.id = c.parent_id
        )
        SELECT json_group_array(json_array(c.id, w.turns, w.input_tokens, w.output_tokens))
        FROM (
            SELECT
                count(DISTINCT i.first_seq) AS turns,
                coalesce(sum(i.input_tokens), 0) AS input_tokens,
                coalesce(sum(i.output_tokens), 0) AS output_tokens
            FROM inbox AS i
            WHERE i.namespace = s.namespace AND i.session_id = s.id AND i.status = 'done'
        ) AS w
        CROSS JOIN climb AS c
    )) AS step
    GROUP BY s.namespace, json_extract(step.value, '$[0]')
)
SELECT
    t.namespace,
    r.id AS root_id,
    r.channel AS root_channel,
    s.id AS session_id,
    s.parent_id,
    s.depth,
    CASE
        WHEN s.parent_id IS NULL THEN s.id
        ELSE (
            WITH RECURSIVE climb AS (
                SELECT s.id AS path, s.parent_id AS parent_id
                UNION ALL
                SELECT p.id || ' > ' || c.path, p.parent_id
                FROM climb AS c
                CROSS JOIN sessions AS p ON p.namespace = s.namespace AND p.id = c.parent_id
            )
            SELECT path FROM climb WHERE parent_id IS NULL
        )
    END AS path,
    s.channel,
    t.own_turns AS turns,
    t.own_input_tokens AS input_tokens,
    t.own_output_tokens AS output_tokens,
    t.sessions AS subtree_sessions,
    t.turns AS subtree_turns,
    t.input_tokens AS subtree_input_tokens,
    t.output_tokens AS subtree_output_tokens,
    t.last_active AS subtree_last_active
FROM subtree AS t
CROSS JOIN sessions AS s ON s.namespace = t.namespace AND s.id = t.session_id
CROSS JOIN sessions AS r ON r.namespace = s.namespace AND r.id = coalesce(s.root_id, s.id);

-- Per day and channel. What happened is counted per session and day first: it is far less than
-- the rows, and the channel is then looked up once for each. Sessions go by rowid, because a
-- number sorts faster than two texts, and are walked in CROSS JOIN order, along the primary keys.
CREATE VIEW report_activity AS
WITH happened AS (
    SELECT
        rowid AS session,
        substr(created_at, 1, 10) AS day,
        1 AS new_sessions,
        0 AS messages,
        0 AS turns,
        0 AS dead,
        0 AS input_tokens,
        0 AS output_tokens
    FROM sessions
    UNION ALL
    SELECT
        s.rowid,
        substr(m.created_at, 1, 10),
        0, count(*), 0, 0, 0, 0
    FROM sessions AS s
    CROSS JOIN messages AS m ON m.namespace = s.namespace AND m.session_id = s.id
    GROUP BY 1, 2
    UNION ALL
    SELECT
        s.rowid,
        substr(i.finished_at, 1, 10),
        0,
        0,
        count(DISTINCT i.first_seq),
        count(CASE WHEN i.status = 'dead' THEN 1 END),
        coalesce(sum(i.input_tokens), 0),
        coalesce(sum(i.output_tokens), 0)
    FROM sessions AS s
    CROSS JOIN inbox AS i ON i.namespace = s.namespace AND i.session_id = s.id
    WHERE i.status IN ('done', 'dead')
    GROUP BY 1, 2
),
daily AS (
    SELECT
        session,
        day,
        sum(new_sessions) AS new_sessions,
        sum(messages) AS messages,
        sum(turns) AS turns,
        sum(dead) AS dead,
        sum(input_tokens) AS input_tokens,
        sum(output_tokens) AS output_tokens
    FROM happened
    GROUP BY session, day
)
SELECT
    s.namespace,
    d.day,
    s.channel,
    count(*) AS sessions,
    sum(d.new_sessions) AS new_sessions,
    sum(d.messages) AS messages,
    sum(d.turns) AS turns,
    sum(d.dead) AS dead,
    sum(d.input_tokens) AS input_tokens,
    sum(d.output_tokens) AS output_tokens
FROM daily AS d
JOIN sessions AS s ON s.rowid = d.session
GROUP BY s.namespace, d.day, s.channel

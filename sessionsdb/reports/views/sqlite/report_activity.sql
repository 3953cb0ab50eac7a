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
                    -- A stopped turn may have a first_seq. It is no turn that was committed.
                    count(DISTINCT CASE WHEN i.status = 'done' THEN i.first_seq END),
                    count(CASE WHEN i.status = 'dead' THEN 1 END),
                    coalesce(sum(i.input_tokens), 0),
                    coalesce(sum(i.output_tokens), 0)
                FROM inbox AS i
                WHERE i.namespace = s.namespace AND i.session_id = s.id
                  AND (i.status IN ('done', 'dead')
                       OR (i.status = 'cancelled' AND i.claimed_at IS NOT NULL))
                GROUP BY 1
            )
            GROUP BY day
        )
    )) AS days
)
GROUP BY namespace, day, channel

-- One row a session, in one walk along the primary keys: a condition on namespace and session
-- reaches them, because they are what is grouped by.
CREATE VIEW report_sessions AS
SELECT
    s.namespace,
    s.id AS session_id,
    s.channel,
    s.peer,
    s.parent_id,
    coalesce(s.root_id, s.id) AS root_id,
    s.depth,
    (
        SELECT count(*) FROM sessions AS c
        WHERE c.namespace = s.namespace AND c.parent_id = s.id
    ) AS children,
    s.model,
    s.created_at,
    s.updated_at,
    s.last_active,
    s.ended_at,
    s.end_reason,
    CASE
        WHEN s.ended_at IS NOT NULL THEN 'ended'
        WHEN m.owner IS NOT NULL THEN 'running'
        WHEN m.question IS NOT NULL THEN 'held'
        WHEN m.wake_at IS NOT NULL THEN 'retrying'
        WHEN m.ready_at IS NOT NULL THEN 'ready'
        ELSE 'idle'
    END AS state,
    s.message_count,
    m.pending - m.taken AS pending,
    m.taken AS running,
    -- The messages of one batch share the turn, and so its first_seq. A stopped turn may have one.
    count(DISTINCT CASE WHEN i.status = 'done' THEN i.first_seq END) AS turns,
    count(CASE WHEN i.status = 'dead' THEN 1 END) AS dead,
    coalesce(sum(i.input_tokens), 0) AS input_tokens,
    coalesce(sum(i.output_tokens), 0) AS output_tokens,
    (
        SELECT e.error FROM inbox AS e
        WHERE e.namespace = s.namespace AND e.session_id = s.id AND e.error IS NOT NULL
        ORDER BY e.claimed_at DESC, e.position DESC
        LIMIT 1
    ) AS last_error,
    s.forked_from,
    (
        SELECT q.asked_at FROM questions AS q
        WHERE q.namespace = s.namespace AND q.session_id = s.id AND q.position = m.question
    ) AS held_at,
    (
        SELECT max(
            0.0,
            strftime('%s', 'now') + substr(strftime('%f', 'now'), 3)
            - strftime('%s', substr(q.asked_at, 1, 19)) - substr(q.asked_at, 20)
        )
        FROM questions AS q
        WHERE q.namespace = s.namespace AND q.session_id = s.id AND q.position = m.question
    ) AS held_seconds,
    (
        SELECT count(*) FROM schedules AS d
        WHERE d.namespace = s.namespace AND d.session_id = s.id
    ) AS schedules,
    (
        SELECT max(
            0.0,
            strftime('%s', 'now') + substr(strftime('%f', 'now'), 3)
            - strftime('%s', substr(min(d.due_at), 1, 19)) - substr(min(d.due_at), 20)
        )
        FROM schedules AS d
        WHERE d.namespace = s.namespace AND d.session_id = s.id
          AND d.due_at <= strftime('%Y-%m-%d %H:%M:%f', 'now')
    ) AS late_seconds
FROM sessions AS s
JOIN mailboxes AS m ON m.namespace = s.namespace AND m.session_id = s.id
LEFT JOIN inbox AS i ON i.namespace = s.namespace AND i.session_id = s.id
GROUP BY s.namespace, s.id

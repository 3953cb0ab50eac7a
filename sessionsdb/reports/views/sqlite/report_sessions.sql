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
        WHEN m.wake_at IS NOT NULL THEN 'retrying'
        WHEN m.ready_at IS NOT NULL THEN 'ready'
        ELSE 'idle'
    END AS state,
    s.message_count,
    m.pending - m.taken AS pending,
    m.taken AS running,
    -- The messages of one batch share the turn, and so its first_seq; only a done one has it.
    count(DISTINCT i.first_seq) AS turns,
    count(CASE WHEN i.status = 'dead' THEN 1 END) AS dead,
    coalesce(sum(i.input_tokens), 0) AS input_tokens,
    coalesce(sum(i.output_tokens), 0) AS output_tokens,
    (
        SELECT e.error FROM inbox AS e
        WHERE e.namespace = s.namespace AND e.session_id = s.id AND e.error IS NOT NULL
        ORDER BY e.claimed_at DESC, e.position DESC
        LIMIT 1
    ) AS last_error
FROM sessions AS s
JOIN mailboxes AS m ON m.namespace = s.namespace AND m.session_id = s.id
LEFT JOIN inbox AS i ON i.namespace = s.namespace AND i.session_id = s.id
GROUP BY s.namespace, s.id

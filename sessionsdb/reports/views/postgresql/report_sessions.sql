-- One row a session. Each part is a set of its own, joined by key, so that a condition on the
-- namespace or on the session reaches the tables, and a part that isn't asked for isn't made.
CREATE VIEW report_sessions AS
SELECT
    s.namespace,
    s.id AS session_id,
    s.channel,
    s.peer,
    s.parent_id,
    coalesce(s.root_id, s.id) AS root_id,
    s.depth,
    coalesce(c.children, 0) AS children,
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
    coalesce(w.turns, 0) AS turns,
    coalesce(w.dead, 0) AS dead,
    coalesce(w.input_tokens, 0) AS input_tokens,
    coalesce(w.output_tokens, 0) AS output_tokens,
    e.error AS last_error,
    s.forked_from,
    q.asked_at AS held_at,
    CASE
        WHEN q.asked_at IS NOT NULL THEN CAST(
            extract(epoch FROM greatest(pg_catalog.statement_timestamp() - q.asked_at, interval '0'))
            AS double precision
        )
    END AS held_seconds,
    coalesce(d.schedules, 0) AS schedules,
    CASE
        WHEN d.due_at <= pg_catalog.statement_timestamp() THEN CAST(
            extract(epoch FROM pg_catalog.statement_timestamp() - d.due_at) AS double precision
        )
    END AS late_seconds
FROM sessions AS s
JOIN mailboxes AS m ON m.namespace = s.namespace AND m.session_id = s.id
LEFT JOIN (
    SELECT namespace, parent_id, pg_catalog.count(*) AS children
    FROM sessions
    WHERE parent_id IS NOT NULL
    GROUP BY namespace, parent_id
) AS c ON c.namespace = s.namespace AND c.parent_id = s.id
LEFT JOIN (
    -- The messages of one batch share the turn, and so its first_seq. A stopped turn may have one.
    SELECT
        namespace,
        session_id,
        pg_catalog.count(DISTINCT first_seq) FILTER (WHERE status = 'done') AS turns,
        pg_catalog.count(*) FILTER (WHERE status = 'dead') AS dead,
        CAST(pg_catalog.sum(input_tokens) AS bigint) AS input_tokens,
        CAST(pg_catalog.sum(output_tokens) AS bigint) AS output_tokens
    FROM inbox
    GROUP BY namespace, session_id
) AS w ON w.namespace = s.namespace AND w.session_id = s.id
LEFT JOIN (
    SELECT DISTINCT ON (namespace, session_id) namespace, session_id, error
    FROM inbox
    WHERE error IS NOT NULL
    ORDER BY namespace, session_id, claimed_at DESC NULLS LAST, position DESC
) AS e ON e.namespace = s.namespace AND e.session_id = s.id
LEFT JOIN questions AS q
    ON q.namespace = m.namespace AND q.session_id = m.session_id AND q.position = m.question
LEFT JOIN (
    SELECT namespace, session_id, pg_catalog.count(*) AS schedules,
           pg_catalog.min(due_at) AS due_at
    FROM schedules
    GROUP BY namespace, session_id
) AS d ON d.namespace = s.namespace AND d.session_id = s.id

-- One row a session. Each part is a set of its own, joined by key, so that a condition on the
-- namespace or on the session reaches the tables, and a part that isn't asked for isn't made.
CREATE OR REPLACE VIEW report_sessions AS
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
) AS d ON d.namespace = s.namespace AND d.session_id = s.id;

-- What waits now, per channel. Mailboxes that have something unfinished, or that a question holds,
-- are in exactly one of three partial indices; from each, its oldest waiting message is one look-up by primary key, and
-- the dead ones have an index of their own. Finished messages are never read.
CREATE OR REPLACE VIEW report_inbox AS
WITH busy AS (
    SELECT namespace, session_id, head, tail, pending, taken,
           1 AS ready, 0 AS retrying, 0 AS leased, 0 AS overdue, question
    FROM mailboxes
    WHERE ready_at IS NOT NULL
    UNION ALL
    SELECT namespace, session_id, head, tail, pending, taken,
           0, CASE WHEN question IS NULL THEN 1 ELSE 0 END, 0, 0, question
    FROM mailboxes
    WHERE wake_at IS NOT NULL
    UNION ALL
    SELECT namespace, session_id, head, tail, pending, taken,
           0, 0, 1, CASE WHEN lease_until < pg_catalog.statement_timestamp() THEN 1 ELSE 0 END,
           NULL
    FROM mailboxes
    WHERE owner IS NOT NULL
),
counted AS (
    SELECT b.namespace, b.session_id, CASE WHEN b.pending > 0 THEN 1 ELSE 0 END AS sessions,
           b.pending - b.taken AS pending,
           b.taken AS running, b.ready, b.retrying, b.leased, b.overdue,
           least(head.enqueued_at, requeued.enqueued_at) AS oldest_at, 0 AS dead,
           q.asked_at AS held_at, 0 AS schedules, 0 AS due, CAST(NULL AS timestamptz) AS due_at
    FROM busy AS b
    LEFT JOIN questions AS q
        ON q.namespace = b.namespace AND q.session_id = b.session_id AND q.position = b.question
    LEFT JOIN LATERAL (
        SELECT i.enqueued_at
        FROM inbox AS i
        WHERE i.namespace = b.namespace AND i.session_id = b.session_id
          AND i.position BETWEEN b.head AND b.tail AND i.status = 'pending'
        ORDER BY i.position
        LIMIT 1
    ) AS head ON true
    LEFT JOIN LATERAL (
        SELECT i.enqueued_at
        FROM inbox AS i
        WHERE i.namespace = b.namespace AND i.session_id = b.session_id
          AND i.ahead AND i.status = 'pending'
        ORDER BY i.position
        LIMIT 1
    ) AS requeued ON true
    UNION ALL
    SELECT namespace, session_id, 0, 0, 0, 0, 0, 0, 0, NULL, pg_catalog.count(*), NULL, 0, 0, NULL
    FROM inbox
    WHERE dead_at IS NOT NULL
    GROUP BY namespace, session_id
    UNION ALL
    SELECT namespace, session_id, 0, 0, 0, 0, 0, 0, 0, NULL, 0, NULL, pg_catalog.count(*),
           pg_catalog.count(*) FILTER (WHERE due_at <= pg_catalog.statement_timestamp()),
           pg_catalog.min(due_at)
    FROM schedules
    GROUP BY namespace, session_id
)
SELECT
    n.namespace,
    s.channel,
    pg_catalog.sum(n.sessions) AS sessions,
    CAST(pg_catalog.sum(n.pending) AS bigint) AS pending,
    CAST(pg_catalog.sum(n.running) AS bigint) AS running,
    pg_catalog.sum(n.ready) AS ready,
    pg_catalog.sum(n.retrying) AS retrying,
    pg_catalog.sum(n.leased) AS leased,
    pg_catalog.sum(n.overdue) AS overdue,
    pg_catalog.min(n.oldest_at) AS oldest_at,
    CASE
        WHEN pg_catalog.min(n.oldest_at) IS NOT NULL THEN CAST(
            extract(epoch FROM greatest(pg_catalog.statement_timestamp() - pg_catalog.min(n.oldest_at), interval '0'))
            AS double precision
        )
    END AS oldest_seconds,
    CAST(pg_catalog.sum(n.dead) AS bigint) AS dead,
    pg_catalog.count(n.held_at) AS held,
    CASE
        WHEN pg_catalog.min(n.held_at) IS NOT NULL THEN CAST(
            extract(epoch FROM greatest(pg_catalog.statement_timestamp() - pg_catalog.min(n.held_at), interval '0'))
            AS double precision
        )
    END AS held_seconds,
    CAST(pg_catalog.sum(n.schedules) AS bigint) AS schedules,
    CAST(pg_catalog.sum(n.due) AS bigint) AS due,
    CASE
        WHEN pg_catalog.sum(n.due) > CAST(0 AS numeric) THEN CAST(
            extract(epoch FROM pg_catalog.statement_timestamp() - pg_catalog.min(n.due_at))
            AS double precision
        )
    END AS late_seconds
FROM counted AS n
JOIN sessions AS s ON s.namespace = n.namespace AND s.id = n.session_id
GROUP BY n.namespace, s.channel;

-- Every session climbs to its root: the last step of a climb knows the whole path, and all of its
-- steps together say who is below whom. Each session that has a parent climbs in a recursion of
-- its own, so that a condition on the namespace reaches the tables: through one recursion over all
-- it would not.
CREATE OR REPLACE VIEW report_tree AS
WITH climb AS NOT MATERIALIZED (
    SELECT namespace, id AS session_id, id AS ancestor_id, parent_id AS next_id, id AS path
    FROM sessions
    UNION ALL
    SELECT s.namespace, s.id, above.id, above.parent_id, above.path
    FROM sessions AS s
    CROSS JOIN LATERAL (
        WITH RECURSIVE step AS (
            SELECT p.id, p.parent_id, p.id || ' > ' || s.id AS path
            FROM sessions AS p
            WHERE p.namespace = s.namespace AND p.id = s.parent_id
            UNION ALL
            SELECT p.id, p.parent_id, p.id || ' > ' || c.path
            FROM step AS c
            JOIN sessions AS p ON p.namespace = s.namespace AND p.id = c.parent_id
        )
        SELECT id, parent_id, path FROM step
    ) AS above
    WHERE s.parent_id IS NOT NULL
),
work AS (
    SELECT
        namespace,
        session_id,
        pg_catalog.count(DISTINCT first_seq) FILTER (WHERE status = 'done') AS turns,
        pg_catalog.sum(input_tokens) AS input_tokens,
        pg_catalog.sum(output_tokens) AS output_tokens
    FROM inbox
    GROUP BY namespace, session_id
),
subtree AS (
    SELECT
        c.namespace,
        c.ancestor_id,
        pg_catalog.count(*) AS sessions,
        CAST(coalesce(pg_catalog.sum(w.turns), 0) AS bigint) AS turns,
        CAST(coalesce(pg_catalog.sum(w.input_tokens), 0) AS bigint) AS input_tokens,
        CAST(coalesce(pg_catalog.sum(w.output_tokens), 0) AS bigint) AS output_tokens,
        CAST(
            coalesce(pg_catalog.sum(w.turns) FILTER (WHERE c.session_id = c.ancestor_id), 0) AS bigint
        ) AS own_turns,
        CAST(
            coalesce(pg_catalog.sum(w.input_tokens) FILTER (WHERE c.session_id = c.ancestor_id), 0) AS bigint
        ) AS own_input_tokens,
        CAST(
            coalesce(pg_catalog.sum(w.output_tokens) FILTER (WHERE c.session_id = c.ancestor_id), 0) AS bigint
        ) AS own_output_tokens,
        pg_catalog.max(s.last_active) AS last_active
    FROM climb AS c
    JOIN sessions AS s ON s.namespace = c.namespace AND s.id = c.session_id
    LEFT JOIN work AS w ON w.namespace = c.namespace AND w.session_id = c.session_id
    GROUP BY c.namespace, c.ancestor_id
)
SELECT
    c.namespace,
    c.ancestor_id AS root_id,
    r.channel AS root_channel,
    c.session_id,
    s.parent_id,
    s.depth,
    c.path,
    s.channel,
    t.own_turns AS turns,
    t.own_input_tokens AS input_tokens,
    t.own_output_tokens AS output_tokens,
    t.sessions AS subtree_sessions,
    t.turns AS subtree_turns,
    t.input_tokens AS subtree_input_tokens,
    t.output_tokens AS subtree_output_tokens,
    t.last_active AS subtree_last_active,
    s.forked_from
FROM climb AS c
JOIN sessions AS s ON s.namespace = c.namespace AND s.id = c.session_id
JOIN sessions AS r ON r.namespace = c.namespace AND r.id = c.ancestor_id
JOIN subtree AS t ON t.namespace = c.namespace AND t.ancestor_id = c.session_id
WHERE c.next_id IS NULL;

COMMENT ON COLUMN report_sessions.state IS
    '`ended`, `running` (a worker holds it), `held` (by an open question), `retrying` (a failed message waits for its next attempt), `ready` (a message waits for a worker) or `idle`.';

COMMENT ON COLUMN report_sessions.input_tokens IS
    'Tokens in, as its handler reported, failed and stopped turns included; 0 if it did not.';

COMMENT ON COLUMN report_sessions.output_tokens IS
    'Tokens out, likewise.';

COMMENT ON COLUMN report_sessions.forked_from IS
    'The session that it is a fork of; NULL if it is no fork.';

COMMENT ON COLUMN report_sessions.held_at IS
    'When its open question was asked; NULL unless it is held.';

COMMENT ON COLUMN report_sessions.held_seconds IS
    'How long it has been held, seconds; NULL unless it is.';

COMMENT ON COLUMN report_sessions.schedules IS
    'Its messages that are to be sent later.';

COMMENT ON COLUMN report_sessions.late_seconds IS
    'How long the earliest of its schedules has been due, seconds; NULL if none is due.';

COMMENT ON VIEW report_inbox IS
    'Per channel: what waits now. A channel where nothing waits, runs, is held, scheduled or dead has no row.';

COMMENT ON COLUMN report_inbox.held IS
    'Sessions that an open question holds.';

COMMENT ON COLUMN report_inbox.held_seconds IS
    'How long the longest of them has been held, seconds.';

COMMENT ON COLUMN report_inbox.schedules IS
    'Messages that are to be sent later.';

COMMENT ON COLUMN report_inbox.due IS
    'Of these, those whose time has come.';

COMMENT ON COLUMN report_inbox.late_seconds IS
    'How long the earliest of them has been due, seconds; NULL if none is due.';

COMMENT ON COLUMN report_tree.input_tokens IS
    'Its tokens in, as its handler reported, failed and stopped turns included.';

COMMENT ON COLUMN report_tree.output_tokens IS
    'Its tokens out, likewise.';

COMMENT ON COLUMN report_tree.forked_from IS
    'The session that it is a fork of; NULL if it is no fork.';

COMMENT ON COLUMN report_turns.input_tokens IS
    'Tokens in of all attempts, as the handler reported; else NULL. A batch''s stand with its last message, so that sums are right.';

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
    e.error AS last_error
FROM sessions AS s
JOIN mailboxes AS m ON m.namespace = s.namespace AND m.session_id = s.id
LEFT JOIN (
    SELECT namespace, parent_id, pg_catalog.count(*) AS children
    FROM sessions
    WHERE parent_id IS NOT NULL
    GROUP BY namespace, parent_id
) AS c ON c.namespace = s.namespace AND c.parent_id = s.id
LEFT JOIN (
    -- The messages of one batch share the turn, and so its first_seq; only a done one has it.
    SELECT
        namespace,
        session_id,
        pg_catalog.count(DISTINCT first_seq) AS turns,
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
) AS e ON e.namespace = s.namespace AND e.session_id = s.id;

-- What waits now, per channel. Mailboxes that have something unfinished are in exactly one of
-- three partial indices; from each, its oldest waiting message is one look-up by primary key, and
-- the dead ones have an index of their own. Finished messages are never read.
CREATE VIEW report_inbox AS
WITH busy AS (
    SELECT namespace, session_id, head, tail, pending, taken,
           1 AS ready, 0 AS retrying, 0 AS leased, 0 AS overdue
    FROM mailboxes
    WHERE ready_at IS NOT NULL
    UNION ALL
    SELECT namespace, session_id, head, tail, pending, taken,
           0, 1, 0, 0
    FROM mailboxes
    WHERE wake_at IS NOT NULL
    UNION ALL
    SELECT namespace, session_id, head, tail, pending, taken,
           0, 0, 1, CASE WHEN lease_until < pg_catalog.statement_timestamp() THEN 1 ELSE 0 END
    FROM mailboxes
    WHERE owner IS NOT NULL
),
counted AS (
    SELECT b.namespace, b.session_id, 1 AS sessions, b.pending - b.taken AS pending,
           b.taken AS running, b.ready, b.retrying, b.leased, b.overdue,
           least(head.enqueued_at, requeued.enqueued_at) AS oldest_at, 0 AS dead
    FROM busy AS b
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
    SELECT namespace, session_id, 0, 0, 0, 0, 0, 0, 0, NULL, pg_catalog.count(*)
    FROM inbox
    WHERE dead_at IS NOT NULL
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
    CAST(pg_catalog.sum(n.dead) AS bigint) AS dead
FROM counted AS n
JOIN sessions AS s ON s.namespace = n.namespace AND s.id = n.session_id
GROUP BY n.namespace, s.channel;

-- Every session climbs to its root: the last step of a climb knows the whole path, and all of its
-- steps together say who is below whom. Each session that has a parent climbs in a recursion of
-- its own, so that a condition on the namespace reaches the tables: through one recursion over all
-- it would not.
CREATE VIEW report_tree AS
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
        pg_catalog.count(DISTINCT first_seq) AS turns,
        pg_catalog.sum(input_tokens) AS input_tokens,
        pg_catalog.sum(output_tokens) AS output_tokens
    FROM inbox
    WHERE status = 'done'
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
    t.last_active AS subtree_last_active
FROM climb AS c
JOIN sessions AS s ON s.namespace = c.namespace AND s.id = c.session_id
JOIN sessions AS r ON r.namespace = c.namespace AND r.id = c.ancestor_id
JOIN subtree AS t ON t.namespace = c.namespace AND t.ancestor_id = c.session_id
WHERE c.next_id IS NULL;

COMMENT ON VIEW report_sessions IS
    'One row a session: what it is, how it stands, and what its inbox has cost.';

COMMENT ON COLUMN report_sessions.namespace IS
    'The tenant. Every view has it first.';

COMMENT ON COLUMN report_sessions.session_id IS
    'The session''s id, unique in its namespace.';

COMMENT ON COLUMN report_sessions.channel IS
    'Where it came from; `spawned` for a spawned child.';

COMMENT ON COLUMN report_sessions.peer IS
    'Who is at the other end.';

COMMENT ON COLUMN report_sessions.parent_id IS
    'The session that spawned it; NULL for a root.';

COMMENT ON COLUMN report_sessions.root_id IS
    'The top of its tree; its own id for a root.';

COMMENT ON COLUMN report_sessions.depth IS
    'How many sessions are above it; 0 for a root.';

COMMENT ON COLUMN report_sessions.children IS
    'Sessions right below it, ended ones included.';

COMMENT ON COLUMN report_sessions.model IS
    'The model it is set to use; NULL if none is set.';

COMMENT ON COLUMN report_sessions.created_at IS
    'When it was registered, spawned or first saved.';

COMMENT ON COLUMN report_sessions.updated_at IS
    'When its transcript last changed.';

COMMENT ON COLUMN report_sessions.last_active IS
    'When a message was last sent to it or its transcript last changed.';

COMMENT ON COLUMN report_sessions.ended_at IS
    'When it was ended; NULL while it lives.';

COMMENT ON COLUMN report_sessions.end_reason IS
    'The reason that was given for the end.';

COMMENT ON COLUMN report_sessions.state IS
    '`ended`, `running` (a worker holds it), `retrying` (a failed message waits for its next attempt), `ready` (a message waits for a worker) or `idle`.';

COMMENT ON COLUMN report_sessions.message_count IS
    'Messages in its transcript.';

COMMENT ON COLUMN report_sessions.pending IS
    'Inbox messages that wait, without those a worker has.';

COMMENT ON COLUMN report_sessions.running IS
    'Inbox messages that a worker has.';

COMMENT ON COLUMN report_sessions.turns IS
    'Turns committed. A turn over a batch is one.';

COMMENT ON COLUMN report_sessions.dead IS
    'Inbox messages given up after their last attempt.';

COMMENT ON COLUMN report_sessions.input_tokens IS
    'Tokens in, as its handler reported; 0 if it did not.';

COMMENT ON COLUMN report_sessions.output_tokens IS
    'Tokens out, as its handler reported; 0 if it did not.';

COMMENT ON COLUMN report_sessions.last_error IS
    'Why the latest attempt failed, of the messages that are dead, cancelled or tried again; a message that was answered in the end has none.';

COMMENT ON VIEW report_inbox IS
    'Per channel: what waits now. A channel where nothing waits, runs or is dead has no row.';

COMMENT ON COLUMN report_inbox.namespace IS
    'The tenant. Every view has it first.';

COMMENT ON COLUMN report_inbox.channel IS
    'The sessions'' channel.';

COMMENT ON COLUMN report_inbox.sessions IS
    'Sessions that have unfinished messages.';

COMMENT ON COLUMN report_inbox.pending IS
    'Messages that wait, without those a worker has.';

COMMENT ON COLUMN report_inbox.running IS
    'Messages that a worker has.';

COMMENT ON COLUMN report_inbox.ready IS
    'Sessions that a worker may claim now.';

COMMENT ON COLUMN report_inbox.retrying IS
    'Sessions whose next message failed and is tried later.';

COMMENT ON COLUMN report_inbox.leased IS
    'Sessions that a worker holds.';

COMMENT ON COLUMN report_inbox.overdue IS
    'Of these, leases that have run out: the worker died or froze, and another will take the session over.';

COMMENT ON COLUMN report_inbox.oldest_at IS
    'When the oldest message that waits was sent.';

COMMENT ON COLUMN report_inbox.oldest_seconds IS
    'Its age, seconds; NULL if none waits.';

COMMENT ON COLUMN report_inbox.dead IS
    'Messages given up after their last attempt, requeueable.';

COMMENT ON VIEW report_tree IS
    'One row a session, with what it and all below it have done. In the order of `path` each tree is read from its root to its leaves.';

COMMENT ON COLUMN report_tree.namespace IS
    'The tenant. Every view has it first.';

COMMENT ON COLUMN report_tree.root_id IS
    'The top of the tree.';

COMMENT ON COLUMN report_tree.root_channel IS
    'The root''s channel: where the tree came from.';

COMMENT ON COLUMN report_tree.session_id IS
    'The session''s id.';

COMMENT ON COLUMN report_tree.parent_id IS
    'The session right above it; NULL for a root.';

COMMENT ON COLUMN report_tree.depth IS
    'How many sessions are above it; 0 for a root.';

COMMENT ON COLUMN report_tree.path IS
    'The ids from the root to this session, joined by ` > `.';

COMMENT ON COLUMN report_tree.channel IS
    'The session''s own channel; `spawned` for a spawned child.';

COMMENT ON COLUMN report_tree.turns IS
    'Turns it committed. A turn over a batch is one.';

COMMENT ON COLUMN report_tree.input_tokens IS
    'Its tokens in, as its handler reported.';

COMMENT ON COLUMN report_tree.output_tokens IS
    'Its tokens out, as its handler reported.';

COMMENT ON COLUMN report_tree.subtree_sessions IS
    'Sessions in its subtree: itself and all below.';

COMMENT ON COLUMN report_tree.subtree_turns IS
    'Turns committed in its subtree.';

COMMENT ON COLUMN report_tree.subtree_input_tokens IS
    'Tokens in of its subtree.';

COMMENT ON COLUMN report_tree.subtree_output_tokens IS
    'Tokens out of its subtree.';

COMMENT ON COLUMN report_tree.subtree_last_active IS
    'When a session of its subtree was last active.';

COMMENT ON COLUMN report_turns.input_tokens IS
    'Tokens in, as the handler reported; else NULL. A batch''s stand with its last message, so that sums are right.';

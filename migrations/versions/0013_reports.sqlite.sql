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
GROUP BY s.namespace, s.id;

-- What waits now, per channel. Mailboxes that have something unfinished, or that a question holds,
-- are in exactly one of three partial indices; from each, its oldest waiting message is one look-up by primary key, and
-- the dead ones have an index of their own. Finished messages are never read. The indices are
-- named: without statistics SQLite would walk over all mailboxes instead.
CREATE VIEW report_inbox AS
WITH busy AS (
    SELECT namespace, session_id, head, tail, pending, taken,
           1 AS ready, 0 AS retrying, 0 AS leased, 0 AS overdue, question
    FROM mailboxes INDEXED BY ix_mailboxes_ready
    WHERE ready_at IS NOT NULL
    UNION ALL
    SELECT namespace, session_id, head, tail, pending, taken,
           0, question IS NULL, 0, 0, question
    FROM mailboxes INDEXED BY ix_mailboxes_waiting
    WHERE wake_at IS NOT NULL
    UNION ALL
    SELECT namespace, session_id, head, tail, pending, taken,
           0, 0, 1, lease_until < strftime('%Y-%m-%d %H:%M:%f', 'now'), NULL
    FROM mailboxes INDEXED BY ix_mailboxes_leased
    WHERE owner IS NOT NULL
),
oldest AS (
    SELECT
        b.*,
        (
            SELECT i.enqueued_at FROM inbox AS i
            WHERE i.namespace = b.namespace AND i.session_id = b.session_id
              AND i.position BETWEEN b.head AND b.tail AND i.status = 'pending'
            ORDER BY i.position
            LIMIT 1
        ) AS at_head,
        (
            SELECT i.enqueued_at FROM inbox AS i
            WHERE i.namespace = b.namespace AND i.session_id = b.session_id
              AND i.ahead AND i.status = 'pending'
            ORDER BY i.position
            LIMIT 1
        ) AS requeued,
        (
            SELECT q.asked_at FROM questions AS q
            WHERE q.namespace = b.namespace AND q.session_id = b.session_id
              AND q.position = b.question
        ) AS held_at
    FROM busy AS b
),
counted AS (
    SELECT namespace, session_id, pending > 0 AS sessions, pending - taken AS pending, taken AS running,
           ready, retrying, leased, overdue,
           min(coalesce(at_head, requeued), coalesce(requeued, at_head)) AS oldest_at, 0 AS dead,
           held_at, 0 AS schedules, 0 AS due, NULL AS due_at
    FROM oldest
    UNION ALL
    SELECT namespace, session_id, 0, 0, 0, 0, 0, 0, 0, NULL, count(*), NULL, 0, 0, NULL
    FROM inbox INDEXED BY ix_inbox_dead
    WHERE dead_at IS NOT NULL
    GROUP BY namespace, session_id
    UNION ALL
    SELECT namespace, session_id, 0, 0, 0, 0, 0, 0, 0, NULL, 0, NULL, count(*),
           count(CASE WHEN due_at <= strftime('%Y-%m-%d %H:%M:%f', 'now') THEN 1 END), min(due_at)
    FROM schedules
    GROUP BY namespace, session_id
)
SELECT
    n.namespace,
    s.channel,
    sum(n.sessions) AS sessions,
    sum(n.pending) AS pending,
    sum(n.running) AS running,
    sum(n.ready) AS ready,
    sum(n.retrying) AS retrying,
    sum(n.leased) AS leased,
    sum(n.overdue) AS overdue,
    min(n.oldest_at) AS oldest_at,
    max(
        0.0,
        strftime('%s', 'now') + substr(strftime('%f', 'now'), 3)
        - strftime('%s', substr(min(n.oldest_at), 1, 19)) - substr(min(n.oldest_at), 20)
    ) AS oldest_seconds,
    sum(n.dead) AS dead,
    count(n.held_at) AS held,
    max(
        0.0,
        strftime('%s', 'now') + substr(strftime('%f', 'now'), 3)
        - strftime('%s', substr(min(n.held_at), 1, 19)) - substr(min(n.held_at), 20)
    ) AS held_seconds,
    sum(n.schedules) AS schedules,
    sum(n.due) AS due,
    CASE
        WHEN sum(n.due) > 0 THEN max(
            0.0,
            strftime('%s', 'now') + substr(strftime('%f', 'now'), 3)
            - strftime('%s', substr(min(n.due_at), 1, 19)) - substr(min(n.due_at), 20)
        )
    END AS late_seconds
FROM counted AS n
JOIN sessions AS s ON s.namespace = n.namespace AND s.id = n.session_id
GROUP BY n.namespace, s.channel;

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
                count(DISTINCT CASE WHEN i.status = 'done' THEN i.first_seq END) AS turns,
                coalesce(sum(i.input_tokens), 0) AS input_tokens,
                coalesce(sum(i.output_tokens), 0) AS output_tokens
            FROM inbox AS i
            WHERE i.namespace = s.namespace AND i.session_id = s.id
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
    t.last_active AS subtree_last_active,
    s.forked_from
FROM subtree AS t
CROSS JOIN sessions AS s ON s.namespace = t.namespace AND s.id = t.session_id
CROSS JOIN sessions AS r ON r.namespace = s.namespace AND r.id = coalesce(s.root_id, s.id);

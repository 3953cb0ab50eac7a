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
GROUP BY s.namespace, s.id;

-- One row a handled message: done, or dead after its last attempt. SQLite's own arithmetic on times
-- is good to a millisecond only, so seconds and microseconds are taken apart.
CREATE VIEW report_turns AS
SELECT
    namespace,
    session_id,
    position,
    channel,
    sender,
    status,
    attempts,
    worker,
    model,
    enqueued_at,
    claimed_at,
    finished_at,
    (claimed - enqueued) / 1000000.0 AS wait_seconds,
    (finished - claimed) / 1000000.0 AS work_seconds,
    (finished - enqueued) / 1000000.0 AS total_seconds,
    input_tokens,
    output_tokens,
    first_seq,
    last_seq,
    error
FROM (
    SELECT
        i.*,
        s.channel,
        strftime('%s', substr(i.enqueued_at, 1, 19)) * 1000000
            + CAST(substr(i.enqueued_at, 21) AS INTEGER) AS enqueued,
        strftime('%s', substr(i.claimed_at, 1, 19)) * 1000000
            + CAST(substr(i.claimed_at, 21) AS INTEGER) AS claimed,
        strftime('%s', substr(i.finished_at, 1, 19)) * 1000000
            + CAST(substr(i.finished_at, 21) AS INTEGER) AS finished
    FROM inbox AS i
    JOIN sessions AS s ON s.namespace = i.namespace AND s.id = i.session_id
    WHERE i.status IN ('done', 'dead')
);

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
GROUP BY s.namespace, d.day, s.channel;

-- Per day and channel, over the messages that were answered. As percentile_cont does it: the p-th
-- of n values in order stands at the place p * (n - 1), and between two of them it is
-- interpolated, so each value counts with 1 less its distance from that place, if that is above 0.
-- Each day and channel is a cell with a number, because a number sorts faster than three texts.
CREATE VIEW report_latency AS
WITH measured AS MATERIALIZED (
    SELECT
        s.namespace,
        substr(i.finished_at, 1, 10) AS day,
        s.channel,
        strftime('%s', substr(i.enqueued_at, 1, 19)) * 1000000
            + CAST(substr(i.enqueued_at, 21) AS INTEGER) AS enqueued,
        strftime('%s', substr(i.claimed_at, 1, 19)) * 1000000
            + CAST(substr(i.claimed_at, 21) AS INTEGER) AS claimed,
        strftime('%s', substr(i.finished_at, 1, 19)) * 1000000
            + CAST(substr(i.finished_at, 21) AS INTEGER) AS finished
    FROM sessions AS s
    CROSS JOIN inbox AS i ON i.namespace = s.namespace AND i.session_id = s.id
    WHERE i.status = 'done'
),
cells AS MATERIALIZED (
    SELECT namespace, day, channel, count(*) AS messages, row_number() OVER () AS cell
    FROM measured
    GROUP BY namespace, day, channel
),
spans AS MATERIALIZED (
    SELECT
        c.cell,
        c.messages - 1 AS last_place,
        (m.claimed - m.enqueued) / 1000000.0 AS wait,
        (m.finished - m.enqueued) / 1000000.0 AS total
    FROM measured AS m
    CROSS JOIN cells AS c
        ON c.namespace = m.namespace AND c.day = m.day AND c.channel = m.channel
),
waits AS (
    SELECT
        cell,
        sum(wait * max(0.0, 1.0 - abs(0.50 * last_place - place))) AS p50,
        sum(wait * max(0.0, 1.0 - abs(0.95 * last_place - place))) AS p95,
        sum(wait * max(0.0, 1.0 - abs(0.99 * last_place - place))) AS p99
    FROM (
        SELECT cell, last_place, wait,
               row_number() OVER (PARTITION BY cell ORDER BY wait) - 1 AS place
        FROM spans
    )
    GROUP BY cell
),
totals AS (
    SELECT
        cell,
        sum(total * max(0.0, 1.0 - abs(0.50 * last_place - place))) AS p50,
        sum(total * max(0.0, 1.0 - abs(0.95 * last_place - place))) AS p95,
        sum(total * max(0.0, 1.0 - abs(0.99 * last_place - place))) AS p99
    FROM (
        SELECT cell, last_place, total,
               row_number() OVER (PARTITION BY cell ORDER BY total) - 1 AS place
        FROM spans
    )
    GROUP BY cell
)
SELECT
    c.namespace,
    c.day,
    c.channel,
    c.messages,
    w.p50 AS wait_p50,
    w.p95 AS wait_p95,
    w.p99 AS wait_p99,
    t.p50 AS total_p50,
    t.p95 AS total_p95,
    t.p99 AS total_p99
FROM cells AS c
JOIN waits AS w ON w.cell = c.cell
JOIN totals AS t ON t.cell = c.cell;

-- What waits now, per channel. Mailboxes that have something unfinished are in exactly one of
-- three partial indices; from each, its oldest waiting message is one look-up by primary key, and
-- the dead ones have an index of their own. Finished messages are never read. The indices are
-- named: without statistics SQLite would walk over all mailboxes instead.
CREATE VIEW report_inbox AS
WITH busy AS (
    SELECT namespace, session_id, head, tail, pending, taken,
           1 AS ready, 0 AS retrying, 0 AS leased, 0 AS overdue
    FROM mailboxes INDEXED BY ix_mailboxes_ready
    WHERE ready_at IS NOT NULL
    UNION ALL
    SELECT namespace, session_id, head, tail, pending, taken,
           0, 1, 0, 0
    FROM mailboxes INDEXED BY ix_mailboxes_waiting
    WHERE wake_at IS NOT NULL
    UNION ALL
    SELECT namespace, session_id, head, tail, pending, taken,
           0, 0, 1, lease_until < strftime('%Y-%m-%d %H:%M:%f', 'now')
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
              AND i.requeued AND i.status = 'pending'
            ORDER BY i.position
            LIMIT 1
        ) AS requeued
    FROM busy AS b
),
counted AS (
    SELECT namespace, session_id, 1 AS sessions, pending - taken AS pending, taken AS running,
           ready, retrying, leased, overdue,
           min(coalesce(at_head, requeued), coalesce(requeued, at_head)) AS oldest_at, 0 AS dead
    FROM oldest
    UNION ALL
    SELECT namespace, session_id, 0, 0, 0, 0, 0, 0, 0, NULL, count(*)
    FROM inbox INDEXED BY ix_inbox_dead
    WHERE dead_at IS NOT NULL
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
    sum(n.dead) AS dead
FROM counted AS n
JOIN sessions AS s ON s.namespace = n.namespace AND s.id = n.session_id
GROUP BY n.namespace, s.channel;

-- Every session climbs to its root: the last step of a climb knows the whole path, and all of its
-- steps together say who is below whom. CROSS JOIN keeps this order of joins: without statistics
-- SQLite picks one that is quadratic.
CREATE VIEW report_tree AS
WITH RECURSIVE climb AS (
    SELECT namespace, id AS session_id, id AS ancestor_id, parent_id AS next_id, id AS path
    FROM sessions
    UNION ALL
    SELECT c.namespace, c.session_id, p.id, p.parent_id, p.id || ' > ' || c.path
    FROM climb AS c
    JOIN sessions AS p ON p.namespace = c.namespace AND p.id = c.next_id
),
work AS (
    SELECT
        namespace,
        session_id,
        count(DISTINCT first_seq) AS turns,
        sum(input_tokens) AS input_tokens,
        sum(output_tokens) AS output_tokens
    FROM inbox
    WHERE status = 'done'
    GROUP BY namespace, session_id
),
subtree AS (
    SELECT
        c.namespace,
        c.ancestor_id,
        count(*) AS sessions,
        coalesce(sum(w.turns), 0) AS turns,
        coalesce(sum(w.input_tokens), 0) AS input_tokens,
        coalesce(sum(w.output_tokens), 0) AS output_tokens,
        coalesce(sum(w.turns) FILTER (WHERE c.session_id = c.ancestor_id), 0) AS own_turns,
        coalesce(
            sum(w.input_tokens) FILTER (WHERE c.session_id = c.ancestor_id), 0
        ) AS own_input_tokens,
        coalesce(
            sum(w.output_tokens) FILTER (WHERE c.session_id = c.ancestor_id), 0
        ) AS own_output_tokens,
        max(s.last_active) AS last_active
    FROM climb AS c
    CROSS JOIN sessions AS s ON s.namespace = c.namespace AND s.id = c.session_id
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
CROSS JOIN sessions AS s ON s.namespace = c.namespace AND s.id = c.session_id
CROSS JOIN sessions AS r ON r.namespace = c.namespace AND r.id = c.ancestor_id
CROSS JOIN subtree AS t ON t.namespace = c.namespace AND t.ancestor_id = c.session_id
WHERE c.next_id IS NULL;

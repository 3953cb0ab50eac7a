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
WHERE c.next_id IS NULL

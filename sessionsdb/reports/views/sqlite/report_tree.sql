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
CROSS JOIN sessions AS r ON r.namespace = s.namespace AND r.id = coalesce(s.root_id, s.id)

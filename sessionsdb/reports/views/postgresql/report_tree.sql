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
WHERE c.next_id IS NULL

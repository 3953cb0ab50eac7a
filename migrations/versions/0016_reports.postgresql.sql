-- One row a handled message: done, dead after its last attempt, or cancelled after a claim.
CREATE OR REPLACE VIEW report_turns AS
SELECT
    i.namespace,
    i.session_id,
    i.position,
    s.channel,
    i.sender,
    i.status,
    i.attempts,
    i.worker,
    i.model,
    i.enqueued_at,
    i.claimed_at,
    i.finished_at,
    CAST(extract(epoch FROM i.claimed_at - i.enqueued_at) AS double precision) AS wait_seconds,
    CAST(extract(epoch FROM i.finished_at - i.claimed_at) AS double precision) AS work_seconds,
    CAST(extract(epoch FROM i.finished_at - i.enqueued_at) AS double precision) AS total_seconds,
    i.input_tokens,
    i.output_tokens,
    i.first_seq,
    i.last_seq,
    i.error,
    i.stopped_by
FROM inbox AS i
JOIN sessions AS s ON s.namespace = i.namespace AND s.id = i.session_id
WHERE i.status IN ('done', 'dead')
   OR (i.status = 'cancelled' AND i.claimed_at IS NOT NULL);

-- Per day and channel. What happened is counted per session and day first: it is far less than
-- the rows, and the channel is then looked up once for each.
CREATE OR REPLACE VIEW report_activity AS
WITH happened AS (
    SELECT
        namespace,
        id AS session_id,
        CAST(created_at AT TIME ZONE 'UTC' AS date) AS day,
        1 AS new_sessions,
        0 AS messages,
        0 AS turns,
        0 AS dead,
        0 AS input_tokens,
        0 AS output_tokens
    FROM sessions
    UNION ALL
    SELECT
        namespace,
        session_id,
        CAST(created_at AT TIME ZONE 'UTC' AS date),
        0, pg_catalog.count(*), 0, 0, 0, 0
    FROM messages
    GROUP BY 1, 2, 3
    UNION ALL
    SELECT
        namespace,
        session_id,
        CAST(finished_at AT TIME ZONE 'UTC' AS date),
        0,
        0,
        -- A stopped turn may have a first_seq. It is no turn that was committed.
        pg_catalog.count(DISTINCT first_seq) FILTER (WHERE status = 'done'),
        pg_catalog.count(*) FILTER (WHERE status = 'dead'),
        coalesce(pg_catalog.sum(input_tokens), 0),
        coalesce(pg_catalog.sum(output_tokens), 0)
    FROM inbox
    WHERE status IN ('done', 'dead') OR (status = 'cancelled' AND claimed_at IS NOT NULL)
    GROUP BY 1, 2, 3
),
daily AS (
    SELECT
        namespace,
        session_id,
        day,
        pg_catalog.sum(new_sessions) AS new_sessions,
        pg_catalog.sum(messages) AS messages,
        pg_catalog.sum(turns) AS turns,
        pg_catalog.sum(dead) AS dead,
        pg_catalog.sum(input_tokens) AS input_tokens,
        pg_catalog.sum(output_tokens) AS output_tokens
    FROM happened
    GROUP BY namespace, session_id, day
)
SELECT
    d.namespace,
    d.day,
    s.channel,
    pg_catalog.count(*) AS sessions,
    CAST(pg_catalog.sum(d.new_sessions) AS bigint) AS new_sessions,
    CAST(pg_catalog.sum(d.messages) AS bigint) AS messages,
    CAST(pg_catalog.sum(d.turns) AS bigint) AS turns,
    CAST(pg_catalog.sum(d.dead) AS bigint) AS dead,
    CAST(pg_catalog.sum(d.input_tokens) AS bigint) AS input_tokens,
    CAST(pg_catalog.sum(d.output_tokens) AS bigint) AS output_tokens
FROM daily AS d
JOIN sessions AS s ON s.namespace = d.namespace AND s.id = d.session_id
GROUP BY d.namespace, d.day, s.channel;

COMMENT ON VIEW report_turns IS
    'One row a handled message: answered, dead after its last attempt, or cancelled after a turn had begun over it.';

COMMENT ON COLUMN report_turns.status IS
    '`done`, `dead` or `cancelled`.';

COMMENT ON COLUMN report_turns.finished_at IS
    'When it was answered, given up or cancelled.';

COMMENT ON COLUMN report_turns.work_seconds IS
    'From `claimed_at` to `finished_at`, seconds. A message that was cancelled between two attempts has that pause in it.';

COMMENT ON COLUMN report_turns.first_seq IS
    'The first transcript message its turn wrote, NULL if dead. The messages of one batch share it: committed turns are distinct pairs of `session_id` and `first_seq` where `status` is `done`. A cancelled message has it if its question was kept.';

COMMENT ON COLUMN report_turns.error IS
    'Why its last attempt failed: NULL if it is done, or if none failed.';

COMMENT ON COLUMN report_turns.stopped_by IS
    'What cancelled it: `cancel`, `interrupt` or `end`; else NULL.';

COMMENT ON COLUMN report_activity.input_tokens IS
    'Tokens in of the messages handled, as handlers reported. Cancelled ones are included.';

COMMENT ON COLUMN report_activity.output_tokens IS
    'Tokens out, likewise.';

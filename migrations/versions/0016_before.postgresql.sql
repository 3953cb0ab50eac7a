-- One row a handled message: done, or dead after its last attempt.
CREATE VIEW report_turns AS
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
    i.error
FROM inbox AS i
JOIN sessions AS s ON s.namespace = i.namespace AND s.id = i.session_id
WHERE i.status IN ('done', 'dead');

-- Per day and channel. What happened is counted per session and day first: it is far less than
-- the rows, and the channel is then looked up once for each.
CREATE VIEW report_activity AS
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
        pg_catalog.count(DISTINCT first_seq),
        pg_catalog.count(*) FILTER (WHERE status = 'dead'),
        coalesce(pg_catalog.sum(input_tokens), 0),
        coalesce(pg_catalog.sum(output_tokens), 0)
    FROM inbox
    WHERE status IN ('done', 'dead')
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
    'One row a handled message: answered, or dead after its last attempt.';

COMMENT ON COLUMN report_turns.namespace IS
    'The tenant. Every view has it first.';

COMMENT ON COLUMN report_turns.session_id IS
    'The session it was sent to.';

COMMENT ON COLUMN report_turns.position IS
    'Its place in the session''s inbox; with the session''s id it is the receipt.';

COMMENT ON COLUMN report_turns.channel IS
    'The session''s channel.';

COMMENT ON COLUMN report_turns.sender IS
    'The session that sent it, or what `send` was told; else NULL.';

COMMENT ON COLUMN report_turns.status IS
    '`done` or `dead`.';

COMMENT ON COLUMN report_turns.attempts IS
    'Turns begun over it, since it was last requeued.';

COMMENT ON COLUMN report_turns.worker IS
    'The worker of the last attempt.';

COMMENT ON COLUMN report_turns.model IS
    'The model that answered, as the handler reported; else NULL.';

COMMENT ON COLUMN report_turns.enqueued_at IS
    'When it was sent.';

COMMENT ON COLUMN report_turns.claimed_at IS
    'When the last attempt began.';

COMMENT ON COLUMN report_turns.finished_at IS
    'When it was answered or given up.';

COMMENT ON COLUMN report_turns.wait_seconds IS
    'From `enqueued_at` to `claimed_at`, seconds. Earlier attempts and the pauses after them are in it.';

COMMENT ON COLUMN report_turns.work_seconds IS
    'From `claimed_at` to `finished_at`, seconds.';

COMMENT ON COLUMN report_turns.total_seconds IS
    'From `enqueued_at` to `finished_at`, seconds.';

COMMENT ON COLUMN report_turns.input_tokens IS
    'Tokens in of all attempts, as the handler reported; else NULL. A batch''s stand with its last message, so that sums are right.';

COMMENT ON COLUMN report_turns.output_tokens IS
    'Tokens out, likewise.';

COMMENT ON COLUMN report_turns.first_seq IS
    'The first transcript message its turn wrote, NULL if dead. The messages of one batch share it: turns are distinct pairs of `session_id` and `first_seq`.';

COMMENT ON COLUMN report_turns.last_seq IS
    'The last transcript message its turn wrote.';

COMMENT ON COLUMN report_turns.error IS
    'Why its last attempt failed: NULL unless it is dead.';

COMMENT ON VIEW report_activity IS
    'Per day and channel: what happened. A day on which nothing did has no row.';

COMMENT ON COLUMN report_activity.namespace IS
    'The tenant. Every view has it first.';

COMMENT ON COLUMN report_activity.day IS
    'The day, in UTC.';

COMMENT ON COLUMN report_activity.channel IS
    'The sessions'' channel.';

COMMENT ON COLUMN report_activity.sessions IS
    'Sessions that were created, had a message written to the transcript, or had an inbox message handled.';

COMMENT ON COLUMN report_activity.new_sessions IS
    'Sessions created, of those that have not been deleted.';

COMMENT ON COLUMN report_activity.messages IS
    'Transcript messages written, of those still kept.';

COMMENT ON COLUMN report_activity.turns IS
    'Turns committed. A turn over a batch is one.';

COMMENT ON COLUMN report_activity.dead IS
    'Inbox messages given up after their last attempt.';

COMMENT ON COLUMN report_activity.input_tokens IS
    'Tokens in, as handlers reported.';

COMMENT ON COLUMN report_activity.output_tokens IS
    'Tokens out, as handlers reported.';

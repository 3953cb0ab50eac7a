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
)

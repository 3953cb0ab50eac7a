-- One row a handled message: done, dead after its last attempt, or cancelled after a claim.
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
    i.error,
    i.stopped_by
FROM inbox AS i
JOIN sessions AS s ON s.namespace = i.namespace AND s.id = i.session_id
WHERE i.status IN ('done', 'dead')
   OR (i.status = 'cancelled' AND i.claimed_at IS NOT NULL)

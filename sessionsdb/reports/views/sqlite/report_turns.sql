-- One row a handled message: done, dead after its last attempt, or cancelled after a claim.
-- Durations are whole microseconds before they are divided: julianday is good to a few milliseconds only, which is enough to tell
-- the whole seconds when the digits behind them are known.
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
    (
        CAST(round(
            (julianday(i.claimed_at) - julianday(i.enqueued_at)) * 86400
            - (substr(i.claimed_at, 21) - substr(i.enqueued_at, 21)) / 1000000.0
        ) AS INTEGER) * 1000000 + substr(i.claimed_at, 21) - substr(i.enqueued_at, 21)
    ) / 1000000.0 AS wait_seconds,
    (
        CAST(round(
            (julianday(i.finished_at) - julianday(i.claimed_at)) * 86400
            - (substr(i.finished_at, 21) - substr(i.claimed_at, 21)) / 1000000.0
        ) AS INTEGER) * 1000000 + substr(i.finished_at, 21) - substr(i.claimed_at, 21)
    ) / 1000000.0 AS work_seconds,
    (
        CAST(round(
            (julianday(i.finished_at) - julianday(i.enqueued_at)) * 86400
            - (substr(i.finished_at, 21) - substr(i.enqueued_at, 21)) / 1000000.0
        ) AS INTEGER) * 1000000 + substr(i.finished_at, 21) - substr(i.enqueued_at, 21)
    ) / 1000000.0 AS total_seconds,
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

"""The hot transitions of a mailbox on SQLite.

The writing transaction is the only one, so a transition is a conditional UPDATE that says by
RETURNING whether it happened; nothing needs a lock or a second look.
"""

from __future__ import annotations

from sqlalchemy import text

KNOWN_KEY = text("""
SELECT position, fingerprint FROM inbox
WHERE namespace = :namespace AND session_id = :session_id AND idempotency_key = :key
""")

# How far the messages that a sender is running have come, at the most: what it sends goes one
# further. They are found through its mailbox, by the primary key.
CHAIN = text("""
SELECT i.hops, i.origin
FROM mailboxes AS b JOIN inbox AS i ON i.namespace = b.namespace AND i.session_id = b.session_id
    AND i.position BETWEEN b.head AND b.head + b.taken - 1 AND i.status = 'running'
WHERE b.namespace = :namespace AND b.session_id = :sender AND b.taken > 0
UNION ALL
SELECT i.hops, i.origin
FROM mailboxes AS b JOIN inbox AS i ON i.namespace = b.namespace AND i.session_id = b.session_id
    AND i.requeued AND i.status = 'running'
WHERE b.namespace = :namespace AND b.session_id = :sender AND b.taken > 0
ORDER BY hops DESC LIMIT 1
""")

# Gives out the next position if the session is open and its inbox has room.
SEND = text("""
UPDATE mailboxes
SET tail = tail + 1,
    pending = pending + 1,
    ready_at = CASE
        WHEN ready_at IS NULL AND wake_at IS NULL AND owner IS NULL THEN :now
        ELSE ready_at
    END
WHERE namespace = :namespace AND session_id = :session_id
  AND NOT closed AND pending < :pending_limit
RETURNING tail
""")

# Why SEND gave none.
REFUSED = text("""
SELECT closed FROM mailboxes WHERE namespace = :namespace AND session_id = :session_id
""")

QUEUE = text("""
INSERT INTO inbox (namespace, session_id, position, status, content, payload, sender,
                   hops, origin, idempotency_key, fingerprint, enqueued_at)
VALUES (:namespace, :session_id, :position, 'pending', :content, :payload, :sender,
        :hops, :origin, :key, :fingerprint, :now)
""")

TOUCH = text("""
UPDATE sessions SET last_active = max(last_active, :now)
WHERE namespace = :namespace AND id = :session_id
""")

# The mailboxes that have been ready longest. The index is named because the statistics of a day
# with few mailboxes would make the planner walk over all of them on a day with many.
READY = text("""
SELECT namespace, session_id, head, tail, ready_at
FROM mailboxes INDEXED BY ix_mailboxes_ready
WHERE namespace = :namespace AND ready_at IS NOT NULL
ORDER BY ready_at, session_id LIMIT :slots
""")

READY_ANYWHERE = text("""
SELECT namespace, session_id, head, tail, ready_at
FROM mailboxes INDEXED BY ix_mailboxes_ready_anywhere
WHERE ready_at IS NOT NULL
ORDER BY ready_at, namespace, session_id LIMIT :slots
""")

# The messages at a mailbox's head, requeued ones before others.
HEAD = text("""
SELECT position, content, payload, sender, hops, origin, attempts, enqueued_at FROM (
    SELECT * FROM (
        SELECT * FROM inbox
        WHERE namespace = :namespace AND session_id = :session_id AND requeued
        ORDER BY position LIMIT :batch
    )
    UNION ALL
    SELECT * FROM (
        SELECT * FROM inbox
        WHERE namespace = :namespace AND session_id = :session_id
          AND position BETWEEN :head AND :tail
        ORDER BY position LIMIT :batch
    )
)
ORDER BY position LIMIT :batch
""")

TAKE = text("""
UPDATE inbox
SET status = 'running', attempts = attempts + 1, claimed_at = :now, worker = :worker
WHERE namespace = :namespace AND session_id = :session_id AND position = :position
""")

LEASE = text("""
UPDATE mailboxes
SET ready_at = NULL, owner = :worker, epoch = epoch + 1, lease_until = :lease_until,
    taken = :taken
WHERE namespace = :namespace AND session_id = :session_id
RETURNING epoch, pending - taken AS waiting
""")

SESSION = text("""
SELECT id, channel, peer, created_at, last_active, message_count, parent_id, root_id,
       model, system, tools, metadata, version, ended_at, end_reason
FROM sessions WHERE namespace = :namespace AND id = :session_id
""")

# The fence: gives the lease back if it is still held, and else nothing of the turn happens.
RELEASE = text("""
UPDATE mailboxes
SET owner = NULL,
    lease_until = NULL,
    taken = 0,
    pending = pending - :answered,
    head = max(head, :last_position + 1),
    ready_at = CASE WHEN pending > :answered THEN :now END
WHERE namespace = :namespace AND session_id = :session_id
  AND owner = :worker AND epoch = :epoch
RETURNING session_id
""")

ADVANCE = text("""
UPDATE sessions
SET version = version + 1,
    last_seq = last_seq + :count,
    message_count = message_count + :count,
    updated_at = max(updated_at, :now),
    last_active = max(last_active, :now)
WHERE namespace = :namespace AND id = :session_id
RETURNING last_seq - :count AS base
""")

WRITE = text("""
INSERT INTO messages (namespace, session_id, seq, role, content, payload, created_at, position)
VALUES (:namespace, :session_id, :seq, :role, :content, :payload, :now, :position)
""")

FINISH = text("""
UPDATE inbox
SET status = 'done', finished_at = :now, error = NULL, requeued = false,
    first_seq = :first_seq, last_seq = :last_seq, model = :model,
    input_tokens = :input_tokens, output_tokens = :output_tokens
WHERE namespace = :namespace AND session_id = :session_id AND position = :position
""")

HEARTBEAT = text("""
UPDATE mailboxes SET lease_until = :lease_until
WHERE namespace = :namespace AND session_id = :session_id
  AND owner = :worker AND epoch = :epoch
RETURNING namespace, session_id
""")

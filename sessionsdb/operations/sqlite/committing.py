"""The commit of turns on SQLite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection

from sessionsdb.engine.sqlite.clock import stored_now
from sessionsdb.engine.statement import Insert, Statement
from sessionsdb.operations.inbox_types import Commit
from sessionsdb.operations.keys import SessionKey
from sessionsdb.operations.sqlite.transcripts import advance

# The fence: it finds the lease if it is still held. The turn commits if the transcript was not
# rewritten since the claim, and if the worker knows of all messages of the turn. If not, nothing of
# the turn takes place.
FENCE = Statement("""
SELECT s.last_seq, s.rewrites = :rewrites AND m.taken = :answered AS same
FROM mailboxes AS m CROSS JOIN sessions AS s
WHERE m.namespace = :namespace AND m.session_id = :session_id
  AND m.owner = :worker AND m.epoch = :epoch
  AND s.namespace = :namespace AND s.id = :session_id
""")

RELEASE = Statement("""
UPDATE mailboxes
SET owner = NULL,
    lease_until = NULL,
    taken = 0,
    last_taken = 0,
    pending = pending - :answered,
    head = max(head, :last_position + 1),
    ready_at = CASE WHEN pending > :answered THEN :now END
WHERE namespace = :namespace AND session_id = :session_id
""")

ADVANCE = Statement(f"""
UPDATE sessions {advance(":count")}
WHERE namespace = :namespace AND id = :session_id
""")

WRITE = Insert("""
INSERT INTO messages (namespace, session_id, seq, role, content, payload, created_at, position,
                      sender, sent_at, extra)
VALUES (:namespace, :session_id, :seq, :role, :content, :payload, :now, :position,
        :sender, :sent_at, :extra)
""")

FINISH = Statement("""
UPDATE inbox
SET status = 'done', finished_at = :now, error = NULL, ahead = false, joined = false,
    first_seq = :first_seq, last_seq = :last_seq, model = :model,
    input_tokens = coalesce(:input_tokens + coalesce(input_tokens, 0), input_tokens),
    output_tokens = coalesce(:output_tokens + coalesce(output_tokens, 0), output_tokens)
WHERE namespace = :namespace AND session_id = :session_id AND position = :position
""")


def commit(connection: Connection, worker: str, turns: Sequence[Commit]) -> list[bool | None]:
    present = stored_now(connection)
    committed: list[bool | None] = []
    released: dict[SessionKey, tuple[Any, ...]] = {}
    advanced: list[tuple[Any, ...]] = []
    written: list[tuple[Any, ...]] = []
    finished: list[tuple[Any, ...]] = []
    for turn in turns:
        lease, key = turn.lease, turn.lease.key
        answered, count = len(lease.deliveries), len(turn.messages)
        held = FENCE.row(
            connection,
            {
                "namespace": lease.namespace,
                "session_id": lease.session_id,
                "worker": worker,
                "epoch": lease.epoch,
                "rewrites": lease.rewrites,
                "answered": answered,
            },
        )
        # The same lease twice in a list: the first one ends it.
        if held is None or key in released:
            committed.append(False)
            continue
        base, same = held
        if not same:
            committed.append(None)
            continue
        committed.append(True)
        released[key] = (answered, lease.last_position, answered, present, *key)
        advanced.append((count, count, present, present, *key))
        for seq, (message, beside) in enumerate(
            zip(turn.messages, turn.attributes, strict=True), base + 1
        ):
            written.append((*key, seq, *message, present, *beside[:-1]))
        for position, input_tokens, output_tokens in turn.answered:
            usage = (turn.model, input_tokens, output_tokens)
            finished.append((present, base + 1, base + count, *usage, *key, position))
    RELEASE.each(connection, list(released.values()))
    ADVANCE.each(connection, advanced)
    WRITE.each(connection, written)
    FINISH.each(connection, finished)
    return committed

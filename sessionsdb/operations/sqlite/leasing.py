"""The leases of mailboxes on SQLite: claim and heartbeat."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection

from sessionsdb.engine.sqlite.clock import stored_now
from sessionsdb.engine.statement import Statement
from sessionsdb.operations.delivery_rows import (
    DELIVERY_COLUMNS,
    delivery_from,
    lease_from,
    session_from,
)
from sessionsdb.operations.fair_shares import in_rotation
from sessionsdb.operations.inbox_types import UNFINISHED_SQL, Delivery, Lease
from sessionsdb.operations.keys import Fence, SessionKey
from sessionsdb.operations.session_rows import SESSION_COLUMNS

# The mailboxes that have been ready longest. The statement names its index. With statistics from a
# time of few mailboxes the planner would walk over all of them later. The last column
# says whether a message is ahead: few have one, and HEAD takes half of the time of HEAD_AHEAD.
READY = Statement("""
SELECT m.ready_at, m.namespace, m.session_id, m.head, m.tail, m.epoch, m.pending, m.answer,
       EXISTS (
           SELECT 1 FROM inbox AS i INDEXED BY ix_inbox_ahead
           WHERE i.namespace = m.namespace AND i.session_id = m.session_id AND i.ahead
       ) AS any_ahead
FROM mailboxes AS m INDEXED BY ix_mailboxes_ready
WHERE m.namespace = :namespace AND m.ready_at IS NOT NULL
ORDER BY m.ready_at, m.session_id LIMIT :slots
""")

# The first namespace behind another one that has a ready session. It is a step of a walk over the
# index, which reads one entry for each namespace.
READY_NAMESPACE = Statement("""
SELECT namespace FROM mailboxes INDEXED BY ix_mailboxes_ready
WHERE ready_at IS NOT NULL AND namespace > :after
ORDER BY namespace LIMIT 1
""")

IS_READY = Statement("""
SELECT namespace FROM mailboxes INDEXED BY ix_mailboxes_ready
WHERE ready_at IS NOT NULL AND namespace = :namespace LIMIT 1
""")

# The messages at a mailbox's head, each with its session. A second statement for the session takes
# 4 µs more.
HEAD = Statement(f"""
SELECT {DELIVERY_COLUMNS}, {SESSION_COLUMNS}
FROM sessions AS s CROSS JOIN inbox AS i
WHERE s.namespace = :namespace AND s.id = :session_id
  AND i.namespace = :namespace AND i.session_id = :session_id
  AND i.position BETWEEN :head AND :tail
  AND NOT i.ahead AND i.status IN {UNFINISHED_SQL}
ORDER BY i.position LIMIT :batch
""")

# The same where messages are ahead: those come before others.
HEAD_AHEAD = Statement(f"""
SELECT {DELIVERY_COLUMNS}, {SESSION_COLUMNS}
FROM sessions AS s CROSS JOIN inbox AS i
WHERE s.namespace = :namespace AND s.id = :session_id
  AND i.namespace = :namespace AND i.session_id = :session_id AND i.position IN (
    SELECT position FROM (
        SELECT position FROM inbox
        WHERE namespace = :namespace AND session_id = :session_id AND ahead
          AND status IN {UNFINISHED_SQL}
        ORDER BY position LIMIT :batch
    )
    UNION ALL
    SELECT position FROM (
        SELECT position FROM inbox
        WHERE namespace = :namespace AND session_id = :session_id
          AND position BETWEEN :head AND :tail
          AND NOT ahead AND status IN {UNFINISHED_SQL}
        ORDER BY position LIMIT :batch
    )
)
ORDER BY i.ahead DESC, i.position LIMIT :batch
""")

# The answer to a question, which is delivered alone, before all other messages.
HEAD_ANSWER = Statement(f"""
SELECT {DELIVERY_COLUMNS}, {SESSION_COLUMNS}
FROM sessions AS s CROSS JOIN inbox AS i
WHERE s.namespace = :namespace AND s.id = :session_id
  AND i.namespace = :namespace AND i.session_id = :session_id AND i.position = :answer
  AND i.status IN {UNFINISHED_SQL}
""")

TAKE = Statement("""
UPDATE inbox
SET status = 'running', attempts = attempts + 1, claimed_at = :now, worker = :worker,
    epoch = :epoch
WHERE namespace = :namespace AND session_id = :session_id AND position = :position
""")

# The new head is the first delivered position. So holes before it are walked over once.
LEASE = Statement("""
UPDATE mailboxes
SET ready_at = NULL, owner = :worker, epoch = epoch + 1, lease_until = :lease_until,
    taken = :taken, head = max(head, :first), last_taken = :last
WHERE namespace = :namespace AND session_id = :session_id
""")

HEARTBEAT = Statement("""
UPDATE mailboxes SET lease_until = :lease_until
WHERE namespace = :namespace AND session_id = :session_id
  AND owner = :worker AND epoch = :epoch
RETURNING namespace, session_id
""")


def claim(
    connection: Connection,
    worker: str,
    shares: Mapping[str, int],
    batch: int,
    lease_seconds: float,
) -> list[Lease]:
    ready = [
        row
        for namespace, slots in shares.items()
        for row in READY.rows(connection, {"namespace": namespace, "slots": slots})
    ]
    present = stored_now(connection)
    lease_until = stored_now(connection, plus=lease_seconds)
    leases: list[Lease] = []
    leased: list[tuple[Any, ...]] = []
    taken: list[tuple[Any, ...]] = []
    for _, namespace, session_id, head, tail, epoch, unfinished, answer, any_ahead in ready:
        key = {"namespace": namespace, "session_id": session_id}
        if answer is None:
            statement = HEAD_AHEAD if any_ahead else HEAD
            rows = statement.rows(connection, {**key, "batch": batch, "head": head, "tail": tail})
        else:
            rows = HEAD_ANSWER.rows(connection, key | {"answer": answer})
        if not rows:
            continue  # the tables were changed by hand: there is nothing to lease
        session = session_from(rows[0])
        deliveries = _alone_if_tried([delivery_from(row, tried=1) for row in rows])
        leases.append(lease_from(namespace, session, epoch + 1, deliveries, unfinished))
        normal = [one.position for one in deliveries if not one.ahead] or [0]
        leased.append(
            (worker, lease_until, len(deliveries), normal[0], normal[-1], namespace, session_id)
        )
        taken += [
            (present, worker, epoch + 1, namespace, session_id, one.position) for one in deliveries
        ]
    LEASE.each(connection, leased)
    TAKE.each(connection, taken)
    return leases


def ready_namespaces(
    connection: Connection, namespaces: Collection[str] | None, after: str, limit: int
) -> list[str]:
    if namespaces is not None:
        rotated = in_rotation(namespaces, after)
        ready = (name for name in rotated if IS_READY.row(connection, {"namespace": name}))
        return list(itertools.islice(ready, limit))
    ahead = _walk(connection, after, limit)
    behind = _walk(connection, "", limit - len(ahead)) if after else []
    return ahead + [name for name in behind if name <= after]


def _walk(connection: Connection, after: str, limit: int) -> list[str]:
    found: list[str] = []
    while len(found) < limit:
        row = READY_NAMESPACE.row(connection, {"after": found[-1] if found else after})
        if row is None:
            break
        found.append(row[0])
    return found


def _alone_if_tried(waiting: list[Delivery]) -> list[Delivery]:
    """A message that was tried before is delivered alone."""
    if waiting[0].attempt > 1:
        return waiting[:1]
    return list(itertools.takewhile(lambda delivery: delivery.attempt == 1, waiting))


def heartbeat(
    connection: Connection,
    worker: str,
    fences: Sequence[Fence],
    lease_seconds: float,
    *,
    wait_for_locks: bool,
) -> set[SessionKey]:
    lease_until = stored_now(connection, plus=lease_seconds)
    renewed: set[SessionKey] = set()
    for (namespace, session_id), epoch in fences:
        row = HEARTBEAT.row(
            connection,
            {
                "namespace": namespace,
                "session_id": session_id,
                "worker": worker,
                "epoch": epoch,
                "lease_until": lease_until,
            },
        )
        if row is not None:
            renewed.add((namespace, session_id))
    return renewed

"""Mailboxes that are ready, and have no message that a claim could deliver.

No transition leaves one: its rows were changed by hand. As it has been ready longest, each claim
would choose it before all others and lease nothing.
"""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import Connection, select

from sessionsdb.engine.statement import Statement
from sessionsdb.operations.inbox_types import UNFINISHED_SQL
from sessionsdb.operations.keys import SessionKey
from sessionsdb.schema import mailboxes

# A mailbox without its session can't be leased either. The lock of the mailbox keeps its messages
# as they are.
_SET_ASIDE = Statement(f"""
UPDATE mailboxes SET ready_at = NULL
WHERE namespace = :namespace AND session_id = :session_id AND (
    NOT EXISTS (SELECT 1 FROM sessions AS s WHERE s.namespace = :namespace AND s.id = :session_id)
    OR NOT EXISTS (
        SELECT 1 FROM inbox AS i
        WHERE i.namespace = :namespace AND i.session_id = :session_id AND i.ahead
          AND i.status IN {UNFINISHED_SQL} AND mailboxes.answer IS NULL
    )
    AND NOT EXISTS (
        SELECT 1 FROM inbox AS i
        WHERE i.namespace = :namespace AND i.session_id = :session_id
          AND i.position BETWEEN coalesce(mailboxes.answer, mailboxes.head)
                             AND coalesce(mailboxes.answer, mailboxes.tail)
          AND i.status IN {UNFINISHED_SQL}
    )
)
RETURNING namespace, session_id
""")


def set_aside(
    connection: Connection, *, namespaces: Collection[str], limit: int
) -> list[SessionKey]:
    """Let such mailboxes not be ready, and return them. The doctor repairs them.

    Of each namespace the ``limit`` mailboxes are looked at that have been ready longest. Locked
    ones are passed over.
    """
    found: list[SessionKey] = []
    for namespace in sorted(namespaces):
        ready = (
            select(mailboxes.c.namespace, mailboxes.c.session_id)
            .where(mailboxes.c.namespace == namespace, mailboxes.c.ready_at.is_not(None))
            .order_by(mailboxes.c.namespace, mailboxes.c.ready_at, mailboxes.c.session_id)
            .limit(limit)
            .with_for_update(key_share=True, skip_locked=True)
        )
        # The lock comes first. So the next statement sees all that was committed before it.
        for row in connection.execute(ready).all():
            key = {"namespace": row.namespace, "session_id": row.session_id}
            found += [(one[0], one[1]) for one in _SET_ASIDE.rows(connection, key)]
    return found

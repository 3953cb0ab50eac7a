"""Questions to people: the transitions ``hold``, ``expire`` and ``withdraw``, and their end.

See ``mailbox.py``, and ``question_answers.py`` for ``answer``. A mailbox that is held has the
position of its open question, and ``wake_at`` is the expiry of the question. Each transition locks
the mailbox first. So of an answer, an expiry, an interrupt and an end at the same moment one comes
first, and the others see what it did.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any
from uuid import uuid4

from sqlalchemy import (
    Connection,
    case,
    insert,
    literal,
    update,
)

from sessionsdb.engine import clock
from sessionsdb.engine.statement import Statement
from sessionsdb.messages.codec import StoredMessage
from sessionsdb.messages.extra import encode_extra
from sessionsdb.operations.dialect import dialect_of
from sessionsdb.operations.inbox_types import Lease
from sessionsdb.operations.keys import SessionKey
from sessionsdb.operations.question_rows import (
    Ask,
    is_question,
)
from sessionsdb.operations.row_conditions import is_mailbox, is_message
from sessionsdb.operations.state_changes import point_to_answers
from sessionsdb.schema import inbox, mailboxes, questions, sessions

NEVER = datetime(9999, 1, 1, tzinfo=UTC)
"""The ``wake_at`` of a mailbox whose question does not expire."""

EXPIRY_AUTHOR = "sessionsdb"
"""The author of the notice that a question has expired."""

EXPIRY_TEXT = "The question has expired without an answer."

NOT_HELD: dict[str, Any] = {"question": None, "accepts_message": False}
"""The columns of a mailbox without an open question."""

NOT_HELD_SQL = "question = NULL, accepts_message = FALSE"
"""The same columns in a ``Statement``."""


# ---- hold --------------------------------------------------------------------------------------


def hold(connection: Connection, lease: Lease, ask: Ask) -> None:
    """Hold a session whose turn has committed in this transaction, and asks a question."""
    present = clock.read_now(connection)
    position = lease.deliveries[-1].position
    expires_at = None
    if ask.expires_in is not None:
        expires_at = present + timedelta(seconds=ask.expires_in)
    connection.execute(
        insert(questions).values(
            namespace=lease.namespace,
            session_id=lease.session_id,
            position=position,
            prompt=ask.prompt,
            payload=ask.payload,
            accept_message=ask.accept_message,
            status="open",
            asked_at=present,
            expires_at=expires_at,
        )
    )
    connection.execute(
        update(inbox)
        .where(*is_message(lease.namespace, lease.session_id, position))
        .values(asked=True)
    )
    connection.execute(
        update(mailboxes)
        .where(*is_mailbox(lease.key))
        .values(
            ready_at=None,
            wake_at=expires_at or NEVER,
            question=position,
            accepts_message=ask.accept_message,
        )
    )


def mark_seen(connection: Connection, lease: Lease) -> None:
    """Record the commit of a turn that has seen that a question was withdrawn."""
    connection.execute(
        update(sessions)
        .where(
            sessions.c.namespace == lease.namespace,
            sessions.c.id == lease.session_id,
            sessions.c.withdrawn == lease.withdrawn,
        )
        .values(withdrawn=None)
    )


def queue_ahead(
    connection: Connection,
    key: SessionKey,
    question: int,
    present: datetime,
    sent: dict[str, Any],
) -> int:
    """End the hold of a locked mailbox by a message that is claimed before all others."""
    position = connection.execute(
        update(mailboxes)
        .where(*is_mailbox(key))
        .values(
            **NOT_HELD,
            tail=mailboxes.c.tail + 1,
            pending=mailboxes.c.pending + 1,
            answer=mailboxes.c.tail + 1,
            wake_at=None,
            ready_at=present,
        )
        .returning(mailboxes.c.tail)
    ).scalar_one()
    connection.execute(
        insert(inbox).values(
            **(sent | {"hops": sent.get("hops") or 0}),
            namespace=key[0],
            session_id=key[1],
            position=position,
            status="pending",
            enqueued_at=present,
            ahead=True,
            answers=question,
        )
    )
    return int(position)


def close(
    connection: Connection,
    key: SessionKey,
    position: int,
    status: str,
    present: datetime,
    answer_position: int | None = None,
    digest: str | None = None,
) -> None:
    connection.execute(
        update(questions)
        .where(*is_question(key, position))
        .values(
            status=status,
            closed_at=present,
            answer_position=answer_position,
            answer_digest=digest,
        )
    )


# ---- expire, withdraw, end ---------------------------------------------------------------------


def expire(connection: Connection, key: SessionKey, position: int) -> None:
    """End the hold of a locked mailbox whose question has expired.

    One notice is queued ahead of all messages. Its turn sees that there is no answer.
    """
    present = clock.read_now(connection)
    notice = StoredMessage("user", EXPIRY_TEXT, None)
    sent = {
        "content": notice.content,
        "extra": encode_extra(EXPIRY_AUTHOR, None),
        "fingerprint": uuid4().hex,
    }
    at = queue_ahead(connection, key, position, present, sent)
    close(connection, key, position, "expired", present, at)


def withdraw(connection: Connection, key: SessionKey, position: int) -> None:
    """End the hold of a locked mailbox and session without an answer. The next turn sees it."""
    present = clock.read_now(connection)
    connection.execute(
        update(mailboxes)
        .where(*is_mailbox(key))
        .values(
            **NOT_HELD,
            wake_at=None,
            ready_at=case((mailboxes.c.pending > 0, literal(present, mailboxes.c.ready_at.type))),
        )
    )
    _mark_withdrawn(connection, key, position, present)


@cache
def _answered(in_positions: str) -> Statement:
    return Statement(f"""
SELECT answers FROM inbox
WHERE namespace = :namespace AND session_id = :session_id AND position {in_positions}
  AND answers IS NOT NULL
ORDER BY position
""")


def withdraw_answers(connection: Connection, key: SessionKey, positions: Sequence[int]) -> None:
    """Withdraw the questions whose answers or notices are among the cancelled ``positions``.

    The mailbox and the session are locked.
    """
    if not positions:
        return
    dialect = dialect_of(connection)
    answered = _answered(dialect.in_positions).rows(
        connection,
        {"namespace": key[0], "session_id": key[1], **dialect.positions_values(positions)},
    )
    for (question,) in answered:
        _mark_withdrawn(connection, key, question, clock.read_now(connection))
    if answered:
        point_to_answers(connection, [key])


def _mark_withdrawn(
    connection: Connection, key: SessionKey, position: int, present: datetime
) -> None:
    connection.execute(
        update(questions)
        .where(*is_question(key, position))
        .values(status="withdrawn", closed_at=present)
    )
    connection.execute(
        update(sessions)
        .where(sessions.c.namespace == key[0], sessions.c.id == key[1])
        .values(withdrawn=position)
    )


_CLOSE_AT_END = Statement("""
UPDATE questions SET status = 'ended', closed_at = :closed_at
WHERE namespace = :namespace AND session_id = :session_id AND closed_at IS NULL
""")


def close_at_end(connection: Connection, key: SessionKey, present: datetime) -> None:
    """Close the open question of a session that ends. Its mailbox and session are locked."""
    _CLOSE_AT_END.rows(
        connection,
        {
            "namespace": key[0],
            "session_id": key[1],
            "closed_at": clock.as_stored(connection, present),
        },
    )

"""The send of messages on SQLite: a few statements for each request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection

from sessionsdb.engine.sqlite.clock import stored_now
from sessionsdb.engine.statement import Insert, Statement
from sessionsdb.errors import InboxFull, SessionEnded, SessionsDBError, UnknownSession
from sessionsdb.operations.chains import chain_of
from sessionsdb.operations.inbox_types import SENT_COLUMNS, AnswerWanted, Send, sent_values
from sessionsdb.operations.keys import SessionKey
from sessionsdb.types import Limits, Receipt

KNOWN_KEY = Statement("""
SELECT position, fingerprint FROM inbox
WHERE namespace = :namespace AND session_id = :session_id AND idempotency_key = :key
""")

# Assigns the next position if the session is open, its inbox has room, and no question may take the
# message as its answer.
SEND = Statement("""
UPDATE mailboxes
SET tail = tail + 1,
    pending = pending + 1,
    ready_at = CASE
        WHEN ready_at IS NULL AND wake_at IS NULL AND owner IS NULL THEN :now
        ELSE ready_at
    END
WHERE namespace = :namespace AND session_id = :session_id
  AND NOT closed AND NOT accepts_message AND pending < :pending_limit
""")

# The position that SEND has assigned.
TAIL = Statement("""
SELECT tail FROM mailboxes WHERE namespace = :namespace AND session_id = :session_id
""")

# The reason why SEND assigned none.
REFUSED = Statement("""
SELECT closed, accepts_message FROM mailboxes
WHERE namespace = :namespace AND session_id = :session_id
""")

QUEUE = Insert(f"""
INSERT INTO inbox (namespace, session_id, position, {", ".join(SENT_COLUMNS)}, status, enqueued_at)
VALUES (:namespace, :session_id, :position, {sent_values(":")},
        'pending', :now)
""")

TOUCH = Statement("""
UPDATE sessions SET last_active = max(last_active, :now)
WHERE namespace = :namespace AND id = :session_id
""")


def send(
    connection: Connection, requests: Sequence[Send], limits: Limits
) -> list[Receipt | SessionsDBError]:
    present = stored_now(connection)
    answers: list[Receipt | SessionsDBError] = []
    queued: list[tuple[Any, ...]] = []
    touched: dict[SessionKey, tuple[Any, ...]] = {}
    for request in requests:
        key = {"namespace": request.namespace, "session_id": request.session_id}
        if request.idempotency_key is not None:
            known = KNOWN_KEY.row(connection, key | {"key": request.idempotency_key})
            if known is not None:
                position, fingerprint = known
                answers.append(request.known(position, same=fingerprint == request.fingerprint))
                continue
        chain = chain_of(connection, request)
        moved = 0
        if chain is not None and chain.hops <= limits.hops:
            given = {**key, "now": present, "pending_limit": limits.pending}
            moved = SEND.changes(connection, given)
        if not moved:
            mailbox = REFUSED.row(connection, key)
            if mailbox is None:
                answers.append(UnknownSession(request.session_id))
            elif chain is None:
                answers.append(UnknownSession(str(request.sender), is_sender=True))
            elif mailbox[0]:
                answers.append(SessionEnded(request.session_id))
            elif chain.hops > limits.hops:
                answers.append(request.too_far(limits, chain.origin))
            elif mailbox[1]:
                answers.append(AnswerWanted())
            else:
                answers.append(InboxFull(request.session_id, limits.pending))
            continue
        assert chain is not None
        [[position]] = TAIL.rows(connection, key)
        answers.append(request.accepted(position))
        where = (request.namespace, request.session_id)
        queued.append((*where, position, *request.columns(chain), present))
        touched[where] = (present, *where)
    QUEUE.each(connection, queued)
    TOUCH.each(connection, list(touched.values()))
    return answers

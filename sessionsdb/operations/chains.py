"""The place of a message in a chain of sends from session to session: see ``Chain``."""

from __future__ import annotations

from sqlalchemy import Connection

from sessionsdb.engine.statement import Statement
from sessionsdb.operations.inbox_types import Chain, Send

# The place in a chain of the furthest message that a sender is handling: its next message goes one
# hop further. The messages are found through the sender's mailbox, by the primary key.
CHAIN = Statement("""
SELECT i.hops, i.origin
FROM mailboxes AS b JOIN inbox AS i ON i.namespace = b.namespace AND i.session_id = b.session_id
    AND i.position BETWEEN b.head AND b.last_taken AND i.status = 'running'
WHERE b.namespace = :namespace AND b.session_id = :sender AND b.taken > 0
UNION ALL
SELECT i.hops, i.origin
FROM mailboxes AS b JOIN inbox AS i ON i.namespace = b.namespace AND i.session_id = b.session_id
    AND i.ahead AND i.status = 'running'
WHERE b.namespace = :namespace AND b.session_id = :sender AND b.taken > 0
ORDER BY hops DESC LIMIT 1
""")

IS_SESSION = Statement("""
SELECT 1 FROM mailboxes WHERE namespace = :namespace AND session_id = :session_id
""")


def chain_of(connection: Connection, request: Send) -> Chain | None:
    """Return the place of a message in a chain. ``None``: there is no such sender.

    The hot send of PostgreSQL asks for many requests at once: see ``postgresql/sending.py``.
    """
    if not request.needs_chain:
        return request.chain_behind(None)
    sender = {"namespace": request.namespace, "sender": request.sender}
    running = CHAIN.row(connection, sender)
    if running is not None:
        return request.chain_behind(Chain(*running))
    known = IS_SESSION.row(connection, sender | {"session_id": request.sender})
    return None if known is None else request.chain_behind(None)

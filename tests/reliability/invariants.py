"""The invariants of the tables, each as a query for the rows that break it.

They do not depend on the calls that were made. They are plain SQL for both databases.
"""

from __future__ import annotations

from sqlalchemy import Connection, text

INVARIANTS = {
    "a session has one mailbox": """
        SELECT s.namespace, s.id FROM sessions AS s
        LEFT JOIN mailboxes AS m ON m.namespace = s.namespace AND m.session_id = s.id
        WHERE m.session_id IS NULL
    """,
    "a mailbox is ready, waiting or leased, and never two of them": """
        SELECT namespace, session_id FROM mailboxes
        WHERE (CASE WHEN ready_at IS NULL THEN 0 ELSE 1 END)
            + (CASE WHEN wake_at IS NULL THEN 0 ELSE 1 END)
            + (CASE WHEN owner IS NULL THEN 0 ELSE 1 END) > 1
           OR (owner IS NULL) <> (lease_until IS NULL)
    """,
    "a mailbox with unfinished messages is on somebody's way": """
        SELECT namespace, session_id FROM mailboxes
        WHERE pending > 0 AND ready_at IS NULL AND wake_at IS NULL AND owner IS NULL
    """,
    "an empty mailbox is on nobody's way": """
        SELECT namespace, session_id FROM mailboxes
        WHERE pending = 0 AND (ready_at IS NOT NULL OR wake_at IS NOT NULL OR owner IS NOT NULL)
    """,
    "pending counts the unfinished messages": """
        SELECT m.namespace, m.session_id, m.pending FROM mailboxes AS m
        WHERE m.pending <> (
            SELECT count(*) FROM inbox AS i
            WHERE i.namespace = m.namespace AND i.session_id = m.session_id
              AND i.status IN ('pending', 'running'))
    """,
    "taken counts the running messages, and only a leased mailbox has any": """
        SELECT m.namespace, m.session_id, m.taken FROM mailboxes AS m
        WHERE m.taken <> (
            SELECT count(*) FROM inbox AS i
            WHERE i.namespace = m.namespace AND i.session_id = m.session_id
              AND i.status = 'running')
           OR (m.taken > 0) <> (m.owner IS NOT NULL)
    """,
    "positions go from 1 to the tail without a gap": """
        SELECT m.namespace, m.session_id, m.tail FROM mailboxes AS m
        WHERE m.tail <> (
            SELECT count(*) FROM inbox AS i
            WHERE i.namespace = m.namespace AND i.session_id = m.session_id
              AND i.position BETWEEN 1 AND m.tail)
           OR EXISTS (
            SELECT 1 FROM inbox AS i
            WHERE i.namespace = m.namespace AND i.session_id = m.session_id
              AND i.position > m.tail)
    """,
    "a claim finds the unfinished messages and no finished one": """
        SELECT i.namespace, i.session_id, i.position, i.status FROM inbox AS i
        JOIN mailboxes AS m ON m.namespace = i.namespace AND m.session_id = i.session_id
        WHERE (i.status IN ('pending', 'running'))
            <> (i.ahead OR i.position BETWEEN m.head AND m.tail)
    """,
    "an ended session is closed, and nothing is left in it": """
        SELECT s.namespace, s.id FROM sessions AS s
        JOIN mailboxes AS m ON m.namespace = s.namespace AND m.session_id = s.id
        WHERE (s.ended_at IS NOT NULL) <> m.closed
           OR (m.closed AND (m.pending > 0 OR m.owner IS NOT NULL OR m.ready_at IS NOT NULL
                             OR m.wake_at IS NOT NULL))
    """,
    "message_count counts the messages": """
        SELECT s.namespace, s.id, s.message_count FROM sessions AS s
        WHERE s.message_count <> (
            SELECT count(*) FROM messages AS t
            WHERE t.namespace = s.namespace AND t.session_id = s.id)
    """,
    "no message is ahead of last_seq": """
        SELECT t.namespace, t.session_id, t.seq FROM messages AS t
        JOIN sessions AS s ON s.namespace = t.namespace AND s.id = t.session_id
        WHERE t.seq > s.last_seq OR t.seq < 1
    """,
    "a finished message has its time, an unfinished one none": """
        SELECT namespace, session_id, position, status FROM inbox
        WHERE (status IN ('done', 'dead', 'cancelled')) <> (finished_at IS NOT NULL)
           OR (status = 'dead') <> (dead_at IS NOT NULL)
    """,
    "a done message names its turn's rows, another none": """
        SELECT namespace, session_id, position FROM inbox
        WHERE (status = 'done') <> (first_seq IS NOT NULL)
           OR first_seq > last_seq
    """,
    "only a done message has come into the transcript": """
        SELECT t.namespace, t.session_id, t.seq FROM messages AS t
        LEFT JOIN inbox AS i ON i.namespace = t.namespace AND i.session_id = t.session_id
            AND i.position = t.position
        WHERE t.position IS NOT NULL
          AND (i.status IS NULL OR i.status <> 'done'
               OR t.seq NOT BETWEEN i.first_seq AND i.last_seq)
    """,
    "a running message is counted as an attempt": """
        SELECT namespace, session_id, position FROM inbox
        WHERE (status = 'running' AND attempts < 1) OR attempts < 0
    """,
    "a child is in its parent's tree, one below it": """
        SELECT c.namespace, c.id FROM sessions AS c
        LEFT JOIN sessions AS p ON p.namespace = c.namespace AND p.id = c.parent_id
        WHERE (c.parent_id IS NULL AND (c.root_id IS NOT NULL OR c.depth <> 0))
           OR (c.parent_id IS NOT NULL AND (p.id IS NULL OR c.depth <> p.depth + 1
                                            OR c.root_id <> coalesce(p.root_id, p.id)))
    """,
}

_QUERIES = {name: text(sql) for name, sql in INVARIANTS.items()}

# All at once: a round trip instead of one each.
_ANY = text(
    " UNION ALL ".join(
        "SELECT '{}' WHERE EXISTS ({})".format(name.replace("'", "''"), sql)
        for name, sql in INVARIANTS.items()
    )
)


def broken(connection: Connection) -> list[str]:
    """The broken invariants, with the rows that break them."""
    names = connection.execute(_ANY).scalars().all()
    return [
        f"{name}: {[tuple(row) for row in connection.execute(_QUERIES[name])]}" for name in names
    ]

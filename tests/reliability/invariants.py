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
        WHERE pending = 0 AND question IS NULL
          AND (ready_at IS NOT NULL OR wake_at IS NOT NULL OR owner IS NOT NULL)
    """,
    "a mailbox that is held waits for the one question that is open, until its expiry": """
        SELECT m.namespace, m.session_id, m.question FROM mailboxes AS m
        WHERE (SELECT count(*) FROM questions AS q
               WHERE q.namespace = m.namespace AND q.session_id = m.session_id
                 AND q.closed_at IS NULL) <> (CASE WHEN m.question IS NULL THEN 0 ELSE 1 END)
           OR (m.question IS NULL AND m.accepts_message)
           OR (m.question IS NOT NULL AND (m.wake_at IS NULL OR NOT EXISTS (
               SELECT 1 FROM questions AS q
               WHERE q.namespace = m.namespace AND q.session_id = m.session_id
                 AND q.position = m.question AND q.closed_at IS NULL AND q.status = 'open'
                 AND q.accept_message = m.accepts_message
                 AND coalesce(q.expires_at, m.wake_at) = m.wake_at)))
    """,
    "the answer that comes first is unfinished, and answers a question": """
        SELECT m.namespace, m.session_id, m.answer FROM mailboxes AS m
        WHERE m.answer IS NOT NULL AND NOT EXISTS (
            SELECT 1 FROM inbox AS i
            WHERE i.namespace = m.namespace AND i.session_id = m.session_id
              AND i.position = m.answer AND i.answers IS NOT NULL AND i.ahead
              AND i.status IN ('pending', 'running'))
    """,
    "an answer that is unfinished comes first": """
        SELECT m.namespace, m.session_id FROM mailboxes AS m
        WHERE m.answer IS NULL AND EXISTS (
            SELECT 1 FROM inbox AS i
            WHERE i.namespace = m.namespace AND i.session_id = m.session_id
              AND i.answers IS NOT NULL AND i.status IN ('pending', 'running'))
    """,
    "a question names its answer, and its answer the question": """
        SELECT q.namespace, q.session_id, q.position FROM questions AS q
        LEFT JOIN inbox AS i ON i.namespace = q.namespace AND i.session_id = q.session_id
            AND i.position = q.answer_position
        WHERE (q.status IN ('answered', 'expired') AND q.answer_position IS NULL)
           OR (q.status = 'open') <> (q.closed_at IS NULL)
           OR (q.answer_position IS NOT NULL AND coalesce(i.answers, -1) <> q.position)
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
    "a claim finds the unfinished messages": """
        SELECT i.namespace, i.session_id, i.position, i.status FROM inbox AS i
        JOIN mailboxes AS m ON m.namespace = i.namespace AND m.session_id = i.session_id
        WHERE i.status IN ('pending', 'running')
          AND NOT i.ahead AND i.position NOT BETWEEN m.head AND m.tail
    """,
    "only an unfinished message is ahead": """
        SELECT i.namespace, i.session_id, i.position, i.status FROM inbox AS i
        WHERE i.ahead AND i.status NOT IN ('pending', 'running')
    """,
    "the running messages stand from head to last_taken, or are ahead": """
        SELECT m.namespace, m.session_id, m.last_taken FROM mailboxes AS m
        WHERE m.last_taken <> coalesce((
            SELECT max(i.position) FROM inbox AS i
            WHERE i.namespace = m.namespace AND i.session_id = m.session_id
              AND i.status = 'running' AND NOT i.ahead), 0)
    """,
    "a running message belongs to the lease of its mailbox": """
        SELECT i.namespace, i.session_id, i.position FROM inbox AS i
        JOIN mailboxes AS m ON m.namespace = i.namespace AND m.session_id = i.session_id
        WHERE i.status = 'running'
          AND (m.owner IS NULL OR i.worker <> m.owner OR i.epoch <> m.epoch)
    """,
    "only a running message has joined a turn, and it joined one with others": """
        SELECT i.namespace, i.session_id, i.position FROM inbox AS i
        WHERE i.joined AND (i.status <> 'running' OR NOT EXISTS (
            SELECT 1 FROM inbox AS o
            WHERE o.namespace = i.namespace AND o.session_id = i.session_id
              AND o.status = 'running' AND NOT o.joined))
    """,
    "the first unfinished messages run": """
        SELECT i.namespace, i.session_id, i.position FROM inbox AS i
        WHERE i.status = 'running' AND NOT i.ahead AND EXISTS (
            SELECT 1 FROM inbox AS o
            WHERE o.namespace = i.namespace AND o.session_id = i.session_id
              AND o.status = 'pending' AND NOT o.ahead AND o.position < i.position)
    """,
    "a cancelled message says why, another does not": """
        SELECT namespace, session_id, position, stopped_by FROM inbox
        WHERE (status = 'cancelled') <> (stopped_by IS NOT NULL)
           OR stopped_by NOT IN ('cancel', 'interrupt', 'end')
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
    "a done message names its turn's rows, another none unless it was stopped": """
        SELECT namespace, session_id, position FROM inbox
        WHERE (status = 'done' AND first_seq IS NULL)
           OR (first_seq IS NOT NULL AND status <> 'done'
               AND coalesce(stopped_by, 'end') NOT IN ('cancel', 'interrupt'))
           OR (first_seq > last_seq AND NOT (first_seq = last_seq + 1 AND answers IS NOT NULL))
    """,
    # A save or an edit can append a message again that it removed. The message keeps its position,
    # and stands behind the rows of its turn then.
    "only a done or stopped message has come into the transcript": """
        SELECT t.namespace, t.session_id, t.seq FROM messages AS t
        LEFT JOIN inbox AS i ON i.namespace = t.namespace AND i.session_id = t.session_id
            AND i.position = t.position
        WHERE t.position IS NOT NULL
          AND (i.status IS NULL OR i.status NOT IN ('done', 'cancelled')
               OR t.seq < i.first_seq OR (t.seq > i.last_seq AND t.sent_at IS NULL))
    """,
    "a running message is counted as an attempt, unless it joined a turn": """
        SELECT namespace, session_id, position FROM inbox
        WHERE (status = 'running' AND NOT joined AND attempts < 1) OR attempts < 0
           OR reruns NOT BETWEEN 0 AND 3
    """,
    "the mark of a stopped reply stands with the last message that it stopped": """
        SELECT t.namespace, t.session_id, t.seq FROM messages AS t
        LEFT JOIN inbox AS i ON i.namespace = t.namespace AND i.session_id = t.session_id
            AND i.position = t.position
        WHERE t.extra LIKE '%"interrupted"%' AND t.position IS NOT NULL
          AND (t.role <> 'assistant' OR i.status <> 'cancelled' OR t.seq <> i.last_seq)
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

"""Consistency: the counters and states of a session compared with the rows that they count.

Every transaction keeps the counters right, so one statement never reads a difference that a running
transaction makes. A difference has another cause: rows changed by hand, a restored file, a failing
disk. ``repair.py`` corrects it.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from sqlalchemy import Connection

from sessionsdb.engine.statement import Statement
from sessionsdb.operations.inbox_types import UNFINISHED_SQL
from sessionsdb.operations.keys import SessionKey

InconsistencyKind = Literal[
    "message-count",
    "last-seq",
    "no-mailbox",
    "closed",
    "pending",
    "line",
    "taken",
    "state",
    "question",
]


class Counters(NamedTuple):
    """The counters and states of one session, and from ``messages`` on the same from its rows."""

    namespace: str
    session_id: str
    message_count: int
    last_seq: int
    ended: bool
    has_mailbox: bool
    head: int
    tail: int
    pending: int
    taken: int
    ready: bool
    waking: bool
    leased: bool
    closed: bool
    messages: int
    max_seq: int
    unfinished: int
    running: int
    last_position: int
    queued: int
    """Unfinished messages from ``head`` to ``tail``."""
    unreachable: int
    """Unfinished messages before ``head`` that are not marked as ahead: no claim finds them."""
    stale_ahead: int
    """Finished messages that are marked as ahead: a claim would find them."""
    stray: int
    """Running messages behind ``last_taken`` that are not ahead: the end of the lease leaves them
    running."""
    held: int
    """Whether the mailbox has an open question."""
    held_open: int
    """Whether the question of the mailbox is open in its own row."""
    open_questions: int
    """Rows of open questions."""
    stale_answer: int
    """Whether the mailbox points to an answer that is finished or none: a claim would find nothing,
    or a message out of its order."""
    lost_answer: int
    """Whether an answer is unfinished, and the mailbox has none: a claim would not deliver it
    alone."""

    @property
    def key(self) -> SessionKey:
        return (self.namespace, self.session_id)


class Inconsistency(NamedTuple):
    """A difference between the counters of a session and its rows."""

    kind: InconsistencyKind
    detail: str
    """The recorded figures and the figures of the rows."""
    repairable: bool = True


# The page that begins with a key. It reads all rows of its sessions: it is not for polls.
_PAGE = Statement(f"""
WITH page AS (
    SELECT namespace, id, message_count, last_seq, ended_at FROM sessions
    WHERE (namespace, id) >= (:namespace, :id)
    ORDER BY namespace, id LIMIT :limit
),
queue AS (
    SELECT i.namespace, i.session_id,
           pg_catalog.sum(CASE WHEN i.status IN {UNFINISHED_SQL} THEN 1 ELSE 0 END) AS unfinished,
           pg_catalog.sum(CASE WHEN i.status = 'running' THEN 1 ELSE 0 END) AS running,
           pg_catalog.max(i.position) AS last_position,
           pg_catalog.sum(CASE WHEN i.status IN {UNFINISHED_SQL}
                     AND i.position BETWEEN m.head AND m.tail THEN 1 ELSE 0 END) AS queued,
           pg_catalog.sum(CASE WHEN i.status IN {UNFINISHED_SQL}
                     AND i.position < m.head AND NOT i.ahead THEN 1 ELSE 0 END) AS unreachable,
           pg_catalog.sum(CASE WHEN i.status NOT IN {UNFINISHED_SQL}
                     AND i.ahead THEN 1 ELSE 0 END) AS stale_ahead,
           pg_catalog.sum(CASE WHEN i.status = 'running' AND NOT i.ahead
                     AND i.position > m.last_taken THEN 1 ELSE 0 END) AS stray,
           pg_catalog.sum(CASE WHEN i.status IN {UNFINISHED_SQL} AND i.ahead
                     AND i.answers IS NOT NULL THEN 1 ELSE 0 END) AS answers
    FROM page AS p
    JOIN mailboxes AS m ON m.namespace = p.namespace AND m.session_id = p.id
    JOIN inbox AS i ON i.namespace = p.namespace AND i.session_id = p.id
    GROUP BY i.namespace, i.session_id
)
SELECT p.namespace, p.id, p.message_count, p.last_seq, p.ended_at IS NOT NULL AS ended,
       m.session_id IS NOT NULL AS has_mailbox,
       coalesce(m.head, 1) AS head, coalesce(m.tail, 0) AS tail,
       coalesce(m.pending, 0) AS pending, coalesce(m.taken, 0) AS taken,
       m.ready_at IS NOT NULL AS ready, m.wake_at IS NOT NULL AS waking,
       m.owner IS NOT NULL AS leased, coalesce(m.closed, false) AS closed,
       (SELECT pg_catalog.count(*) FROM messages AS t
        WHERE t.namespace = p.namespace AND t.session_id = p.id) AS messages,
       coalesce((SELECT pg_catalog.max(t.seq) FROM messages AS t
                 WHERE t.namespace = p.namespace AND t.session_id = p.id), 0) AS max_seq,
       coalesce(q.unfinished, 0) AS unfinished, coalesce(q.running, 0) AS running,
       coalesce(q.last_position, 0) AS last_position, coalesce(q.queued, 0) AS queued,
       coalesce(q.unreachable, 0) AS unreachable,
       coalesce(q.stale_ahead, 0) AS stale_ahead, coalesce(q.stray, 0) AS stray,
       m.question IS NOT NULL AS held,
       (SELECT pg_catalog.count(*) FROM questions AS a
        WHERE a.namespace = m.namespace AND a.session_id = m.session_id
          AND a.position = m.question AND a.closed_at IS NULL) AS held_open,
       (SELECT pg_catalog.count(*) FROM questions AS a
        WHERE a.namespace = p.namespace AND a.session_id = p.id
          AND a.closed_at IS NULL) AS open_questions,
       m.answer IS NOT NULL AND NOT EXISTS (
           SELECT 1 FROM inbox AS i
           WHERE i.namespace = m.namespace AND i.session_id = m.session_id
             AND i.position = m.answer AND i.answers IS NOT NULL
             AND i.status IN {UNFINISHED_SQL}
       ) AS stale_answer,
       m.answer IS NULL AND coalesce(q.answers, 0) > 0 AS lost_answer
FROM page AS p
LEFT JOIN mailboxes AS m ON m.namespace = p.namespace AND m.session_id = p.id
LEFT JOIN queue AS q ON q.namespace = p.namespace AND q.session_id = p.id
ORDER BY p.namespace, p.id
""")

FIRST_KEY: SessionKey = ("", "")
"""Before the first session."""


def read_counters(
    connection: Connection, start: SessionKey, limit: int
) -> tuple[list[Counters], SessionKey | None]:
    """Return the counters of ``limit`` sessions from ``start`` on, as of one moment.

    The second value is the start of the next page, ``None`` after the last.
    """
    rows = _PAGE.rows(connection, {"namespace": start[0], "id": start[1], "limit": limit + 1})
    # Sums are numeric on PostgreSQL, and booleans are numbers on SQLite.
    page = [Counters._make((row[0], row[1], *(int(n or 0) for n in row[2:]))) for row in rows]
    return page[:limit], (page[limit].key if len(page) > limit else None)


def find_inconsistencies(counters: Counters) -> list[Inconsistency]:
    """Return the differences between the counters and the rows of a session."""
    c, differences = counters, list[Inconsistency]()
    if c.message_count != c.messages:
        differences.append(
            Inconsistency("message-count", f"counts {c.message_count} messages, has {c.messages}")
        )
    if c.last_seq < c.max_seq:
        differences.append(
            Inconsistency("last-seq", f"last_seq is {c.last_seq}, a message has {c.max_seq}")
        )
    if not c.has_mailbox:
        return [*differences, Inconsistency("no-mailbox", "has no mailbox")]
    state = "closed" if c.closed else "open"
    if c.closed != c.ended:
        detail = f"the session has {'' if c.ended else 'not '}ended, its mailbox is {state}"
        if c.unfinished:
            detail += f" with {c.unfinished} unfinished"
        differences.append(Inconsistency("closed", detail, repairable=c.unfinished == 0))
    if c.pending != c.unfinished:
        differences.append(
            Inconsistency("pending", f"pending is {c.pending}, {c.unfinished} are unfinished")
        )
    if not queue_is_sound(c):
        differences.append(
            Inconsistency(
                "line",
                f"head {c.head} and tail {c.tail} hold {c.queued} unfinished, "
                f"{c.unreachable} before them, "
                f"{c.stale_ahead} finished ones marked as ahead, "
                f"the last position is {c.last_position}",
            )
        )
    if c.taken != c.running or c.stray:
        detail = f"taken is {c.taken}, {c.running} are running"
        if c.stray:
            detail += f", {c.stray} of them behind last_taken"
        differences.append(Inconsistency("taken", detail))
    return [*differences, *_state_differences(c)]


def _state_differences(c: Counters) -> list[Inconsistency]:
    """Return the differences between the state of the mailbox and its messages and question."""
    differences = list[Inconsistency]()
    idle = not (c.ready or c.waking or c.leased)
    if c.closed and (c.unfinished or not idle):
        detail = f"is closed, and {c.unfinished} unfinished messages are left in it"
        differences.append(Inconsistency("state", detail, repairable=c.ended))
    elif not c.closed and c.unfinished and idle:
        differences.append(
            Inconsistency("state", f"is idle, and {c.unfinished} messages wait in it")
        )
    elif not c.unfinished and (c.ready or c.waking) and not c.held:
        differences.append(Inconsistency("state", "is ready or waiting, and nothing is in it"))
    if not question_is_sound(c) or c.stale_answer or c.lost_answer:
        detail = f"{c.open_questions} questions are open, it is {'' if c.held else 'not '}held"
        if c.stale_answer:
            detail = "its next message is to be an answer, and none waits there"
        if c.lost_answer:
            detail = "an answer waits that is not its next message"
        differences.append(Inconsistency("question", detail))
    return differences


def question_is_sound(counters: Counters) -> bool:
    """Whether the mailbox waits for the one open question."""
    c = counters
    return c.held == c.held_open == c.open_questions and (not c.held or c.waking)


def queue_is_sound(counters: Counters) -> bool:
    """Whether ``head``, ``tail`` and the marks of messages ahead lead to all unfinished ones."""
    c = counters
    in_place = c.tail >= c.last_position and c.head <= c.tail + 1
    return in_place and c.unreachable == c.stale_ahead == 0

"""A session's books: what its counters say, against the rows that they count.

Every transaction keeps them true, so a snapshot of one statement never finds a difference that is
only under way. A difference that is found was made by something else: rows changed by hand, a
restored file, a failing disk. ``mend`` looks again under the session's locks and sets the counters
to what the rows say; it changes no message that is finished, and drops none that is not.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from sqlalchemy import Connection, and_, delete, func, insert, or_, select, text, update

from sessionsdb.engine.clock import now
from sessionsdb.operations.mailbox import UNFINISHED
from sessionsdb.operations.row_locks import SessionKey, lock_mailboxes, lock_sessions
from sessionsdb.schema import first_epoch, inbox, mailboxes, messages, sessions, waits

Kind = Literal[
    "message-count", "last-seq", "no-mailbox", "closed", "pending", "line", "taken", "state"
]


class Counters(NamedTuple):
    """One session: its counters and states, and behind them what its rows say."""

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
    in_line: int
    """Unfinished messages from ``head`` to ``tail``."""
    left_behind: int
    """Unfinished ones before ``head`` that are not marked as requeued: no claim finds them."""
    ghosts: int
    """Finished ones that are marked as requeued: a claim would find them."""

    @property
    def key(self) -> SessionKey:
        return (self.namespace, self.session_id)


class Inconsistency(NamedTuple):
    """One thing that is wrong in a session's books."""

    kind: Kind
    told: str
    """The figures: what is recorded, and what the rows say."""
    mendable: bool = True


# The page that begins with a key. All rows of its sessions are read: this is a check, not a poll.
_PAGE = text("""
WITH page AS (
    SELECT namespace, id, message_count, last_seq, ended_at FROM sessions
    WHERE (namespace, id) >= (:namespace, :id)
    ORDER BY namespace, id LIMIT :most
),
queue AS (
    SELECT i.namespace, i.session_id,
           sum(CASE WHEN i.status IN ('pending', 'running') THEN 1 ELSE 0 END) AS unfinished,
           sum(CASE WHEN i.status = 'running' THEN 1 ELSE 0 END) AS running,
           max(i.position) AS last_position,
           sum(CASE WHEN i.status IN ('pending', 'running')
                     AND i.position BETWEEN m.head AND m.tail THEN 1 ELSE 0 END) AS in_line,
           sum(CASE WHEN i.status IN ('pending', 'running')
                     AND i.position < m.head AND NOT i.requeued THEN 1 ELSE 0 END) AS left_behind,
           sum(CASE WHEN i.status NOT IN ('pending', 'running')
                     AND i.requeued THEN 1 ELSE 0 END) AS ghosts
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
       (SELECT count(*) FROM messages AS t
        WHERE t.namespace = p.namespace AND t.session_id = p.id) AS messages,
       coalesce((SELECT max(t.seq) FROM messages AS t
                 WHERE t.namespace = p.namespace AND t.session_id = p.id), 0) AS max_seq,
       coalesce(q.unfinished, 0) AS unfinished, coalesce(q.running, 0) AS running,
       coalesce(q.last_position, 0) AS last_position, coalesce(q.in_line, 0) AS in_line,
       coalesce(q.left_behind, 0) AS left_behind, coalesce(q.ghosts, 0) AS ghosts
FROM page AS p
LEFT JOIN mailboxes AS m ON m.namespace = p.namespace AND m.session_id = p.id
LEFT JOIN queue AS q ON q.namespace = p.namespace AND q.session_id = p.id
ORDER BY p.namespace, p.id
""")

FIRST_KEY: SessionKey = ("", "")
"""Before the first session."""


def read_counters(
    connection: Connection, start: SessionKey, most: int
) -> tuple[list[Counters], SessionKey | None]:
    """The books of ``most`` sessions from ``start`` on, as of one moment, and where the next page
    starts."""
    rows = connection.execute(_PAGE, {"namespace": start[0], "id": start[1], "most": most + 1})
    # Sums are of type numeric on PostgreSQL, truths are numbers on SQLite.
    page = [Counters._make((row[0], row[1], *map(int, row[2:]))) for row in rows]
    return page[:most], (page[most].key if len(page) > most else None)


def find_inconsistencies(books: Counters) -> list[Inconsistency]:
    """What is wrong, if anything."""
    b, found = books, list[Inconsistency]()
    if b.message_count != b.messages:
        found.append(
            Inconsistency("message-count", f"counts {b.message_count} messages, has {b.messages}")
        )
    if b.last_seq < b.max_seq:
        found.append(
            Inconsistency("last-seq", f"last_seq is {b.last_seq}, a message has {b.max_seq}")
        )
    if not b.has_mailbox:
        return [*found, Inconsistency("no-mailbox", "has no mailbox")]
    state = "closed" if b.closed else "open"
    if b.closed != b.ended:
        told = f"the session has {'' if b.ended else 'not '}ended, its mailbox is {state}"
        if b.unfinished:
            told += f" with {b.unfinished} unfinished"
        found.append(Inconsistency("closed", told, mendable=b.unfinished == 0))
    if b.pending != b.unfinished:
        found.append(
            Inconsistency("pending", f"pending is {b.pending}, {b.unfinished} are unfinished")
        )
    if not _check_queue_bounds(b):
        found.append(
            Inconsistency(
                "line",
                f"head {b.head} and tail {b.tail} hold {b.in_line} unfinished, "
                f"{b.left_behind} before them, {b.ghosts} finished ones marked as requeued, "
                f"the last position is {b.last_position}",
            )
        )
    if b.taken != b.running:
        found.append(Inconsistency("taken", f"taken is {b.taken}, {b.running} are running"))
    idle = not (b.ready or b.waking or b.leased)
    if b.closed and (b.unfinished or not idle):
        told = f"is closed, and {b.unfinished} unfinished messages are left in it"
        found.append(Inconsistency("state", told, mendable=b.ended))
    elif not b.closed and b.unfinished and idle:
        found.append(Inconsistency("state", f"is idle, and {b.unfinished} messages wait in it"))
    elif not b.unfinished and (b.ready or b.waking):
        found.append(Inconsistency("state", "is ready or waiting, and nothing is in it"))
    return found


def _check_queue_bounds(b: Counters) -> bool:
    return (
        b.tail >= b.last_position
        and b.in_line == b.tail - b.head + 1
        and b.left_behind == b.ghosts == 0
    )


def repair(
    connection: Connection, key: SessionKey
) -> tuple[list[Inconsistency], list[Inconsistency]]:
    """Look again with the session held, and set right what can be: what was wrong then, and what
    is still. A session that is gone, or right by now, is not touched."""
    lock_mailboxes(connection, [key])
    lock_sessions(connection, [key])
    found = _read_one(connection, key)
    wrong = [] if found is None else find_inconsistencies(found)
    if found is None or not any(fault.mendable for fault in wrong):
        return wrong, wrong
    _repair_transcript(connection, found)
    if not found.has_mailbox:
        _make_mailbox(connection, found)
        found = _read_one(connection, key) or found
    if find_inconsistencies(found):
        _repair_mailbox(connection, found)
    after = _read_one(connection, key)
    return wrong, [] if after is None else find_inconsistencies(after)


def _read_one(connection: Connection, key: SessionKey) -> Counters | None:
    page, _ = read_counters(connection, key, 1)
    return page[0] if page and page[0].key == key else None


def _repair_transcript(connection: Connection, b: Counters) -> None:
    connection.execute(
        update(sessions)
        .where(sessions.c.namespace == b.namespace, sessions.c.id == b.session_id)
        .values(message_count=b.messages, last_seq=max(b.last_seq, b.max_seq))
    )


def _make_mailbox(connection: Connection, b: Counters) -> None:
    """No position that an inbox row or the transcript names is given out again."""
    tail = max(
        connection.execute(
            select(func.coalesce(func.max(table.c.position), 0)).where(
                table.c.namespace == b.namespace, table.c.session_id == b.session_id
            )
        ).scalar_one()
        for table in (inbox, messages)
    )
    connection.execute(
        insert(mailboxes).values(
            namespace=b.namespace,
            session_id=b.session_id,
            head=tail + 1,
            tail=tail,
            epoch=first_epoch(),
            closed=b.ended,
        )
    )


def _repair_mailbox(connection: Connection, b: Counters) -> None:
    ours = and_(inbox.c.namespace == b.namespace, inbox.c.session_id == b.session_id)
    unfinished = inbox.c.status.in_(UNFINISHED)
    pending = b.unfinished
    values: dict[str, Any] = {"tail": max(b.tail, b.last_position), "head": b.head}
    if b.closed and b.ended and b.unfinished:  # as the end of a session does
        connection.execute(
            update(inbox)
            .where(ours, unfinished)
            .values(status="cancelled", finished_at=now(connection), requeued=False)
        )
        pending = 0
    if not _check_queue_bounds(b) or pending != b.unfinished:
        # Where the line is broken all that is unfinished goes before it, in its order: the way
        # of requeued messages, which is found by an index of its own.
        values["head"] = values["tail"] + 1
        connection.execute(
            update(inbox)
            .where(ours, or_(unfinished, inbox.c.requeued))
            .values(requeued=inbox.c.status.in_(UNFINISHED))
        )
    if b.running and not b.leased and pending:
        connection.execute(update(inbox).where(ours, unfinished).values(status="pending"))
    values |= {"pending": pending, "taken": b.running if b.leased else 0}
    if b.closed != b.ended and not b.unfinished:
        values |= _close(connection, b)
    if b.closed or values.get("closed"):
        if pending == 0:
            values |= {"ready_at": None, "wake_at": None, "owner": None, "lease_until": None}
            values |= {"taken": 0, "epoch": mailboxes.c.epoch + 1}
    elif pending == 0:
        values |= {"ready_at": None, "wake_at": None}
    elif not (b.ready or b.waking or b.leased):
        values["ready_at"] = now(connection)
    connection.execute(
        update(mailboxes)
        .where(mailboxes.c.namespace == b.namespace, mailboxes.c.session_id == b.session_id)
        .values(**values)
    )


def _close(connection: Connection, b: Counters) -> dict[str, Any]:
    """An end that only one of the two rows knows of becomes a whole one; nothing is in it."""
    if not b.ended:
        connection.execute(
            update(sessions)
            .where(sessions.c.namespace == b.namespace, sessions.c.id == b.session_id)
            .values(ended_at=now(connection))
        )
    return {"closed": True}


# ---- waits --------------------------------------------------------------------------------------


def expired_waits(connection: Connection) -> int:
    """How many entries of sessions that wait have run out: their processes died."""
    statement = select(func.count()).where(waits.c.until < now(connection))
    return int(connection.execute(statement).scalar_one())


def clear_waits(connection: Connection) -> int:
    """Remove them; how many there were."""
    return connection.execute(delete(waits).where(waits.c.until < now(connection))).rowcount


# ---- leases --------------------------------------------------------------------------------------


class Overdue(NamedTuple):
    """A lease whose time has run out, and that no worker has taken back."""

    namespace: str
    session_id: str
    owner: str
    seconds: float


def overdue_leases(connection: Connection, seconds: float) -> list[Overdue]:
    """The leases that ran out more than ``seconds`` ago."""
    rows = connection.execute(
        select(
            mailboxes.c.namespace,
            mailboxes.c.session_id,
            mailboxes.c.owner,
            mailboxes.c.lease_until,
            now(connection).label("present"),
        )
        .where(mailboxes.c.owner.is_not(None))
        .order_by(mailboxes.c.lease_until)
    )
    late = (
        Overdue(r.namespace, r.session_id, r.owner, (r.present - r.lease_until).total_seconds())
        for r in rows
    )
    return [lease for lease in late if lease.seconds > seconds]

"""The floor on SQLite: the sqlite3 module, one writer that commits in groups, two readers."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from queue import Empty, SimpleQueue
from typing import Any
from uuid import uuid4

from benchmarks.floor.gathered import Gathered
from benchmarks.floor.postgresql import Row

WORKER = "floor"
READERS = 2

ADVANCE = """
UPDATE sessions
SET version = version + 1, last_seq = last_seq + ?1, message_count = message_count + ?1,
    updated_at = max(updated_at, ?2), last_active = max(last_active, ?2)
WHERE namespace = 'default' AND id = ?3
RETURNING version, last_seq - ?1
"""

WRITE = """
INSERT INTO messages (namespace, session_id, seq, role, content, payload, created_at, position)
VALUES ('default', ?, ?, ?, ?, ?, ?, ?)
"""

HISTORY = """
SELECT m.role, m.content, m.created_at, m.seq,
       CASE WHEN m.role = 'user' AND m.position IS NOT NULL THEN (
           SELECT CASE WHEN NOT EXISTS (
               SELECT 1 FROM messages AS b
               WHERE b.namespace = m.namespace AND b.session_id = m.session_id
                 AND b.seq = m.seq - 1 AND b.position = m.position
           ) THEN i.sender END
           FROM inbox AS i
           WHERE i.namespace = m.namespace AND i.session_id = m.session_id
             AND i.position = m.position AND i.sender IS NOT NULL
       ) END
FROM messages AS m
WHERE m.namespace = 'default' AND m.session_id = ?
ORDER BY m.seq DESC LIMIT ?
"""

LOAD = """
SELECT role, content, payload FROM messages
WHERE namespace = 'default' AND session_id = ? ORDER BY seq
"""

LIST = """
SELECT id, channel, peer, created_at, last_active, message_count, parent_id
FROM sessions WHERE namespace = 'default' AND ended_at IS NULL
ORDER BY last_active, id LIMIT ?
"""

STORED = """
SELECT seq, role, content, payload FROM messages
WHERE namespace = 'default' AND session_id = ? ORDER BY seq
"""

CUT = "DELETE FROM messages WHERE namespace = 'default' AND session_id = ? AND seq > ?"

VERSION = "SELECT version FROM sessions WHERE namespace = 'default' AND id = ?"

COUNT = "UPDATE sessions SET message_count = ? WHERE namespace = 'default' AND id = ?"

SEND = """
UPDATE mailboxes
SET tail = tail + 1, pending = pending + 1,
    ready_at = CASE WHEN ready_at IS NULL AND wake_at IS NULL AND owner IS NULL THEN ?1
               ELSE ready_at END
WHERE namespace = 'default' AND session_id = ?2 AND NOT closed AND pending < 1000
RETURNING tail
"""

QUEUE = """
INSERT INTO inbox
    (namespace, session_id, position, status, content, payload, fingerprint, enqueued_at)
VALUES ('default', ?, ?, 'pending', ?, ?, ?, ?)
"""

TOUCH = """
UPDATE sessions SET last_active = max(last_active, ?) WHERE namespace = 'default' AND id = ?
"""

# The messages at the heads of the mailboxes that have been ready longest.
READY = """
SELECT b.session_id, coalesce(
    (SELECT i.position FROM inbox AS i
     WHERE i.namespace = 'default' AND i.session_id = b.session_id AND i.requeued
       AND i.status IN ('pending', 'running')
     ORDER BY i.position LIMIT 1),
    (SELECT i.position FROM inbox AS i
     WHERE i.namespace = 'default' AND i.session_id = b.session_id
       AND i.position BETWEEN b.head AND b.tail AND i.status IN ('pending', 'running')
     ORDER BY i.position LIMIT 1)
)
FROM mailboxes AS b INDEXED BY ix_mailboxes_ready
WHERE b.namespace = 'default' AND b.ready_at IS NOT NULL
ORDER BY b.ready_at, b.session_id LIMIT ?
"""

LEASE = """
UPDATE mailboxes SET ready_at = NULL, owner = ?, epoch = epoch + 1, lease_until = ?, taken = 1
WHERE namespace = 'default' AND session_id = ?
"""

TAKE = """
UPDATE inbox SET status = 'running', attempts = attempts + 1, claimed_at = ?, worker = ?
WHERE namespace = 'default' AND session_id = ? AND position = ?
"""

LEASED = """
SELECT b.epoch, b.pending - b.taken,
       i.position, i.content, i.payload, i.sender, i.hops, i.origin, i.trace, i.attempts,
       i.enqueued_at,
       s.id, s.channel, s.peer, s.created_at, s.last_active, s.message_count, s.parent_id,
       s.root_id, s.model, s.system, s.tools, s.metadata, s.version, s.ended_at, s.end_reason
FROM mailboxes AS b
JOIN inbox AS i ON i.namespace = b.namespace AND i.session_id = b.session_id AND i.position = ?2
JOIN sessions AS s ON s.namespace = b.namespace AND s.id = b.session_id
WHERE b.namespace = 'default' AND b.session_id = ?1
"""

RELEASE = """
UPDATE mailboxes
SET owner = NULL, lease_until = NULL, taken = 0, pending = pending - 1,
    head = max(head, ?1 + 1), ready_at = CASE WHEN pending > 1 THEN ?2 END
WHERE namespace = 'default' AND session_id = ?3 AND owner = ?4 AND epoch = ?5
RETURNING session_id
"""

FINISH = """
UPDATE inbox
SET status = 'done', finished_at = ?, error = NULL, requeued = false, first_seq = ?, last_seq = ?,
    model = NULL, input_tokens = NULL, output_tokens = NULL
WHERE namespace = 'default' AND session_id = ? AND position = ?
"""

Work = Callable[[sqlite3.Connection], Any]


class Thread:
    """A thread with a connection: what gathers in its queue is done in one transaction."""

    def __init__(self, path: str, begin: str) -> None:
        self._path = path
        self._begin = begin
        self._jobs: SimpleQueue[tuple[Work, asyncio.Future[Any]] | None] = SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    async def do(self, work: Work) -> Any:
        future: asyncio.Future[Any] = self._loop.create_future()
        self._jobs.put((work, future))
        return await future

    async def close(self) -> None:
        self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        connection = sqlite3.connect(self._path, isolation_level=None, cached_statements=128)
        for pragma in ("busy_timeout = 10000", "foreign_keys = ON", "synchronous = FULL"):
            connection.execute(f"PRAGMA {pragma}")
        with contextlib.closing(connection):
            while (job := self._jobs.get()) is not None:
                jobs = [job]
                with contextlib.suppress(Empty):
                    while (more := self._jobs.get_nowait()) is not None:
                        jobs.append(more)
                connection.execute(self._begin)
                try:
                    answers = [work(connection) for work, _ in jobs]
                    connection.execute("COMMIT")
                except Exception as error:
                    connection.execute("ROLLBACK")
                    self._loop.call_soon_threadsafe(_fail, jobs, error)
                else:
                    self._loop.call_soon_threadsafe(_answer, jobs, answers)


def _answer(jobs: list[tuple[Work, asyncio.Future[Any]]], answers: list[Any]) -> None:
    for (_, future), answer in zip(jobs, answers, strict=True):
        future.set_result(answer)


def _fail(jobs: list[tuple[Work, asyncio.Future[Any]]], error: Exception) -> None:
    for _, future in jobs:
        future.set_exception(error)


class SqliteFloor:
    """Every operation of the contract that is measured."""

    def __init__(self, path: str) -> None:
        self._writer = Thread(path, "BEGIN IMMEDIATE")
        self._readers = [Thread(path, "BEGIN") for _ in range(READERS)]
        self._turn = 0
        self._appends = Gathered(self._append)
        self._sends = Gathered(self._send)
        self._commits = Gathered(self._commit)

    @classmethod
    @asynccontextmanager
    async def opened(cls, path: str) -> Any:
        # The file is in WAL mode already.
        floor = cls(path)
        try:
            yield floor
        finally:
            for thread in (floor._writer, *floor._readers):
                await thread.close()

    async def _read(self, sql: str, *arguments: Any) -> list[Any]:
        self._turn += 1
        reader = self._readers[self._turn % READERS]
        rows: list[Any] = await reader.do(lambda c: c.execute(sql, arguments).fetchall())
        return rows

    # ---- transcripts -------------------------------------------------------------------------

    async def append(self, session: str, rows: Sequence[Row]) -> int:
        version: int = await self._appends.submit((session, rows))
        return version

    async def _append(self, requests: list[tuple[str, Sequence[Row]]]) -> list[int]:
        versions: list[int] = await self._writer.do(lambda c: _append(c, requests))
        return versions

    async def history(self, session: str, limit: int) -> list[Any]:
        return await self._read(HISTORY, session, limit)

    async def load(self, session: str) -> list[Any]:
        return await self._read(LOAD, session)

    async def list(self, limit: int) -> list[Any]:
        return await self._read(LIST, limit)

    async def save(self, session: str, wanted: Sequence[Row]) -> int:
        """Write what differs."""
        version: int = await self._writer.do(lambda c: _save(c, session, wanted))
        return version

    async def rewrite(self, session: str, wanted: Sequence[Row]) -> int:
        """Delete all and write all: what a store without a comparison does."""
        version: int = await self._writer.do(lambda c: _put(c, session, wanted, 0, -1))
        return version

    # ---- inboxes -----------------------------------------------------------------------------

    async def send(self, session: str, text: str) -> int:
        position: int = await self._sends.submit((session, text, None, uuid4().hex))
        return position

    async def _send(self, requests: list[Any]) -> list[int]:
        positions: list[int] = await self._writer.do(lambda c: _send(c, requests))
        return positions

    async def claim(self, slots: int) -> list[Any]:
        """Rows of which each is a lease: ``id``, ``epoch``, ``position``, ``text``."""
        leases: list[Any] = await self._writer.do(lambda c: _claim(c, slots))
        return leases

    async def commit(self, lease: Any, rows: Sequence[Row]) -> bool:
        held: bool = await self._commits.submit((lease, rows))
        return held

    async def _commit(self, turns: list[tuple[Any, Sequence[Row]]]) -> list[bool]:
        held: list[bool] = await self._writer.do(lambda c: _commit(c, turns))
        return held


def _now(plus: float = 0.0) -> str:
    moment = datetime.now(UTC)
    if plus:
        moment += timedelta(seconds=plus)
    return moment.strftime("%Y-%m-%d %H:%M:%S.%f")


def _append(connection: sqlite3.Connection, requests: Sequence[tuple[str, Sequence[Row]]]) -> Any:
    now = _now()
    versions, written = [], []
    for session, rows in requests:
        [(version, base)] = connection.execute(ADVANCE, (len(rows), now, session))
        versions.append(version)
        for seq, row in enumerate(rows, base + 1):
            written.append((session, seq, *row, now, None))
    connection.executemany(WRITE, written)
    return versions


def _save(connection: sqlite3.Connection, session: str, wanted: Sequence[Row]) -> int:
    kept, last = 0, -1
    stored = connection.execute(STORED, (session,)).fetchall()
    for row, message in zip(stored, wanted, strict=False):
        if row[1:] != message:
            break
        kept, last = kept + 1, row[0]
    if kept == len(stored) == len(wanted):
        [(version,)] = connection.execute(VERSION, (session,))
        return int(version)
    return _put(connection, session, wanted, kept, last if kept < len(stored) else None)


def _put(
    connection: sqlite3.Connection, session: str, wanted: Sequence[Row], kept: int, cut: int | None
) -> int:
    if cut is not None:
        connection.execute(CUT, (session, cut))
    [version] = _append(connection, [(session, wanted[kept:])])
    if cut is not None:
        connection.execute(COUNT, (len(wanted), session))
    return int(version)


def _send(connection: sqlite3.Connection, requests: Sequence[Any]) -> Any:
    now = _now()
    positions, queued, touched = [], [], []
    for session, text, payload, fingerprint in requests:
        [(position,)] = connection.execute(SEND, (now, session))
        positions.append(position)
        queued.append((session, position, text, payload, fingerprint, now))
        touched.append((now, session))
    connection.executemany(QUEUE, queued)
    connection.executemany(TOUCH, touched)
    return positions


def _claim(connection: sqlite3.Connection, slots: int) -> list[Any]:
    ready = connection.execute(READY, (slots,)).fetchall()
    if not ready:
        return []
    now, until = _now(), _now(30.0)
    connection.executemany(LEASE, [(WORKER, until, session) for session, _ in ready])
    connection.executemany(TAKE, [(now, WORKER, session, place) for session, place in ready])
    leases = []
    for key in ready:
        [row] = connection.execute(LEASED, key)
        leases.append({"epoch": row[0], "position": row[2], "text": row[3], "id": row[11]})
    return leases


def _commit(connection: sqlite3.Connection, turns: Sequence[tuple[Any, Sequence[Row]]]) -> Any:
    now = _now()
    held, written, finished = [], [], []
    for lease, rows in turns:
        session, position = lease["id"], lease["position"]
        if not connection.execute(
            RELEASE, (position, now, session, WORKER, lease["epoch"])
        ).fetchall():
            held.append(False)
            continue
        held.append(True)
        [(_, base)] = connection.execute(ADVANCE, (len(rows), now, session))
        for seq, row in enumerate(rows, base + 1):
            written.append((session, seq, *row, now, position))
        finished.append((now, base + 1, base + len(rows), session, position))
    connection.executemany(WRITE, written)
    connection.executemany(FINISH, finished)
    return held

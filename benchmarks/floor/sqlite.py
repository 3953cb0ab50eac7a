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

from benchmarks.floor import product_sql
from benchmarks.floor.gathered import Gathered
from benchmarks.floor.postgresql import Row
from sessionsdb.operations.delivery_rows import DeliveryRow
from sessionsdb.operations.session_rows import SessionRow
from sessionsdb.operations.sqlite import committing, leasing, sending

WORKER = "floor"
WIDTH = len(DeliveryRow._fields)
READERS = 2

LIST = """
SELECT id, channel, peer, created_at, last_active, message_count, parent_id
FROM sessions WHERE namespace = 'default' AND ended_at IS NULL
ORDER BY last_active, id LIMIT :limit
"""

VERSION = "SELECT version FROM sessions WHERE namespace = :namespace AND id = :session_id"

# The product's, without the condition on the expected version.
APPEND = """
UPDATE sessions
SET version = version + 1, last_seq = last_seq + :count, message_count = message_count + :count,
    updated_at = max(updated_at, :now), last_active = max(last_active, :now)
WHERE namespace = :namespace AND id = :session_id
RETURNING version, last_seq - :count
"""

NO_SENDER = dict.fromkeys(("sender", "extra", "origin", "trace", "idempotency_key")) | {"hops": 0}
NO_USAGE = {"model": None, "input_tokens": None, "output_tokens": None}

COUNT_REWRITE = """
UPDATE sessions SET message_count = :count, rewrites = rewrites + 1
WHERE namespace = 'default' AND id = :session_id
"""

Work = Callable[[sqlite3.Connection], Any]


class Thread:
    """A thread with a connection. All jobs in its queue run in one transaction."""

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
    """The measured operations of the contract."""

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

    async def _read(self, sql: str, **parameters: Any) -> list[Any]:
        self._turn += 1
        reader = self._readers[self._turn % READERS]
        rows: list[Any] = await reader.do(lambda c: c.execute(sql, parameters).fetchall())
        return rows

    # ---- transcripts -------------------------------------------------------------------------

    async def append(self, session: str, rows: Sequence[Row]) -> int:
        version: int = await self._appends.submit((session, rows))
        return version

    async def _append(self, requests: list[tuple[str, Sequence[Row]]]) -> list[int]:
        versions: list[int] = await self._writer.do(lambda c: _append(c, requests))
        return versions

    async def history(self, session: str, limit: int) -> list[Any]:
        edges = {"after": product_sql.FIRST_SEQ, "before": product_sql.LAST_SEQ}
        return await self._read(product_sql.HISTORY.sql, **_of(session, **edges, limit=limit))

    async def load(self, session: str) -> list[Any]:
        return await self._read(product_sql.LOAD.sql, **_of(session))

    async def list(self, limit: int) -> list[Any]:
        return await self._read(LIST, limit=limit)

    async def save(self, session: str, wanted: Sequence[Row]) -> int:
        """Write the rows that differ."""
        version: int = await self._writer.do(lambda c: _save(c, session, wanted))
        return version

    async def rewrite(self, session: str, wanted: Sequence[Row]) -> int:
        """Delete all and write all, like a store without a comparison."""
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
        """Leases, each with ``id``, ``epoch``, ``position`` and ``text``."""
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


def _of(session: str, **values: Any) -> dict[str, Any]:
    """The parameters of a statement about one session."""
    return {"namespace": "default", "session_id": session, **values}


def _append(connection: sqlite3.Connection, requests: Sequence[tuple[str, Sequence[Row]]]) -> Any:
    now = _now()
    versions, written = [], []
    for session, rows in requests:
        [(version, base)] = connection.execute(APPEND, _of(session, count=len(rows), now=now))
        versions.append(version)
        written += _message_rows(session, base, rows, now, None)
    connection.executemany(committing.WRITE.sql, written)
    return versions


def _message_rows(
    session: str, base: int, rows: Sequence[Row], now: str, position: int | None,
    sent_at: str | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """``sent_at`` is the time of the first one, which came through the inbox."""
    return [
        _of(session, seq=seq, role=role, content=content, payload=payload, now=now,
            position=position, sender=None, sent_at=sent_at if seq == base + 1 else None,
            extra=None)
        for seq, (role, content, payload) in enumerate(rows, base + 1)
    ]  # fmt: skip


def _save(connection: sqlite3.Connection, session: str, wanted: Sequence[Row]) -> int:
    kept, last = 0, -1
    stored = connection.execute(product_sql.STORED.sql, _of(session)).fetchall()
    for (seq, role, content, payload, *_), row in zip(stored, wanted, strict=False):
        if (role, content, payload) != row:
            break
        kept, last = kept + 1, seq
    if kept == len(stored) == len(wanted):
        [(version,)] = connection.execute(VERSION, _of(session))
        return int(version)
    return _put(connection, session, wanted, kept, last if kept < len(stored) else None)


def _put(
    connection: sqlite3.Connection, session: str, wanted: Sequence[Row], kept: int, cut: int | None
) -> int:
    if cut is not None:
        connection.execute(product_sql.CUT.sql, _of(session, last_kept=cut))
    [version] = _append(connection, [(session, wanted[kept:])])
    if cut is not None:
        connection.execute(COUNT_REWRITE, _of(session, count=len(wanted)))
    return int(version)


def _send(connection: sqlite3.Connection, requests: Sequence[Any]) -> Any:
    now = _now()
    positions, queued = [], []
    for session, text, payload, fingerprint in requests:
        sent = connection.execute(sending.SEND.sql, _of(session, now=now, pending_limit=1_000))
        assert sent.rowcount == 1
        [(position,)] = connection.execute(sending.TAIL.sql, _of(session))
        positions.append(position)
        queued.append(
            _of(session, now=now, position=position, content=text, payload=payload,
                fingerprint=fingerprint, **NO_SENDER)
        )  # fmt: skip
    connection.executemany(sending.QUEUE.sql, queued)
    connection.executemany(sending.TOUCH.sql, queued)
    return positions


def _claim(connection: sqlite3.Connection, slots: int) -> list[Any]:
    ready = connection.execute(leasing.READY.sql, {"namespace": "default", "slots": slots})
    now, until = _now(), _now(30.0)
    leases, leased = [], []
    for _ready_at, _namespace, session, head, tail, epoch, *_ in ready.fetchall():
        [columns] = connection.execute(
            leasing.HEAD.sql, _of(session, batch=1, head=head, tail=tail)
        )
        message, row = DeliveryRow._make(columns[:WIDTH]), SessionRow._make(columns[WIDTH:])
        position, normal = message.position, 0 if message.ahead else message.position
        leases.append(
            {"epoch": epoch + 1, "position": position, "text": message.content, "id": session,
             "rewrites": row.rewrites, "sent_at": message.enqueued_at}
        )  # fmt: skip
        leased.append(
            _of(session, position=position, taken=1, epoch=epoch + 1, now=now, lease_until=until,
                worker=WORKER, first=normal, last=normal)
        )  # fmt: skip
    connection.executemany(leasing.LEASE.sql, leased)
    connection.executemany(leasing.TAKE.sql, leased)
    return leases


def _commit(connection: sqlite3.Connection, turns: Sequence[tuple[Any, Sequence[Row]]]) -> Any:
    now = _now()
    held, released, written, finished = [], [], [], []
    for lease, rows in turns:
        session, position = lease["id"], lease["position"]
        fence = connection.execute(
            committing.FENCE.sql,
            _of(session, worker=WORKER, epoch=lease["epoch"], rewrites=lease["rewrites"],
                answered=1),
        ).fetchone()  # fmt: skip
        held.append(fence is not None and bool(fence[1]))
        if not held[-1]:
            continue
        base = fence[0]
        released.append(_of(session, answered=1, last_position=position, now=now, count=len(rows)))
        written += _message_rows(session, base, rows, now, position, lease["sent_at"])
        finished.append(
            _of(session, now=now, first_seq=base + 1, last_seq=base + len(rows),
                position=position, **NO_USAGE)
        )  # fmt: skip
    connection.executemany(committing.RELEASE.sql, released)
    connection.executemany(committing.ADVANCE.sql, released)
    connection.executemany(committing.WRITE.sql, written)
    connection.executemany(committing.FINISH.sql, finished)
    return held

"""The floor on PostgreSQL: asyncpg, prepared statements, a few connections that are kept."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import asyncpg

from benchmarks.floor import product_sql
from benchmarks.floor.gathered import Gathered
from benchmarks.floor.product_sql import NumberedSql, numbered

NAMESPACE = "default"
WORKER = "floor"
READERS = 8

# For one session: the UPDATE takes the row lock.
APPEND_ONE = """
WITH changed AS (
    UPDATE sessions
    SET version = version + 1, last_seq = last_seq + $3, message_count = message_count + $3,
        updated_at = greatest(updated_at, clock_timestamp()),
        last_active = greatest(last_active, clock_timestamp())
    WHERE namespace = $1 AND id = $2
    RETURNING version, last_seq - $3 AS base, updated_at
),
written AS (
    INSERT INTO messages
        (namespace, session_id, seq, role, content, payload, created_at, write_id)
    SELECT $1, $2, c.base + m.place, m.role, m.content, m.payload, c.updated_at,
           CASE WHEN m.place = 1 THEN $7::text || ':' || c.version END
    FROM changed AS c, unnest($4::text[], $5::text[], $6::text[])
        WITH ORDINALITY AS m(role, content, payload, place)
)
SELECT version FROM changed
"""

# For many sessions, locked in key order. A session is in $1 once, with merged messages.
APPEND = """
WITH request AS MATERIALIZED (
    SELECT * FROM unnest($1::text[], $2::bigint[], $3::bigint[]) WITH ORDINALITY
        AS r(id, bump, count, number)
),
locked AS MATERIALIZED (
    SELECT s.id, r.bump, r.count, r.number
    FROM request AS r JOIN sessions AS s ON s.namespace = 'default' AND s.id = r.id
    ORDER BY s.id
    FOR NO KEY UPDATE OF s
),
changed AS (
    UPDATE sessions AS s
    SET version = s.version + l.bump, last_seq = s.last_seq + l.count,
        message_count = s.message_count + l.count,
        updated_at = greatest(s.updated_at, clock_timestamp()),
        last_active = greatest(s.last_active, clock_timestamp())
    FROM locked AS l
    WHERE s.namespace = 'default' AND s.id = l.id
    RETURNING l.number, s.id, s.version, s.last_seq - l.count AS base, s.updated_at
),
written AS (
    INSERT INTO messages
        (namespace, session_id, seq, role, content, payload, created_at, write_id)
    SELECT 'default', c.id, c.base + m.place, m.role, m.content, m.payload, c.updated_at,
           CASE WHEN m.place = 1 THEN $9::text || ':' || c.version END
    FROM unnest($4::bigint[], $5::bigint[], $6::text[], $7::text[], $8::text[])
        AS m(number, place, role, content, payload) JOIN changed AS c ON c.number = m.number
)
SELECT number, version FROM changed ORDER BY number
"""

HISTORY, LOAD, STORED, CUT = map(
    numbered, (product_sql.HISTORY, product_sql.LOAD, product_sql.STORED, product_sql.CUT)
)

LIST = NumberedSql(
    """
SELECT id, channel, peer, created_at, last_active, message_count, parent_id
FROM sessions WHERE namespace = 'default' AND ended_at IS NULL
ORDER BY last_active, id LIMIT $1
""",
    ("limit",),
)

READS = (HISTORY, LOAD, LIST)

LOCK = "SELECT version FROM sessions WHERE namespace = 'default' AND id = $1 FOR NO KEY UPDATE"

# After the product's CUT: the rows that are kept stay, and the others follow them.
PUT = """
WITH changed AS (
    UPDATE sessions
    SET version = version + 1, last_seq = last_seq + $2, message_count = $3,
        rewrites = rewrites + $7,
        updated_at = greatest(updated_at, clock_timestamp()),
        last_active = greatest(last_active, clock_timestamp())
    WHERE namespace = 'default' AND id = $1
    RETURNING version, last_seq - $2 AS base, updated_at
),
written AS (
    INSERT INTO messages (namespace, session_id, seq, role, content, payload, created_at)
    SELECT 'default', $1, c.base + m.place, m.role, m.content, m.payload, c.updated_at
    FROM changed AS c, unnest($4::text[], $5::text[], $6::text[])
        WITH ORDINALITY AS m(role, content, payload, place)
)
SELECT version FROM changed
"""

# Sends without keys and senders, which look up the mailbox only.
SEND = """
WITH request AS MATERIALIZED (
    SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[]) WITH ORDINALITY
        AS r(session_id, content, payload, fingerprint, number)
),
mailbox AS MATERIALIZED (
    SELECT m.session_id, m.tail, m.pending, m.closed
    FROM mailboxes AS m
    WHERE m.namespace = 'default' AND m.session_id IN (SELECT r.session_id FROM request AS r)
    ORDER BY m.session_id
    FOR NO KEY UPDATE OF m
),
clock AS MATERIALIZED (
    SELECT clock_timestamp() AS now, count(*) AS locked FROM mailbox
),
accepted AS MATERIALIZED (
    SELECT * FROM (
        SELECT r.*, m.tail, m.pending,
               row_number() OVER (PARTITION BY r.session_id ORDER BY r.number) AS place
        FROM request AS r JOIN mailbox AS m ON m.session_id = r.session_id
        WHERE NOT m.closed
    ) AS f
    WHERE f.pending + f.place <= 1000
),
moved AS (
    UPDATE mailboxes AS m
    SET tail = m.tail + a.count, pending = m.pending + a.count,
        ready_at = CASE
            WHEN m.ready_at IS NULL AND m.wake_at IS NULL AND m.owner IS NULL THEN clock.now
            ELSE m.ready_at
        END
    FROM clock, (SELECT session_id, count(*) AS count FROM accepted GROUP BY 1) AS a
    WHERE m.namespace = 'default' AND m.session_id = a.session_id
    RETURNING m.session_id
),
queued AS (
    INSERT INTO inbox
        (namespace, session_id, position, status, content, payload, fingerprint, enqueued_at)
    SELECT 'default', a.session_id, a.tail + a.place, 'pending', a.content, a.payload,
           a.fingerprint, clock.now
    FROM accepted AS a, clock
),
session AS MATERIALIZED (
    SELECT s.id FROM sessions AS s
    WHERE s.namespace = 'default' AND s.id IN (SELECT a.session_id FROM accepted AS a)
      AND (SELECT locked FROM clock) > 0
    ORDER BY s.id
    FOR NO KEY UPDATE OF s
),
touched AS (
    UPDATE sessions AS s SET last_active = greatest(s.last_active, clock.now)
    FROM clock, session AS l
    WHERE s.namespace = 'default' AND s.id = l.id
)
SELECT r.number, a.tail + a.place AS position
FROM request AS r LEFT JOIN accepted AS a ON a.number = r.number
ORDER BY r.number
"""

# One message a session, so no window function has to find messages with earlier attempts.
CLAIM = """
WITH candidate AS MATERIALIZED (
    SELECT m.session_id, m.head, m.tail, m.epoch
    FROM mailboxes AS m
    WHERE m.namespace = 'default' AND m.ready_at IS NOT NULL
    ORDER BY m.ready_at, m.session_id
    LIMIT $1
    FOR NO KEY UPDATE SKIP LOCKED
),
clock AS MATERIALIZED (
    SELECT clock_timestamp() AS now, count(*) AS locked FROM candidate
),
waiting AS MATERIALIZED (
    SELECT c.session_id, c.epoch, coalesce(
        (SELECT i.position FROM inbox AS i
         WHERE i.namespace = 'default' AND i.session_id = c.session_id AND i.ahead
         ORDER BY i.position LIMIT 1),
        (SELECT i.position FROM inbox AS i
         WHERE i.namespace = 'default' AND i.session_id = c.session_id
           AND i.position BETWEEN c.head AND c.tail
           AND NOT i.ahead AND i.status IN ('pending', 'running')
         ORDER BY i.position LIMIT 1)
    ) AS position
    FROM candidate AS c
),
taken AS (
    UPDATE inbox AS i
    SET status = 'running', attempts = i.attempts + 1, claimed_at = clock.now, worker = $2,
        epoch = w.epoch + 1
    FROM clock, waiting AS w
    WHERE i.namespace = 'default' AND i.session_id = w.session_id AND i.position = w.position
      AND i.status IN ('pending', 'running')
    RETURNING i.session_id, i.position, i.content, i.payload, i.sender, i.hops, i.origin,
              i.trace, i.attempts, i.enqueued_at,
              CASE WHEN i.ahead THEN 0 ELSE i.position END AS normal
),
leased AS (
    UPDATE mailboxes AS m
    SET ready_at = NULL, owner = $2, epoch = m.epoch + 1,
        lease_until = clock.now + interval '30 s', taken = 1,
        head = greatest(m.head, t.normal), last_taken = t.normal
    FROM clock, taken AS t
    WHERE m.namespace = 'default' AND m.session_id = t.session_id
    RETURNING m.session_id, m.epoch, m.pending - m.taken AS waiting
)
SELECT l.epoch, l.waiting,
       t.position, t.content AS text, t.payload, t.sender, t.hops, t.origin, t.trace, t.attempts,
       t.enqueued_at,
       s.id, s.channel, s.peer, s.created_at, s.last_active, s.message_count, s.parent_id,
       s.root_id, s.model, s.system, s.tools, s.metadata, s.version, s.ended_at, s.end_reason,
       s.rewrites
FROM leased AS l
JOIN taken AS t ON t.session_id = l.session_id
JOIN sessions AS s ON s.namespace = 'default' AND s.id = l.session_id
"""

COMMIT = """
WITH request AS MATERIALIZED (
    SELECT * FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[], $11::bigint[],
                         $12::timestamptz[])
        WITH ORDINALITY AS r(session_id, epoch, position, count, rewrites, sent_at, number)
),
mailbox AS MATERIALIZED (
    SELECT m.session_id, r.number, r.position, r.count, r.rewrites, r.sent_at
    FROM mailboxes AS m
    JOIN request AS r ON m.namespace = 'default' AND m.session_id = r.session_id
    WHERE m.owner = $5 AND m.epoch = r.epoch
    ORDER BY m.session_id
    FOR NO KEY UPDATE OF m
),
clock AS MATERIALIZED (
    SELECT clock_timestamp() AS now, count(*) AS locked FROM mailbox
),
session AS MATERIALIZED (
    SELECT s.id, m.number, m.position, m.count, m.sent_at
    FROM sessions AS s JOIN mailbox AS m ON s.namespace = 'default' AND s.id = m.session_id
    WHERE (SELECT locked FROM clock) > 0 AND s.rewrites = m.rewrites
    ORDER BY s.id
    FOR NO KEY UPDATE OF s
),
changed AS (
    UPDATE sessions AS s
    SET version = s.version + 1, last_seq = s.last_seq + l.count,
        message_count = s.message_count + l.count,
        updated_at = greatest(s.updated_at, clock.now),
        last_active = greatest(s.last_active, clock.now)
    FROM clock, session AS l
    WHERE s.namespace = 'default' AND s.id = l.id
    RETURNING l.number, l.position, l.sent_at, s.id, s.last_seq - l.count AS base, s.last_seq
),
written AS (
    INSERT INTO messages
        (namespace, session_id, seq, role, content, payload, created_at, position, sent_at)
    SELECT 'default', c.id, c.base + w.place, w.role, w.content, w.payload, clock.now, c.position,
           CASE WHEN w.place = 1 THEN c.sent_at END
    FROM clock, unnest($6::bigint[], $7::bigint[], $8::text[], $9::text[], $10::text[])
        AS w(number, place, role, content, payload) JOIN changed AS c ON w.number = c.number
),
finished AS (
    UPDATE inbox AS i
    SET status = 'done', finished_at = clock.now, error = NULL, ahead = false,
        first_seq = c.base + 1, last_seq = c.last_seq, model = NULL,
        input_tokens = NULL, output_tokens = NULL
    FROM clock, changed AS c
    WHERE i.namespace = 'default' AND i.session_id = c.id AND i.position = c.position
),
released AS (
    UPDATE mailboxes AS m
    SET owner = NULL, lease_until = NULL, taken = 0, last_taken = 0, pending = m.pending - 1,
        head = greatest(m.head, l.position + 1),
        ready_at = CASE WHEN m.pending > 1 THEN clock.now END
    FROM clock, session AS l
    WHERE m.namespace = 'default' AND m.session_id = l.id
)
SELECT s.number IS NOT NULL AS held
FROM request AS r LEFT JOIN session AS s ON s.number = r.number
ORDER BY r.number
"""

Row = tuple[str, str, str | None]
"""A message: role, content, payload."""


Reader = tuple[asyncpg.Connection, dict[NumberedSql, Any]]
"""A connection, and its prepared reads."""


class PostgresFloor:
    """The measured operations of the contract."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._connections: list[asyncpg.Connection] = []
        self._free: asyncio.Queue[tuple[asyncpg.Connection, dict[NumberedSql, Any]]] = (
            asyncio.Queue()
        )
        self._appends = Gathered(self._append)
        self._sends = Gathered(self._send)
        self._commits = Gathered(self._commit)

    @classmethod
    @asynccontextmanager
    async def opened(cls, url: str) -> Any:
        floor = cls(url)
        await floor._open()
        try:
            yield floor
        finally:
            for connection in floor._connections:
                await connection.close()

    async def _open(self) -> None:
        append, send, claim, commit = [await self._connect() for _ in range(4)]
        self._append_one = await append.prepare(APPEND_ONE)
        self._append_many = await append.prepare(APPEND)
        self._send_many = await send.prepare(SEND)
        self._claim_many = await claim.prepare(CLAIM)
        self._commit_many = await commit.prepare(COMMIT)
        for _ in range(READERS):
            connection = await self._connect()
            prepared = {query: await connection.prepare(query.sql) for query in READS}
            self._free.put_nowait((connection, prepared))

    async def _connect(self) -> asyncpg.Connection:
        connection = await asyncpg.connect(
            self._url, server_settings={"plan_cache_mode": "force_generic_plan", "jit": "off"}
        )
        self._connections.append(connection)
        return connection

    async def _read(self, query: NumberedSql, **parameters: Any) -> list[Any]:
        free = await self._free.get()
        try:
            rows: list[Any] = await free[1][query].fetch(*map(parameters.get, query.names))
            return rows
        finally:
            self._free.put_nowait(free)

    # ---- transcripts -------------------------------------------------------------------------

    async def append(self, session: str, rows: Sequence[Row]) -> int:
        version: int = await self._appends.submit((session, rows))
        return version

    async def _append(self, requests: list[tuple[str, Sequence[Row]]]) -> list[int]:
        stamp = uuid4().hex
        if len(requests) == 1:
            [(session, rows)] = requests
            roles, contents, payloads = zip(*rows, strict=True)
            version = await self._append_one.fetchval(
                NAMESPACE, session, len(rows), roles, contents, payloads, stamp
            )
            return [version]
        merged: dict[str, list[tuple[int, Sequence[Row]]]] = {}
        for number, (session, rows) in enumerate(requests):
            merged.setdefault(session, []).append((number, rows))
        written = [
            (number, place, *row)
            for number, parts in enumerate(merged.values(), 1)
            for place, row in enumerate((row for _, rows in parts for row in rows), 1)
        ]
        answers = await self._append_many.fetch(
            list(merged),
            [len(parts) for parts in merged.values()],
            [sum(len(rows) for _, rows in parts) for parts in merged.values()],
            *zip(*written, strict=True),
            stamp,
        )
        versions = [0] * len(requests)
        for (_, last), parts in zip(answers, merged.values(), strict=True):
            for back, (number, _) in enumerate(reversed(parts)):
                versions[number] = last - back
        return versions

    async def history(self, session: str, limit: int) -> list[Any]:
        return await self._read(
            HISTORY,
            namespace=NAMESPACE,
            session_id=session,
            after=product_sql.FIRST_SEQ,
            before=product_sql.LAST_SEQ,
            limit=limit,
        )

    async def load(self, session: str) -> list[Any]:
        return await self._read(LOAD, namespace=NAMESPACE, session_id=session)

    async def list(self, limit: int) -> list[Any]:
        return await self._read(LIST, limit=limit)

    async def save(self, session: str, wanted: Sequence[Row]) -> int:
        """Write the rows that differ."""
        connection, prepared = await self._free.get()
        try:
            async with connection.transaction():
                version: int = await connection.fetchval(LOCK, session)
                kept, last = 0, -1
                stored = await connection.fetch(STORED.sql, NAMESPACE, session)
                for row, message in zip(stored, wanted, strict=False):
                    if (row[1], row[2], row[3]) != message:
                        break
                    kept, last = kept + 1, row[0]
                if kept < len(stored):
                    await connection.execute(CUT.sql, NAMESPACE, session, last)
                elif kept == len(wanted):
                    return version
                cut = kept < len(stored)
                return await self._put(connection, session, wanted, kept, cut=cut)
        finally:
            self._free.put_nowait((connection, prepared))

    async def rewrite(self, session: str, wanted: Sequence[Row]) -> int:
        """Delete all and write all, like a store without a comparison."""
        connection, prepared = await self._free.get()
        try:
            async with connection.transaction():
                await connection.fetchval(LOCK, session)
                await connection.execute(CUT.sql, NAMESPACE, session, -1)
                return await self._put(connection, session, wanted, 0, cut=True)
        finally:
            self._free.put_nowait((connection, prepared))

    async def _put(
        self,
        connection: asyncpg.Connection,
        session: str,
        wanted: Sequence[Row],
        kept: int,
        *,
        cut: bool,
    ) -> int:
        added = wanted[kept:]
        roles, contents, payloads = zip(*added, strict=True) if added else ((), (), ())
        version: int = await connection.fetchval(
            PUT, session, len(roles), len(wanted), roles, contents, payloads, int(cut)
        )
        return version

    # ---- inboxes -----------------------------------------------------------------------------

    async def send(self, session: str, text: str) -> int:
        position: int = await self._sends.submit((session, text, None, uuid4().hex))
        return position

    async def _send(self, requests: list[Any]) -> list[int]:
        return [row[1] for row in await self._send_many.fetch(*zip(*requests, strict=True))]

    async def claim(self, slots: int) -> list[Any]:
        """Leases, each with ``id``, ``epoch``, ``position`` and ``text``."""
        leases: list[Any] = await self._claim_many.fetch(slots, WORKER)
        return leases

    async def commit(self, lease: Any, rows: Sequence[Row]) -> bool:
        held: bool = await self._commits.submit((lease, rows))
        return held

    async def _commit(self, turns: list[tuple[Any, Sequence[Row]]]) -> list[bool]:
        written = [
            (number, place, *row)
            for number, (_, rows) in enumerate(turns, 1)
            for place, row in enumerate(rows, 1)
        ]
        answers = await self._commit_many.fetch(
            [lease["id"] for lease, _ in turns],
            [lease["epoch"] for lease, _ in turns],
            [lease["position"] for lease, _ in turns],
            [len(rows) for _, rows in turns],
            WORKER,
            *zip(*written, strict=True),
            [lease["rewrites"] for lease, _ in turns],
            [lease["enqueued_at"] for lease, _ in turns],
        )
        return [held for (held,) in answers]

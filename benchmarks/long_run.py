"""python -m benchmarks.long_run: does the speed stay while the tables grow and are purged?

Fills a database with sessions and messages. Then a sender sends messages at a fixed rate to
sessions at random, and a worker answers them. Every ten seconds the run notes the rate of the
turns, their latencies, dead rows, and the bytes of tables, indices and WAL. After that half of the
old messages are purged by a process of its own, beside turns at the greatest rate.

Prints a table, and writes a picture and the figures.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.messages import text
from benchmarks.scale.tables import EACH, EMPTY, fill
from devtools.databases import Database, PostgresServer, SqliteFiles
from sessionsdb import SessionsDB, Turn

TABLES = ("sessions", "mailboxes", "inbox", "messages")
SLOTS = 64
EVERY = 10.0
"""Seconds between two notes."""

TIMED = 50
"""Of so many messages one is timed, from the send to the outcome."""

CALLERS = 64
"""Callers that send and wait without pauses, beside the purge."""

REPLY = text(2)


@dataclass
class Note:
    """The state after one stretch of time."""

    minute: float
    turns_per_second: float
    median_ms: float
    p99_ms: float
    wal_mb_per_second: float
    waiting: int
    dead_rows: dict[str, int] = field(default_factory=dict)
    vacuums: dict[str, int] = field(default_factory=dict)
    table_mb: dict[str, float] = field(default_factory=dict)
    index_mb: dict[str, float] = field(default_factory=dict)


class Run:
    """One database, its worker and its sender."""

    def __init__(self, database: Database, db: SessionsDB, sessions: int) -> None:
        self._database = database
        self._db = db
        self._sessions = sessions
        self._random = random.Random(1)
        self._sent = 0
        self._answered = 0
        self._times: list[float] = []
        self.notes: list[Note] = []

    async def _answer(self, _turn: Turn) -> str:
        self._answered += 1
        return REPLY

    @asynccontextmanager
    async def worker(self) -> AsyncIterator[None]:
        worker = self._db.worker(self._answer, concurrency=SLOTS)
        running = asyncio.create_task(worker.run())
        try:
            yield
        finally:
            await worker.stop()
            await running

    async def steady(self, minutes: float, rate: float) -> None:
        """Send at ``rate`` for ``minutes``, and take notes."""
        noting = asyncio.create_task(self._take_notes())
        sending: set[asyncio.Task[None]] = set()
        began = time.monotonic()
        while (passed := time.monotonic() - began) < minutes * 60:
            if noting.done():
                noting.result()
            for _ in range(int(passed * rate) - self._sent):
                task = asyncio.create_task(self._send())
                sending.add(task)
                task.add_done_callback(sending.discard)
                self._sent += 1
            await asyncio.sleep(0.005)
        noting.cancel()
        await asyncio.gather(noting, *sending, return_exceptions=True)

    async def drain(self) -> None:
        """Wait until no message waits: a run that fell behind leaves many."""
        began = time.monotonic()
        while True:
            if not await self._database.value("SELECT count(*) FROM mailboxes WHERE pending > 0"):
                break
            await asyncio.sleep(1)
        print(f"no message waits after {time.monotonic() - began:.0f} s", flush=True)

    def _session(self) -> str:
        return f"s{self._random.randint(1, self._sessions):07}"

    async def _send(self) -> None:
        timed = self._sent % TIMED == 0
        began = time.perf_counter()
        receipt = await self._db.broker.send(self._session(), text(1))
        if timed:
            # A run that falls behind shows it: a wait that ends without an outcome counts too.
            await self._db.broker.wait(receipt, timeout=60)
            self._times.append((time.perf_counter() - began) * 1e3)

    async def _take_notes(self) -> None:
        began = last = time.monotonic()
        answered, wal = self._answered, await self._wal()
        while True:
            await asyncio.sleep(EVERY)
            now, wal_now = time.monotonic(), await self._wal()
            times, self._times = sorted(self._times), []
            note = Note(
                minute=(now - began) / 60,
                turns_per_second=(self._answered - answered) / (now - last),
                median_ms=statistics.median(times) if times else 0.0,
                p99_ms=times[int(len(times) * 0.99)] if times else 0.0,
                wal_mb_per_second=(wal_now - wal) / (now - last) / 1e6,
                waiting=self._sent - self._answered,
            )
            last, answered, wal = now, self._answered, wal_now
            await self._measure_tables(note)
            self.notes.append(note)
            print(
                f"{note.minute:5.1f} min  {note.turns_per_second:6,.0f} turns/s"
                f"  {note.median_ms:6.1f} ms  p99 {note.p99_ms:7.1f} ms"
                f"  dead rows {sum(note.dead_rows.values()):9,}",
                flush=True,
            )

    async def _wal(self) -> float:
        """The bytes of WAL that were ever written. SQLite writes its own again and again, and
        tells no number."""
        if self._database.kind == "sqlite":
            return 0.0
        return float(
            await self._database.value(
                "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::float8"
            )
        )

    async def _measure_tables(self, note: Note) -> None:
        if self._database.kind == "sqlite":
            file = await asyncio.to_thread(self._database.path.stat)
            note.table_mb["all"] = file.st_size / 1e6
            return
        for name, dead, vacuums, table, indices in await self._database.query(
            "SELECT relname::text, n_dead_tup, autovacuum_count,"
            " pg_table_size(relid)::float8, pg_indexes_size(relid)::float8"
            " FROM pg_stat_user_tables"
        ):
            if name in TABLES:
                note.dead_rows[name], note.vacuums[name] = dead, vacuums
                note.table_mb[name], note.index_mb[name] = table / 1e6, indices / 1e6

    async def beside_purge(self, seconds: float) -> dict[str, float]:
        """Purge half of the filled messages beside turns at the greatest rate.

        Returns turns a second before, beside and after the purge, and the purge's seconds.
        """
        before = await self._greatest_rate(asyncio.create_task(asyncio.sleep(seconds)))
        began = time.monotonic()
        middle = 1704067200 + self._sessions // 2
        purging = asyncio.create_task(self._purge(middle))
        beside = await self._greatest_rate(purging)
        took = time.monotonic() - began
        after = await self._greatest_rate(asyncio.create_task(asyncio.sleep(seconds)))
        return {
            "turns/s before": before,
            "turns/s beside the purge": beside,
            "turns/s after": after,
            "share beside": 2 * beside / (before + after),
            "purge, seconds": took,
            "messages purged": float(purging.result()),
        }

    async def _greatest_rate(self, until: asyncio.Task[Any]) -> float:
        async def caller() -> None:
            while not until.done():
                receipt = await self._db.broker.send(self._session(), text(1))
                outcome = await self._db.broker.wait(receipt, timeout=60)
                assert outcome.status == "done", outcome

        began, answered = time.monotonic(), self._answered
        await asyncio.gather(until, *(caller() for _ in range(CALLERS)))
        return (self._answered - answered) / (time.monotonic() - began)

    async def _purge(self, before: int) -> int:
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(before))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "sessionsdb", "--url", self._database.url, "purge"),
            *("--messages-before", moment, "--yes", "--json"),
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            printed, _ = await process.communicate()
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        assert process.returncode == 0, printed
        return int(json.loads(printed)["messages"])


def _draw(notes: list[Note], path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "long-run"
    from matplotlib import pyplot

    minutes = [note.minute for note in notes]
    figure, panels = pyplot.subplots(2, 2, figsize=(9, 5.5), sharex=True)
    (rates, dead), (sizes, latencies) = panels
    rates.plot(minutes, [note.turns_per_second for note in notes], color="#1f6feb")
    rates.set_title("turns a second", fontsize=9)
    for table, colour in zip(TABLES, ("#1f6feb", "#bf8700", "#cf222e", "#8250df"), strict=True):
        if table in notes[0].dead_rows:
            values = [note.dead_rows[table] / 1e3 for note in notes]
            dead.plot(minutes, values, color=colour, label=table)
            indices = [note.index_mb[table] for note in notes]
            sizes.plot(minutes, indices, color=colour, label=table)
    dead.set_title("dead rows, thousands", fontsize=9)
    sizes.set_title("indices, MB", fontsize=9)
    latencies.plot(minutes, [note.median_ms for note in notes], color="#1f6feb", label="median")
    latencies.plot(minutes, [note.p99_ms for note in notes], color="#cf222e", label="p99")
    latencies.set_title("send to outcome, ms", fontsize=9)
    latencies.set_yscale("log")
    latencies.yaxis.set_major_formatter(lambda value, _place: f"{value:,.10g}")
    for panel in panels.flat:
        panel.grid(alpha=0.3)
        panel.tick_params(which="both", labelsize=7)
        if panel is not latencies:
            panel.set_ylim(bottom=0)
        if panel.get_legend_handles_labels()[1]:
            panel.legend(fontsize=7, frameon=False)
    for panel in (sizes, latencies):
        panel.set_xlabel("minutes", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    path.write_text("".join(f"{line.rstrip()}\n" for line in path.read_text().splitlines()))


async def _measure(database: Database, chosen: argparse.Namespace) -> None:
    began = time.monotonic()
    await fill(database, chosen.messages)
    talked = chosen.messages // EACH
    print(
        f"{database.kind}: filled with {chosen.messages:,} messages and {talked * (1 + EMPTY):,}"
        f" sessions in {time.monotonic() - began:.0f} s",
        flush=True,
    )
    async with SessionsDB(database.url) as db:
        run = Run(database, db, talked)
        async with run.worker():
            await run.steady(chosen.minutes, chosen.rate)
            _write(chosen, run.notes, {})  # the purge may take as long again
            await run.drain()
            purged = await run.beside_purge(chosen.beside)
    for name, value in purged.items():
        print(f"{name}: {value:,.2f}")
    _write(chosen, run.notes, purged)


def _write(chosen: argparse.Namespace, notes: list[Note], purged: dict[str, float]) -> None:
    """Write the figures and the picture, where they are wanted."""
    if chosen.json is not None:
        found = {"notes": [asdict(note) for note in notes], "purge": purged}
        chosen.json.write_text(json.dumps(found, indent=1) + "\n")
    if chosen.picture is not None:
        _draw(notes, chosen.picture)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.long_run", description=__doc__)
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="postgresql")
    parser.add_argument("--minutes", type=float, default=30, help="the time of the fixed rate")
    parser.add_argument("--rate", type=float, default=2_000, help="messages a second")
    parser.add_argument("--messages", type=int, default=10_000_000, help="messages at the start")
    parser.add_argument("--beside", type=float, default=30, help="seconds before and after a purge")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="write the picture here")
    chosen = parser.parse_args()
    # SIGTERM raises, so that the PostgreSQL server is stopped.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with contextlib.ExitStack() as stack:
        if chosen.database == "sqlite":
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            database = stack.enter_context(SqliteFiles(folder).new_database())
        else:
            server = stack.enter_context(PostgresServer.started(durable=True))
            database = stack.enter_context(server.new_database())
        asyncio.run(_measure(database, chosen))


if __name__ == "__main__":
    main()

"""Turns a second with a message in each of 100,000 sessions, and the memory of the worker."""

from __future__ import annotations

from benchmarks import processes
from benchmarks.bench import Bench
from devtools.backlog import fill

CROWD = "work off, a message in each session"


async def measure(bench: Bench, database: str) -> None:
    for sessions in (1_000, 5_000) if bench.quick else (1_000, 100_000):
        with bench.new_database(database) as made:
            await fill(made, waiting=sessions, sessions=sessions)
            taken = [await processes.drained(made, 1, sessions)]
        processes.record(bench, CROWD, database, "sessions", sessions, taken)

"""The scale group: what stays the same when there is more of it, and what grows.

Claims against what waits; ``history``, ``append`` and ``list`` against what is kept; workers in 1
to 8 processes; 100,000 sessions; memory, and bytes on disk.
"""

from __future__ import annotations

import asyncio

from benchmarks.bench import Bench
from benchmarks.scale import claims, processes, tables


def measure(bench: Bench) -> None:
    for database in bench.databases:
        asyncio.run(claims.measure(bench, database))
        asyncio.run(tables.measure(bench, database))
        asyncio.run(processes.measure(bench, database))

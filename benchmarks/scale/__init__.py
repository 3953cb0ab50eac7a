"""The scale group: the costs that stay the same when the data grow, and the costs that grow.

Claims against the number of waiting messages. ``history``, ``append`` and ``list`` against the
number of stored messages. A worker over 100,000 sessions, its memory, bytes on disk.
"""

from __future__ import annotations

import asyncio

from benchmarks.bench import Bench
from benchmarks.scale import claims, crowds, tables


def measure(bench: Bench) -> None:
    for database in bench.databases:
        asyncio.run(claims.measure(bench, database))
        asyncio.run(tables.measure(bench, database))
        asyncio.run(crowds.measure(bench, database))

"""The groups of benchmarks, by name. A group is a function that is given a ``Bench``: it measures
through ``bench.compare``, or by itself and says so with ``bench.record``."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks import importing, latency, queue, reports, scale, store
from benchmarks.bench import Bench

GROUPS: dict[str, Callable[[Bench], None]] = {
    "store": store.measure,
    "queue": queue.measure,
    "import": importing.measure,
    "latency": latency.measure,
    "scale": scale.measure,
    "reports": reports.measure,
}

"""The groups of benchmarks, by name. A group is a function of a ``Bench``. It measures with
``bench.compare``, or measures itself and calls ``bench.record``."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks import (
    adapters,
    conversations,
    fairness,
    importing,
    latency,
    live,
    processes,
    queue,
    reports,
    scale,
    search,
    stamps,
    store,
    turns,
)
from benchmarks.bench import Bench

GROUPS: dict[str, Callable[[Bench], None]] = {
    "store": store.measure,
    "turns": turns.measure,
    "conversations": conversations.measure,
    "queue": queue.measure,
    "workflows": queue.measure_workflows,
    "import": importing.measure,
    "stamps": stamps.measure,
    "latency": latency.measure,
    "fairness": fairness.measure,
    "live": live.measure,
    "scale": scale.measure,
    "processes": processes.measure,
    "reports": reports.measure,
    "search": search.measure,
    "adapters": adapters.measure,
}

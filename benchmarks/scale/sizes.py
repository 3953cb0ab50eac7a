"""Measure several sizes in turn."""

from __future__ import annotations

import gc
from collections.abc import Mapping

from benchmarks.bench import Bench, Sample, Sampler
from benchmarks.results import OURS


async def compare(
    bench: Bench,
    what: str,
    *,
    database: str,
    over: str,
    samplers: Mapping[int, Sampler],
    unit: str = "ms",
    at: Mapping[str, int | str] | None = None,
) -> None:
    """Measure the same at several sizes, in each round all of them, so that the ratio of the
    largest to the smallest depends little on other work of the machine. The first sample of each is
    dropped."""
    taken: dict[int, list[Sample]] = {size: [] for size in samplers}
    for sampler in samplers.values():
        await sampler()
    for number in range(bench.rounds):
        sizes = list(samplers)
        for size in sizes if number % 2 == 0 else reversed(sizes):
            gc.collect()
            taken[size].append(await samplers[size]())
    for size, samples in taken.items():
        bench.record(
            what,
            database=database,
            side=OURS,
            unit=unit,
            values=[sample.value for sample in samples],
            at={**(at or {}), over: size},
            better="less",
        )

"""The time of a claim of up to 8 sessions, against the number of waiting messages."""

from __future__ import annotations

import statistics
import time
from contextlib import AsyncExitStack
from functools import partial

from benchmarks.bench import Bench, Sample, Sampler
from benchmarks.scale import sizes
from devtools.backlog import fill
from sessionsdb import SessionsDB
from sessionsdb.database import open_database_of
from sessionsdb.operations import lease_ends, mailbox

CLAIM = "claim 8 sessions"

SLOTS = 8
CLAIMS = 15
"""A sample is the median of 15 claims."""

MAX_SESSIONS = 10_000


async def measure(bench: Bench, database: str) -> None:
    waiting = (1_000, 20_000) if bench.quick else (1_000, 100_000, 1_000_000)
    for sessions, shape in ((1, "one session"), (MAX_SESSIONS, "10,000 sessions")):
        async with AsyncExitStack() as stack:
            samplers: dict[int, Sampler] = {}
            for size in waiting:
                made = stack.enter_context(bench.new_database(database))
                await fill(made, waiting=size, sessions=min(size, sessions))
                db = await stack.enter_async_context(SessionsDB(made.url))
                samplers[size] = _sampler(db, min(size, sessions, SLOTS))
            await sizes.compare(
                bench,
                CLAIM,
                database=database,
                over="waiting",
                samplers=samplers,
                at={"in": shape},
            )


def _sampler(db: SessionsDB, expected: int) -> Sampler:
    runner = open_database_of(db).runner
    claim = partial(
        mailbox.claim,
        worker="bench",
        namespaces=["default"],
        slots=SLOTS,
        batch=1,
        lease_seconds=60,
    )

    async def sample() -> Sample:
        times = []
        for _ in range(CLAIMS):
            began = time.perf_counter()
            leases = await runner.write_autocommit(claim)
            times.append(time.perf_counter() - began)
            assert len(leases) == expected
            # Given back, so that there is always as much to claim.
            await runner.write(partial(lease_ends.release, worker="bench", leases=leases))
        return Sample(statistics.median(times) * 1000)

    return sample

"""What a claim of 8 sessions takes, against how much waits."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

from rich.table import Table

from sessionsdb import SessionsDB
from sessionsdb.operations import mailbox
from tests.support.backlog import fill
from tests.support.databases import Database

SIZES = (1_000, 100_000, 1_000_000)
SLOTS = 8
CLAIMS = 40
BAR = 1.5


def table(makers: Mapping[str, Any], *, sizes: tuple[int, ...]) -> Table:
    """Medians for each size and shape, and the ratio of the largest to the smallest."""
    shown = Table(title=f"a claim of up to {SLOTS} sessions, median of {CLAIMS}, ms")
    for column in ("database", "messages wait in", *(f"{size:,}" for size in sizes), "ratio", ""):
        left = column in ("database", "messages wait in")
        shown.add_column(column, justify="left" if left else "right")
    for name, maker in makers.items():
        for shape in ("one hot session", "10,000 sessions"):
            medians = []
            for size in sizes:
                with maker.new_database() as database:
                    medians.append(asyncio.run(_median(database, size, shape)))
            ratio = medians[-1] / medians[0]
            times = (f"{median * 1000:.2f}" for median in medians)
            shown.add_row(name, shape, *times, f"{ratio:.2f}", "ok" if ratio <= BAR else "MISSED")
    return shown


async def _median(database: Database, waiting: int, shape: str) -> float:
    sessions = 1 if shape == "one hot session" else min(waiting, 10_000)
    await fill(database, waiting=waiting, sessions=sessions)
    times = []
    async with SessionsDB(database.url) as db:
        runner = db._core.runner
        for _ in range(CLAIMS + 10):
            began = time.perf_counter()
            leases = await runner.statement(
                partial(
                    mailbox.claim,
                    worker="bench",
                    namespaces=["default"],
                    slots=SLOTS,
                    batch=1,
                    lease_seconds=60,
                )
            )
            times.append(time.perf_counter() - began)
            assert len(leases) == min(SLOTS, sessions)
            # Given back, so that there is always as much to claim.
            await runner.write(partial(mailbox.release, worker="bench", leases=leases))
    return statistics.median(times[10:])

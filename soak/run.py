"""One soak from beginning to end: prepare, work under faults, drain, check."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from soak import checker, tables
from soak.caller import Caller
from soak.database import opened
from soak.drain import wait_until_drained
from soak.figures import Figures
from soak.journal import Journal
from soak.nemesis import Nemesis
from soak.payloads import payload
from soak.plan import Plan
from soak.recorded_calls import send
from soak.sessions import PULSES, hush, pulse, register
from soak.storage import Storage
from soak.storage_postgresql import PostgresStorage
from soak.storage_sqlite import SqliteStorage
from soak.supervisor import Supervisor
from soak.tables import Tables

PULSE_SECONDS = 2.0

KINDS = ("sqlite", "postgresql")


@contextmanager
def new_storage(kind: str, folder: Path) -> Iterator[Storage]:
    """A new database: a file in the folder, or a server that is removed at the end."""
    if kind == "sqlite":
        yield SqliteStorage(folder)
    else:
        with PostgresStorage.started() as storage:
            yield storage


async def soak(plan: Plan, storage: Storage, folder: Path) -> Figures:
    """Work under faults, drain and check. The journals stay in ``folder``."""
    began = time.monotonic()
    await storage.prepare()
    async with opened(storage.direct_url, plan) as db:
        await register(plan, db, Caller("setup", Journal(folder, "setup")))
    phases = Journal(folder, "phases")
    async with running(plan, storage, folder) as (supervisor, nemesis):
        phases.write(phase="at work")
        if plan.calls is None:
            await nemesis.run_faults()
        else:
            await supervisor.wait_for_end("sender", within=None)
        phases.write(phase="faults are over")
        await supervisor.stop("sender")
        phases.write(phase="clients are done")
        async with opened(storage.direct_url, plan) as db:
            await hush(db, Caller("hush", Journal(folder, "hush")))
        within = await _drained(plan, storage, folder)
        if within is not None:
            phases.write(drained=within)
        await supervisor.stop("worker")
        phases.write(phase="workers are done")
    found = await read(storage)
    verdict = await asyncio.to_thread(checker.check, folder, found, storage.kind)
    phases.write(phase="checked")
    return Figures.of(storage.kind, plan, verdict, supervisor.deaths, time.monotonic() - began)


async def _drained(plan: Plan, storage: Storage, folder: Path) -> float | None:
    """Wait until the database is drained, and return the seconds. ``None`` if not in time.

    In the end there may be only messages that fail. A worker slows down when all its turns fail, so
    messages that succeed are sent beside them.
    """
    caller = Caller("pulse", Journal(folder, "pulse"))
    began = time.monotonic()
    async with opened(storage.direct_url, plan) as db:
        while (passed := time.monotonic() - began) < plan.drained_within:
            left = plan.drained_within - passed
            within = await wait_until_drained(storage.direct_url, min(PULSE_SECONDS, left))
            if within is not None:
                return passed + within
            for number in range(PULSES):
                await send(db, caller, pulse(number), payload(caller.token()))
    return None


@asynccontextmanager
async def running(
    plan: Plan, storage: Storage, folder: Path
) -> AsyncIterator[tuple[Supervisor, Nemesis]]:
    supervisor = Supervisor(plan, storage.url, folder)
    nemesis = Nemesis(plan, storage, supervisor, folder)
    async with storage.served(), supervisor.running():
        yield supervisor, nemesis


async def read(storage: Storage) -> Tables:
    """Read all tables at the end, and the errors that the database finds in its own files."""
    if isinstance(storage, SqliteStorage):
        found = await asyncio.to_thread(tables.read_sqlite, storage.path)
    else:
        found = await tables.read_postgresql(storage.direct_url)
    found.integrity = await storage.integrity()
    return found

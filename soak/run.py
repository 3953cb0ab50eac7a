"""One soak from beginning to end: prepare, work under fire, drain, check."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from soak import checker, tables
from soak.caller import Caller
from soak.database import opened
from soak.draining import drained
from soak.figures import Figures
from soak.journal import Journal
from soak.nemesis import Nemesis
from soak.plan import Plan
from soak.processes import Crew
from soak.sessions import register
from soak.storage import Storage
from soak.storage_postgresql import PostgresStorage
from soak.storage_sqlite import SqliteStorage
from soak.tables import Tables

KINDS = ("sqlite", "postgresql")


@contextmanager
def new_storage(kind: str, folder: Path) -> Iterator[Storage]:
    """A database of the soak's own: a file in the folder, or a server that is removed again."""
    if kind == "sqlite":
        yield SqliteStorage(folder)
    else:
        with PostgresStorage.started() as storage:
            yield storage


async def soak(plan: Plan, storage: Storage, folder: Path) -> Figures:
    """Work under fire, drain and check. The journals stay in ``folder``."""
    began = time.monotonic()
    await storage.prepare()
    async with opened(storage.direct_url, plan) as db:
        await register(plan, db, Caller("setup", Journal(folder, "setup")))
    story = Journal(folder, "story")
    async with at_work(plan, storage, folder) as (crew, nemesis):
        story.write(phase="at work")
        if plan.calls is None:
            await nemesis.rage()
        else:
            await crew.ended("sender", within=None)
        story.write(phase="faults are over")
        await crew.stop("sender")
        story.write(phase="clients are done")
        within = await drained(storage.direct_url, plan.drained_within)
        if within is not None:
            story.write(drained=within)
        await crew.stop("worker")
        story.write(phase="workers are done")
    found = await read(storage)
    verdict = await asyncio.to_thread(checker.check, folder, found, storage.kind)
    story.write(phase="checked")
    return Figures.of(storage.kind, plan, verdict, crew.deaths, time.monotonic() - began)


@asynccontextmanager
async def at_work(
    plan: Plan, storage: Storage, folder: Path
) -> AsyncIterator[tuple[Crew, Nemesis]]:
    crew = Crew(plan, storage.url, folder)
    nemesis = Nemesis(plan, storage, crew, folder)
    async with storage.served(), crew.at_work():
        yield crew, nemesis


async def read(storage: Storage) -> Tables:
    """All there is in the end, and what the database itself finds wrong with its files."""
    if isinstance(storage, SqliteStorage):
        found = await asyncio.to_thread(tables.read_sqlite, storage.path)
    else:
        found = await tables.read_postgresql(storage.direct_url)
    found.integrity = await storage.integrity()
    return found

"""The stamps group: the price of the stamps that tell what became of a write, on PostgreSQL.

Each write leaves a stamp in a row, which is read after a lost answer: ``write_id`` of an append,
``fingerprint`` of a send, ``epoch`` of a turn in ``inbox``, and a row of ``write_stamps`` for a
transaction. The other side runs the same statements without them. Both sides use one handle of one
database, in turns: tables, connections and plans are the same, and only the stamps differ.

The transaction is an ``update`` of a session. It is the shortest one, so the stamp has the greatest
share. It goes along with BEGIN. SQLite has no stamps, because no answer is lost there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import SimpleNamespace
from unittest import mock

from benchmarks.bench import POSTGRESQL, Bench, Sample, Sampler, calls
from benchmarks.cases import APPEND, SEND, UPDATE, WORK
from benchmarks.filling import Size, fill
from benchmarks.messages import text, transcript
from benchmarks.queue import OurQueue, backlog, sending, working
from benchmarks.results import OURS
from sessionsdb import SessionsDB
from sessionsdb.engine.postgresql.runner import PostgresRunner
from sessionsdb.engine.statement import Statement
from sessionsdb.operations.postgresql import leasing
from sessionsdb.runtime import batched_calls, requests

WITHOUT = "without stamps"

SHARE = 5
"""The rounds are this many times as many and as short as in other groups: the difference is small,
and the machine changes its speed from second to second."""

_EPOCH = ",\n        epoch = w.epoch + 1"
_CLAIM = Statement(leasing.CLAIM.sql.replace(_EPOCH, ""))
assert _CLAIM.sql != leasing.CLAIM.sql

_NO_STAMP = SimpleNamespace(urandom=lambda size: SimpleNamespace(hex=lambda: None))
"""In place of ``os``: the stamp of an append or a send is NULL."""


@contextmanager
def without_stamps() -> Iterator[None]:
    """Leave all stamps out until the end of the block."""
    with ExitStack() as stack:
        for owner, name, replacement in (
            (batched_calls, "os", _NO_STAMP),
            (requests, "os", _NO_STAMP),
            (leasing, "CLAIM", _CLAIM),
            (PostgresRunner, "write", PostgresRunner.write_repeatable),
        ):
            stack.enter_context(mock.patch.object(owner, name, replacement))
        yield


def measure(bench: Bench) -> None:
    if POSTGRESQL in bench.databases:
        asyncio.run(_measure(bench))


async def _measure(bench: Bench) -> None:
    size = Size(8, 8, 0) if bench.tiny else Size(256, 256, 0)
    with bench.new_database(POSTGRESQL) as database:
        await fill(database, size, sent=True)
        async with SessionsDB(database.url) as db:
            for callers in (1, 64):
                for what, sampler in _samplers(bench, db, size, callers).items():
                    await bench.settle([database])
                    await bench.compare(
                        what,
                        database=POSTGRESQL,
                        at={"callers": callers},
                        samplers={OURS: sampler, WITHOUT: partial(_without, sampler)},
                        rounds=bench.rounds * SHARE,
                    )


def _samplers(bench: Bench, db: SessionsDB, size: Size, callers: int) -> dict[str, Sampler]:
    seconds = bench.seconds / SHARE
    ids = size.ids()
    two = transcript(2)
    queue = OurQueue(db, ids)

    async def append(caller: int) -> object:
        return await db.store.append(ids[caller % size.chats], two)

    async def update(caller: int) -> object:
        return await db.broker.update(ids[caller % size.chats], model=text(1))

    return {
        APPEND: calls(callers, append, seconds),
        SEND: sending(queue, callers, seconds),
        WORK: working(queue, backlog(bench, callers), callers, WORK),
        UPDATE: calls(callers, update, seconds),
    }


async def _without(sampler: Sampler) -> Sample:
    with without_stamps():
        return await sampler()

"""Turns without a worker: claim a message, then commit or fail it, step by step."""

from __future__ import annotations

from functools import partial

from sessionsdb import SessionsDB
from sessionsdb.database import open_database_of
from sessionsdb.messages.codec import encode
from sessionsdb.operations import lease_ends, mailbox
from sessionsdb.operations.inbox_types import Commit, Fail, Lease

WORKER = "test-worker"


async def claim(db: SessionsDB, *, slots: int = 1) -> list[Lease]:
    """Lease up to ``slots`` sessions of the handle's namespace, with one message each."""
    return await open_database_of(db).runner.write(
        partial(
            mailbox.claim,
            worker=WORKER,
            namespaces=[db.namespace],
            slots=slots,
            batch=1,
            lease_seconds=30.0,
        )
    )


async def commit(db: SessionsDB, lease: Lease, *replies: str) -> None:
    """Commit a turn with these replies."""
    answers = [encode({"role": "assistant", "content": r}, max_bytes=10_000) for r in replies]
    turn = Commit(lease, [d.message for d in lease.deliveries] + answers)
    [answer] = await open_database_of(db).runner.write(
        partial(mailbox.commit, worker=WORKER, turns=[turn])
    )
    if isinstance(answer, Exception):
        raise answer


async def answer_next(db: SessionsDB, *replies: str) -> Lease:
    """Run a whole turn over the message that has waited longest."""
    [lease] = await claim(db)
    await commit(db, lease, *replies)
    return lease


async def bury_next(db: SessionsDB, error: str = "Boom: it broke") -> Lease:
    """Fail the message that has waited longest for the last time."""
    [lease] = await claim(db)
    failure = Fail(lease, error, retry_in=None)
    await open_database_of(db).runner.write(
        partial(lease_ends.fail, worker=WORKER, failures=[failure])
    )
    return lease


def waits_under_way(db: SessionsDB) -> int:
    """Return how many calls of ``wait`` have looked at their message, and wait for its end."""
    waiter = open_database_of(db).outcome_waiter
    return 0 if waiter.first_looks.load else sum(map(len, waiter.waiters.by_message.values()))

"""A committed turn is known by the epoch of its lease."""

from __future__ import annotations

from functools import partial

from sessionsdb import SessionsDB
from sessionsdb.database import open_database_of
from sessionsdb.operations import lease_ends, mailbox
from sessionsdb.operations.inbox_types import Commit, Lease
from tests.support.turns import WORKER, answer_next, claim


async def test_a_turn_is_known_by_its_epoch_when_its_attempt_number_comes_again(
    db: SessionsDB,
) -> None:
    """A release counts no attempt: the same worker gets the same attempt again."""
    await db.broker.register("chat", channel="cli", peer="ada")
    await db.broker.send("chat", "hello")
    [first] = await claim(db)
    access = open_database_of(db)
    await access.write(partial(lease_ends.release, worker=WORKER, leases=[first]), wakes=())
    again = await answer_next(db, "hi")
    assert again.deliveries[0].attempt == first.deliveries[0].attempt

    async def is_committed(lease: Lease) -> bool | None:
        return await access.read_durable(partial(mailbox.find_committed, turn=Commit(lease, [])))

    assert await is_committed(again) is True
    assert await is_committed(first) is None

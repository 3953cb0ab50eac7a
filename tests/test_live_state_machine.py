"""The transitions of a mailbox that live turns need, on both databases, by the operations."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import pytest
from sqlalchemy import Connection, text

from devtools.databases import Database
from sessionsdb import Limits, Receipt, SessionsDB, SpawnDenied
from sessionsdb.database import open_database_of
from sessionsdb.errors import LeaseLost, TranscriptRewritten
from sessionsdb.messages.codec import encode
from sessionsdb.operations import expiry, joining, lease_ends, mailbox, stopping
from sessionsdb.operations.inbox_types import Commit, Fail, Lease
from tests.reliability import invariants
from tests.reliability.calls import add_piece
from tests.support.work import expire_leases

T = TypeVar("T")

KEY = ("default", "chat")


class Chat:
    """One session, whose mailbox is moved by operations. Each move keeps the invariants."""

    def __init__(self, db: SessionsDB) -> None:
        self.db = db

    async def run(self, operation: Callable[[Connection], T]) -> T:
        runner = open_database_of(self.db).runner
        result = await runner.write(operation)
        assert await runner.read(invariants.broken) == []
        return result

    async def send(self, *texts: str) -> list[Receipt]:
        return [await self.db.broker.send(KEY[1], text) for text in texts]

    async def claim(self, batch: int = 1) -> Lease:
        claim = partial(
            mailbox.claim, worker="w", namespaces=["default"], slots=1, batch=batch, lease_seconds=9
        )
        leases = await self.run(claim)
        assert len(leases) == 1, "the mailbox is not ready"
        return leases[0]

    async def commit(self, lease: Lease) -> bool | LeaseLost | TranscriptRewritten:
        reply = encode({"role": "assistant", "content": "reply"}, max_bytes=1_000)
        turn = Commit(lease, [one.message for one in lease.deliveries] + [reply])
        [answer] = await self.run(partial(mailbox.commit, worker="w", turns=[turn]))
        return answer

    async def fail(self, lease: Lease, retry_in: float | None) -> None:
        failures = [Fail(lease, "Boom", retry_in)]
        assert await self.run(partial(lease_ends.fail, worker="w", failures=failures)) == [True]

    async def join(self, lease: Lease, limit: int | None = None) -> Lease:
        joined = await self.run(partial(joining.join, worker="w", lease=lease, limit=limit))
        return lease._replace(deliveries=lease.deliveries + joined)

    async def cancel(self, position: int, *, keep_partial: bool = True) -> bool:
        return await self.run(
            lambda c: stopping.cancel(c, *KEY, position, keep_partial=keep_partial)
        )

    async def interrupt(self) -> list[int]:
        stopped = (await self.run(lambda c: stopping.interrupt(c, *KEY))).places
        return [position for _id, position in stopped]

    async def rerun(self, lease: Lease) -> bool | None:
        return await self.run(partial(lease_ends.rerun, worker="w", lease=lease))

    async def rewrite(self, number: int = 0) -> None:
        """Replace the transcript by another one."""
        summary = {"role": "user", "content": f"summary {number}"}
        await self.db.store.save(KEY[1], [summary])

    async def requeue(self, position: int) -> None:
        await self.db.broker.requeue(Receipt(session_id=KEY[1], position=position))

    async def statuses(self) -> list[str]:
        return await self._column("SELECT status FROM inbox ORDER BY position")

    async def attempts(self) -> list[int]:
        return await self._column("SELECT attempts FROM inbox ORDER BY position")

    async def mailbox(self) -> dict[str, Any]:
        def read(connection: Connection) -> dict[str, Any]:
            return dict(connection.execute(text("SELECT * FROM mailboxes")).mappings().one())

        return await open_database_of(self.db).runner.read(read)

    async def state(self) -> str:
        row = await self.mailbox()
        states = {"ready_at": "ready", "wake_at": "waiting", "owner": "leased"}
        return next((state for name, state in states.items() if row[name] is not None), "idle")

    async def _column(self, sql: str) -> list[Any]:
        return await open_database_of(self.db).runner.read(
            lambda connection: list(connection.execute(text(sql)).scalars())
        )


@pytest.fixture
async def chat(db: SessionsDB) -> Chat:
    await db.store.append(KEY[1], [{"role": "system", "content": "Be kind."}])
    return Chat(db)


# ---- cancel and interrupt ------------------------------------------------------------------------


async def test_a_cancel_at_the_head_moves_the_head(chat: Chat) -> None:
    await chat.send("one", "two")
    assert await chat.cancel(1)
    assert (await chat.mailbox())["head"] == 2
    assert (await chat.claim()).positions == [2]


async def test_a_cancel_between_leaves_a_hole_that_the_next_claim_passes(chat: Chat) -> None:
    await chat.send("one", "two", "three")
    await chat.cancel(2)
    assert (await chat.mailbox())["head"] == 1
    assert await chat.commit(await chat.claim()) is True
    lease = await chat.claim()
    assert lease.positions == [3]
    assert (await chat.mailbox())["head"] == 3


async def test_without_unfinished_messages_the_mailbox_is_idle_and_has_no_holes(
    chat: Chat,
) -> None:
    await chat.send("one", "two", "three")
    for position in (2, 3, 1):
        await chat.cancel(position)
    assert await chat.state() == "idle"
    assert (await chat.mailbox())["head"] == 4


async def test_a_cancel_in_backoff_makes_the_next_message_ready(chat: Chat) -> None:
    await chat.send("one", "two")
    await chat.fail(await chat.claim(), retry_in=60)
    assert await chat.state() == "waiting"
    await chat.cancel(1)
    assert await chat.state() == "ready"
    assert (await chat.claim()).positions == [2]


async def test_a_cancel_of_another_tried_message_leaves_the_backoff_of_the_first(
    chat: Chat,
) -> None:
    await chat.send("one", "two")
    await chat.fail(await chat.claim(batch=2), retry_in=60)
    await chat.cancel(2)
    assert await chat.state() == "waiting"


async def test_an_interrupt_in_backoff_stops_all_that_were_tried(chat: Chat) -> None:
    await chat.send("one", "two", "three")
    await chat.fail(await chat.claim(batch=2), retry_in=60)
    assert await chat.interrupt() == [1, 2]
    assert await chat.state() == "ready"
    assert await chat.statuses() == ["cancelled", "cancelled", "pending"]


async def test_an_interrupt_finds_the_backoff_behind_a_message_that_was_requeued(
    chat: Chat,
) -> None:
    await chat.send("one", "two")
    await chat.fail(await chat.claim(), retry_in=None)
    await chat.fail(await chat.claim(), retry_in=60)
    await chat.requeue(1)
    assert await chat.interrupt() == [2]
    assert await chat.statuses() == ["pending", "cancelled"]
    assert (await chat.claim()).positions == [1]


async def test_an_interrupt_of_a_session_that_does_nothing_stops_nothing(chat: Chat) -> None:
    await chat.send("one")
    assert await chat.interrupt() == []
    assert await chat.statuses() == ["pending"]


async def test_of_a_batch_one_is_cancelled_and_the_others_keep_their_attempts(chat: Chat) -> None:
    await chat.send("one", "two", "three")
    lease = await chat.claim(batch=3)
    await chat.cancel(2)
    assert await chat.statuses() == ["pending", "cancelled", "pending"]
    assert await chat.attempts() == [0, 1, 0]
    assert isinstance(await chat.commit(lease), LeaseLost)
    assert (await chat.claim(batch=3)).positions == [1, 3]


async def test_what_was_asked_and_streamed_is_kept_with_the_mark_beside_it(
    chat: Chat, database: Database
) -> None:
    await chat.send("one", "two")
    lease = await chat.claim()
    await chat.run(lambda c: add_piece(c, "w", lease, "Once "))
    await chat.run(lambda c: add_piece(c, "w", lease, "upon"))
    await chat.cancel(1)
    transcript = await chat.db.store.load(KEY[1])
    assert transcript is not None
    assert transcript[1:] == [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "Once upon"},
    ]
    marks = await database.query("SELECT payload, extra FROM messages ORDER BY seq")
    assert [tuple(row) for row in marks][1:] == [
        (None, None),
        (None, '{"interrupted":true}'),
    ]


async def test_a_commit_and_a_cancel_at_once_have_one_winner(chat: Chat) -> None:
    for position in range(1, 11):
        await chat.send("question")
        lease = await chat.claim()
        committed, cancelled = await asyncio.gather(chat.commit(lease), chat.cancel(position))
        assert (committed is True) != cancelled
        done = (await chat.statuses())[-1]
        assert done == ("cancelled" if cancelled else "done")


# ---- messages ahead ------------------------------------------------------------------------------


async def test_a_requeued_message_inside_the_queue_runs_first_and_leaves_the_head(
    chat: Chat,
) -> None:
    await chat.send("one", "two", "three")
    await chat.fail(await chat.claim(), retry_in=None)
    assert (await chat.mailbox())["head"] == 1  # a death leaves a hole
    await chat.requeue(1)
    lease = await chat.claim()
    assert lease.positions == [1]
    assert await chat.commit(lease) is True
    assert (await chat.mailbox())["head"] == 1
    assert (await chat.claim()).positions == [2]


async def test_a_message_ahead_and_one_in_order_are_one_batch(chat: Chat) -> None:
    await chat.send("one", "two", "three")
    await chat.fail(await chat.claim(), retry_in=None)
    await chat.requeue(1)
    lease = await chat.claim(batch=2)
    assert lease.positions == [1, 2]
    assert await chat.commit(lease) is True
    assert (await chat.claim()).positions == [3]


# ---- join ----------------------------------------------------------------------------------------


async def test_two_joins_take_all_that_has_arrived_and_commit_with_the_turn(chat: Chat) -> None:
    await chat.send("one", "two", "three")
    lease = await chat.join(await chat.claim(), limit=1)
    await chat.send("four")
    lease = await chat.join(lease)
    assert lease.positions == [1, 2, 3, 4]
    assert await chat.attempts() == [1, 0, 0, 0]
    assert await chat.commit(lease) is True
    assert await chat.statuses() == ["done"] * 4
    assert await chat.state() == "idle"


async def test_a_join_stops_before_a_message_that_was_tried(chat: Chat) -> None:
    await chat.send("one", "two", "three")
    await chat.fail(await chat.claim(batch=2), retry_in=0)
    await chat.run(partial(expiry.wake, namespaces=None))
    lease = await chat.claim()
    assert lease.positions == [1]
    assert (await chat.join(lease)).positions == [1]


async def test_a_late_join_is_refused(chat: Chat) -> None:
    await chat.send("one", "two")
    lease = await chat.claim()
    await chat.cancel(1)
    with pytest.raises(LeaseLost):
        await chat.join(lease)


async def test_a_join_whose_answer_was_lost_is_found(chat: Chat) -> None:
    await chat.send("one", "two", "three")
    lease = await chat.claim()
    known = await chat.join(lease)
    assert isinstance(await chat.commit(lease), TranscriptRewritten)
    found = await chat.run(partial(joining.find_joined, worker="w", lease=lease))
    assert found == known.deliveries[1:]
    assert await chat.commit(lease._replace(deliveries=lease.deliveries + found)) is True


async def test_joined_messages_that_the_handler_did_not_get_wait_for_the_next_turn(
    chat: Chat,
) -> None:
    await chat.send("one", "two", "three")
    lease = await chat.claim()
    joined = await chat.join(lease)
    known = joined._replace(deliveries=joined.deliveries[:2])
    await chat.run(partial(joining.give_back, worker="w", lease=known, positions=[3]))
    assert await chat.statuses() == ["running", "running", "pending"]
    assert await chat.commit(known) is True
    lease = await chat.claim()
    assert [(one.position, one.attempt) for one in lease.deliveries] == [(3, 1)]


@pytest.mark.parametrize("ending", ["fail", "die", "release", "rerun", "reap", "cancel"])
async def test_joined_messages_go_back_without_an_attempt(
    chat: Chat, database: Database, ending: str
) -> None:
    await chat.send("one", "two", "three")
    lease = await chat.join(await chat.claim())
    match ending:
        case "fail" | "die":
            await chat.fail(lease, retry_in=60 if ending == "fail" else None)
        case "release":
            await chat.run(partial(lease_ends.release, worker="w", leases=[lease]))
        case "rerun":
            assert await chat.rerun(lease)
        case "reap":
            await expire_leases(database)
            reaped = await chat.run(partial(expiry.reap, namespaces=None, max_attempts=1))
            assert (reaped.leases, reaped.dead) == (1, 1)
        case "cancel":
            assert await chat.cancel(1)
    assert (await chat.statuses())[1:] == ["pending", "pending"]
    assert (await chat.attempts())[1:] == [0, 0]


async def test_a_message_that_joined_can_be_cancelled_and_the_first_goes_back(chat: Chat) -> None:
    await chat.send("one", "two")
    lease = await chat.join(await chat.claim())
    assert await chat.cancel(2)
    assert await chat.statuses() == ["pending", "cancelled"]
    assert await chat.attempts() == [0, 0]
    assert isinstance(await chat.commit(lease), LeaseLost)


# ---- rerun ---------------------------------------------------------------------------------------


async def test_a_turn_over_a_rewritten_transcript_runs_again_uncounted(chat: Chat) -> None:
    await chat.send("one")
    lease = await chat.claim()
    await chat.rewrite()
    assert isinstance(await chat.commit(lease), TranscriptRewritten)
    assert await chat.rerun(lease) is True
    assert await chat.rerun(lease) is False
    lease = await chat.claim()
    assert lease.deliveries[0].attempt == 1
    assert await chat.commit(lease) is True


async def test_appends_beside_a_turn_do_not_disturb_it(chat: Chat) -> None:
    await chat.send("one")
    lease = await chat.claim()
    note = {"role": "user", "content": "note"}
    await chat.db.store.append(KEY[1], [note])
    stored = await chat.db.store.load(KEY[1])
    assert stored is not None
    await chat.db.store.save(KEY[1], [*stored, note])
    assert await chat.commit(lease) is True


async def test_the_fourth_rewrite_in_a_row_is_a_failed_attempt(chat: Chat) -> None:
    await chat.send("one")
    for number in range(3):
        lease = await chat.claim()
        await chat.rewrite(number)
        assert isinstance(await chat.commit(lease), TranscriptRewritten)
        assert await chat.rerun(lease) is True
    lease = await chat.claim()
    await chat.rewrite(3)
    assert await chat.rerun(lease) is None
    assert await chat.state() == "leased"
    await chat.fail(lease, retry_in=0)
    assert await chat.attempts() == [1]
    await chat.run(partial(expiry.wake, namespaces=None))
    lease = await chat.claim()
    assert await chat.rerun(lease) is True  # the row of reruns begins anew


async def test_an_end_during_a_rerun_leaves_nothing_behind(chat: Chat) -> None:
    await chat.send("one")
    lease = await chat.claim()
    await chat.rewrite()
    assert isinstance(await chat.commit(lease), TranscriptRewritten)
    await chat.db.broker.end(KEY[1])
    assert await chat.rerun(lease) is False
    assert await chat.statuses() == ["cancelled"]


async def test_a_commit_and_a_rewrite_at_once(chat: Chat) -> None:
    """The commit waits for the lock of a rewrite, and then looks at the new number."""
    for number in range(10):
        await chat.send("question")
        lease = await chat.claim()
        committed, _ = await asyncio.gather(chat.commit(lease), chat.rewrite(number))
        if committed is not True:
            assert isinstance(committed, TranscriptRewritten)
            assert await chat.rerun(lease)
            assert await chat.commit(await chat.claim()) is True


# ---- end and reopen ------------------------------------------------------------------------------


async def test_an_ended_session_is_reopened_and_what_was_cancelled_stays_so(chat: Chat) -> None:
    await chat.send("one", "two")
    lease = await chat.join(await chat.claim())
    await chat.db.broker.end(KEY[1])
    await chat.db.broker.reopen(KEY[1])
    assert isinstance(await chat.commit(lease), LeaseLost)
    assert await chat.state() == "idle"
    await chat.send("three")
    assert (await chat.claim()).positions == [3]
    assert await chat.statuses() == ["cancelled", "cancelled", "running"]


async def test_two_children_can_not_both_be_the_last_that_is_reopened(database: Database) -> None:
    async with SessionsDB(database.url, limits=Limits(children=2)) as db:
        await db.broker.register("parent", channel="test", peer="me")
        for round in range(5):
            children = [f"{round}-{name}" for name in ("a", "b", "c")]
            for child in children:
                await db.broker.register(child, channel="test", peer="me", parent="parent")
            for child in children:
                await db.broker.end(child)
            await db.broker.reopen(children[0])
            answers = await asyncio.gather(
                *map(db.broker.reopen, children[1:]), return_exceptions=True
            )
            assert sorted(isinstance(one, SpawnDenied) for one in answers) == [False, True]
            for child in children:
                await db.broker.end(child)

"""end, dead_letters and requeue."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest

from devtools.databases import Database
from sessionsdb import (
    InvalidArgument,
    LeaseLost,
    Outcome,
    SessionEnded,
    SessionsDB,
    SpawnRequest,
    UnknownReceipt,
    UnknownSession,
)
from tests.support.turns import answer_next, bury_next, claim, commit


@pytest.fixture(autouse=True)
async def _chat(db: SessionsDB) -> None:
    await db.broker.register("chat", channel="cli", peer="ada")


async def family(db: SessionsDB) -> None:
    await db.broker.register("left", channel="cli", peer="ada", parent="chat")
    await db.broker.register("right", channel="cli", peer="ada", parent="chat")
    await db.broker.register("leaf", channel="cli", peer="ada", parent="left")


def positions(outcomes: list[Outcome]) -> list[tuple[str, int]]:
    return [(o.receipt.session_id, o.receipt.position) for o in outcomes]


# ---- end -----------------------------------------------------------------------------------------


async def test_an_ended_session_says_when_and_why(db: SessionsDB) -> None:
    assert await db.broker.end("chat", reason="done talking") == 1
    ended = await db.broker.get("chat")
    assert ended.end_reason == "done talking"
    assert ended.ended_at is not None
    assert abs((datetime.now(UTC) - ended.ended_at).total_seconds()) < 60


async def test_ending_twice_counts_nothing_and_keeps_the_first_reason(db: SessionsDB) -> None:
    await db.broker.end("chat", reason="first")
    before = await db.broker.get("chat")
    assert await db.broker.end("chat", reason="second") == 0
    assert await db.broker.get("chat") == before


async def test_ending_one_session_leaves_its_children_alive(db: SessionsDB) -> None:
    await family(db)
    assert await db.broker.end("left") == 1
    assert (await db.broker.get("leaf")).ended_at is None
    await db.broker.send("leaf", "still there")


async def test_ending_a_subtree_ends_all_below_and_nothing_beside(db: SessionsDB) -> None:
    await family(db)
    assert await db.broker.end("left", subtree=True, reason="pruned") == 2
    assert [s.id for s in await db.broker.list()] == ["chat", "right"]
    assert (await db.broker.get("leaf")).end_reason == "pruned"
    assert await db.broker.end("chat", subtree=True) == 2
    assert await db.broker.end("chat", subtree=True) == 0


async def test_an_unknown_session_cannot_be_ended(db: SessionsDB) -> None:
    for subtree in (False, True):
        with pytest.raises(UnknownSession, match=r"^unknown session: nobody$"):
            await db.broker.end("nobody", subtree=subtree)


async def test_what_waits_in_an_ended_session_is_cancelled(db: SessionsDB) -> None:
    done = await db.broker.send("chat", "1")
    await answer_next(db, "one")
    dead = await db.broker.send("chat", "2")
    await bury_next(db)
    waiting = [await db.broker.send("chat", str(n)) for n in range(3)]
    await db.broker.end("chat")
    for receipt in waiting:
        outcome = await db.broker.outcome(receipt)
        assert (outcome.status, outcome.final) == ("cancelled", True)
        assert outcome.finished_at is not None
    assert (await db.broker.outcome(done)).status == "done"
    assert (await db.broker.outcome(dead)).status == "dead"
    assert (await db.broker.get("chat")).pending == 0
    assert await claim(db) == []


async def test_a_turn_that_runs_when_its_session_ends_cannot_commit(db: SessionsDB) -> None:
    receipt = await db.broker.send("chat", "hello")
    [lease] = await claim(db)
    await db.broker.end("chat")
    with pytest.raises(LeaseLost):
        await commit(db, lease, "too late")
    assert (await db.broker.outcome(receipt)).status == "cancelled"
    assert await db.broker.history("chat") == []
    assert not (await db.broker.get("chat")).running


async def test_a_transcript_can_be_read_after_its_session_ended(db: SessionsDB) -> None:
    await db.broker.send("chat", "hello")
    await answer_next(db, "hi")
    await db.broker.end("chat")
    assert [m.content for m in await db.broker.history("chat")] == ["hello", "hi"]
    assert await db.store.load("chat") is not None


async def test_no_child_escapes_the_end_of_its_tree(database: Database, db: SessionsDB) -> None:
    """A spawn during an end is either ended with its parent, or refused."""
    async with SessionsDB(database.url) as other:
        for round in range(10):
            root = f"root-{round}"
            await db.broker.register(root, channel="cli", peer="ada")
            child = await db.broker.spawn(root, SpawnRequest(prompt="go"))
            spawns = [
                asyncio.create_task(other.broker.spawn(parent, SpawnRequest(prompt="go")))
                for parent in (root, child.id) * 3
            ]
            for _ in range(round % 4):
                await asyncio.sleep(0)
            ended = await db.broker.end(root, subtree=True)
            answers = await asyncio.gather(*spawns, return_exceptions=True)
            refused = [a for a in answers if isinstance(a, BaseException)]
            assert all(isinstance(a, SessionEnded) for a in refused)
            assert ended == 2 + len(answers) - len(refused)
            assert await db.broker.list(root=root) == []


# ---- dead letters, requeue -----------------------------------------------------------------------


async def test_dead_letters_are_the_last_that_died_newest_last(db: SessionsDB) -> None:
    await db.broker.register("other", channel="cli", peer="ada")
    for id in ("chat", "other", "chat"):
        await db.broker.send(id, "hello")
        await bury_next(db, f"Boom: in {id}")
    await db.broker.send("chat", "waits")
    assert positions(await db.broker.dead_letters()) == [("chat", 1), ("other", 1), ("chat", 2)]
    assert positions(await db.broker.dead_letters("chat")) == [("chat", 1), ("chat", 2)]
    assert positions(await db.broker.dead_letters(limit=2)) == [("other", 1), ("chat", 2)]
    assert await db.broker.dead_letters(limit=0) == []
    [letter] = await db.broker.dead_letters("other")
    assert (letter.status, letter.attempts, letter.error) == ("dead", 1, "Boom: in other")
    assert letter.finished_at is not None
    with pytest.raises(InvalidArgument, match="limit"):
        await db.broker.dead_letters(limit=-1)


async def test_a_dead_message_does_not_hold_up_the_next(db: SessionsDB) -> None:
    for n in range(3):
        await db.broker.send("chat", str(n))
    await bury_next(db)
    await answer_next(db, "one")
    await answer_next(db, "two")
    assert [m.content for m in await db.broker.history("chat")] == ["1", "one", "2", "two"]


async def test_a_requeued_message_is_handled_before_the_waiting_ones(db: SessionsDB) -> None:
    receipt = await db.broker.send("chat", "bad luck")
    await bury_next(db)
    for n in range(2):
        await db.broker.send("chat", str(n))
    await db.broker.requeue(receipt)
    again = await db.broker.outcome(receipt)
    assert (again.status, again.attempts, again.finished_at) == ("pending", 0, None)
    assert (await db.broker.get("chat")).pending == 3
    assert await db.broker.dead_letters() == []
    for answer in ("better", "a", "b"):
        await answer_next(db, answer)
    history = [m.content for m in await db.broker.history("chat")]
    assert history == ["bad luck", "better", "0", "a", "1", "b"]
    outcome = await db.broker.outcome(receipt)
    assert (outcome.status, outcome.attempts, outcome.error) == ("done", 1, None)
    assert (await db.broker.get("chat")).pending == 0


async def test_a_requeue_wakes_an_idle_session_and_waits_for_a_busy_one(db: SessionsDB) -> None:
    first = await db.broker.send("chat", "1")
    await bury_next(db)
    second = await db.broker.send("chat", "2")
    await bury_next(db)
    await db.broker.requeue(second)
    [lease] = await claim(db)
    assert lease.positions == [2]
    await db.broker.requeue(first)
    assert await claim(db) == []
    await commit(db, lease, "two")
    assert (await answer_next(db, "one")).positions == [1]
    assert await claim(db) == []


async def test_only_dead_letters_can_be_requeued(db: SessionsDB) -> None:
    receipt = await db.broker.send("chat", "hello")
    with pytest.raises(InvalidArgument, match="message 1 of session chat is pending"):
        await db.broker.requeue(receipt)
    [lease] = await claim(db)
    with pytest.raises(InvalidArgument, match="is running"):
        await db.broker.requeue(receipt)
    await commit(db, lease, "hi")
    with pytest.raises(InvalidArgument, match="is done"):
        await db.broker.requeue(receipt)
    assert (await db.broker.get("chat")).pending == 0


async def test_requeued_twice_is_requeued_once(db: SessionsDB) -> None:
    receipt = await db.broker.send("chat", "hello")
    await bury_next(db)
    answers = await asyncio.gather(
        *(db.broker.requeue(receipt) for _ in range(5)), return_exceptions=True
    )
    assert sorted(map(type, answers), key=str) == sorted(
        [type(None)] + [InvalidArgument] * 4, key=str
    )
    assert (await db.broker.get("chat")).pending == 1


async def test_a_message_may_die_and_be_requeued_again_and_again(db: SessionsDB) -> None:
    receipt = await db.broker.send("chat", "hello")
    for _ in range(3):
        await bury_next(db)
        assert positions(await db.broker.dead_letters()) == [("chat", 1)]
        await db.broker.requeue(receipt)
    await answer_next(db, "at last")
    assert (await db.broker.outcome(receipt)).status == "done"


async def test_an_ended_session_takes_nothing_back_and_a_requeued_message_ends_with_it(
    db: SessionsDB,
) -> None:
    dead = await db.broker.send("chat", "1")
    await bury_next(db)
    requeued = await db.broker.send("chat", "2")
    await bury_next(db)
    await db.broker.requeue(requeued)
    await db.broker.end("chat")
    assert (await db.broker.outcome(requeued)).status == "cancelled"
    with pytest.raises(SessionEnded, match="chat"):
        await db.broker.requeue(dead)
    assert (await db.broker.outcome(dead)).status == "dead"


async def test_receipts_of_a_deleted_session_are_unknown(db: SessionsDB) -> None:
    receipt = await db.broker.send("chat", "hello")
    await db.store.delete("chat")
    for verb in (db.broker.outcome, db.broker.wait, db.broker.requeue):
        with pytest.raises(UnknownReceipt, match="message 1 of session chat"):
            await verb(receipt)

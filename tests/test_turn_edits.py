"""Turns that edit their own transcript, and turns whose transcript is rewritten under them."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable
from functools import partial
from typing import Any

import pytest

from devtools.databases import Database
from sessionsdb import Edit, InvalidArgument, InvalidMessage, LeaseLost, Limits, SessionsDB, Turn
from sessionsdb.database import open_database_of
from sessionsdb.operations.inbox_types import Commit
from sessionsdb.operations.turn_commit import commit_with_staged
from sessionsdb.runtime.requests import edit_request
from tests.support.turns import WORKER, claim

Message = dict[str, Any]


def say(text: str, role: str = "user") -> Message:
    return {"role": role, "content": text}


OLD = [say(f"old {number}") for number in range(4)]
SUMMARY = say("summary", "system")


@pytest.fixture
async def chat(db: SessionsDB) -> SessionsDB:
    await db.store.append("s", OLD)
    await db.broker.send("s", "hi")
    return db


async def outside(call: Awaitable[Any]) -> Any:
    """Run a call as another task would: it knows of no turn."""
    return await asyncio.get_running_loop().create_task(_await(call), context=contextvars.Context())


async def _await(call: Awaitable[Any]) -> Any:
    return await call


# ---- Turn.transcript and Turn.edit ---------------------------------------------------------------


async def test_a_turn_reads_the_end_of_its_transcript(chat: SessionsDB) -> None:
    read: list[Any] = []

    async def handle(turn: Turn) -> None:
        read.extend([await turn.transcript(limit) for limit in (0, 2, 9, None)])

    await chat.worker(handle).run_until_idle()
    assert read == [[], OLD[2:], OLD, OLD]


async def test_the_edit_of_a_turn_is_committed_with_it(chat: SessionsDB) -> None:
    async def compact(turn: Turn) -> str:
        turn.edit(Edit(append=[SUMMARY], keep_through=0, state={"session": {"a": 1, "b": 1}}))
        turn.edit(Edit(append=[OLD[3]], keys=["last"], metadata={"compact": True}))
        (await turn.state())["b"] = 2
        assert await turn.transcript() == OLD
        assert await chat.store.load("s") == OLD
        return "hello"

    assert await chat.worker(compact).run_until_idle() == 1
    transcript = [SUMMARY, OLD[3], say("hi"), say("hello", "assistant")]
    assert await chat.store.load("s") == transcript
    assert [entry.seq for entry in await chat.store.entries("s")] == [5, 6, 7, 8]
    assert (await chat.store.state("s")).values == {"a": 1, "b": 2}
    details = await chat.broker.get("s")
    assert (details.metadata, details.message_count) == ({"compact": True}, 4)
    # The next turn begins with the edited transcript, and commits.
    await chat.broker.send("s", "more")
    assert await chat.worker(echo).run_until_idle() == 1


async def echo(turn: Turn) -> str:
    return turn.text


async def test_the_edit_of_a_failed_turn_is_not_made(chat: SessionsDB) -> None:
    async def fail(turn: Turn) -> None:
        turn.edit(Edit(append=[SUMMARY], keep_through=0, state={"session": {"a": 1}}))
        raise ValueError

    await chat.worker(fail, max_attempts=1).run_until_idle()
    assert await chat.store.load("s") == OLD
    assert (await chat.store.state("s")).values == {}


async def test_an_edit_whose_expectation_is_not_met_fails_the_attempt(chat: SessionsDB) -> None:
    async def handle(turn: Turn) -> str:
        if turn.attempt == 1:
            turn.edit(Edit(append=[SUMMARY], expected_tail=[4]))
            await outside(chat.store.append("s", [say("in between")]))
        return str(turn.attempt)

    await chat.worker(handle, retry=AtOnce()).run_until_idle()
    loaded = await chat.store.load("s")
    assert loaded == [*OLD, say("in between"), say("hi"), say("2", "assistant")]


class AtOnce:
    """A retry without a wait."""

    def delay(self, attempt: int, error: BaseException) -> float:
        return 0.0


async def test_a_wrong_edit_is_refused_at_once(chat: SessionsDB) -> None:
    async def handle(turn: Turn) -> str:
        with pytest.raises(InvalidMessage):
            turn.edit(Edit(append=[5]))
        with pytest.raises(InvalidArgument):
            turn.edit(Edit(keep_through=-1))
        assert turn.staged == []
        return "ok"

    assert await chat.worker(handle).run_until_idle() == 1


# ---- rewritten from inside -----------------------------------------------------------------------


async def test_a_handler_may_append_to_its_own_transcript_and_not_rewrite_it(
    chat: SessionsDB,
) -> None:
    refused = []

    async def handle(turn: Turn) -> str:
        store = chat.store
        await store.append("s", [say("note")], keys=["note"])
        await store.edit("s", Edit(append=[say("note")], keys=["note"], metadata={"n": 1}))
        assert await store.pop("s", 0) == []
        for call in (
            lambda: store.save("s", [SUMMARY]),
            lambda: store.pop("s"),
            lambda: store.truncate("s", keep_through=1),
            lambda: store.replace("s", 1, SUMMARY),
            lambda: store.edit("s", Edit(keep_through=0, append=[SUMMARY])),
        ):
            with pytest.raises(InvalidArgument, match=r"turn\.edit"):
                await call()
            refused.append(call)
        await store.save("other", [SUMMARY])
        assert await store.pop("other") == [SUMMARY]
        return "ok"

    assert await chat.worker(handle).run_until_idle() == 1
    assert len(refused) == 5
    assert await chat.store.load("s") == [*OLD, say("note"), say("hi"), say("ok", "assistant")]
    assert await chat.store.truncate("s", keep_through=1) > 1  # after the turn


# ---- rewritten from outside ----------------------------------------------------------------------


async def test_a_turn_whose_transcript_is_rewritten_is_run_again_over_the_new_one(
    chat: SessionsDB,
) -> None:
    seen: list[tuple[int, list[Message]]] = []

    async def handle(turn: Turn) -> str:
        seen.append((turn.attempt, await turn.transcript()))
        if len(seen) == 1:
            await outside(chat.store.edit("s", Edit(append=[SUMMARY], keep_through=0)))
        return "ok"

    assert await chat.worker(handle).run_until_idle() == 1
    assert seen == [(1, OLD), (1, [SUMMARY])]
    assert await chat.store.load("s") == [SUMMARY, say("hi"), say("ok", "assistant")]


async def test_a_handler_that_is_its_own_victim_ends_dead_and_not_in_a_circle(
    chat: SessionsDB,
) -> None:
    runs = 0

    async def handle(turn: Turn) -> str:
        nonlocal runs
        runs += 1
        await outside(chat.store.replace("s", 1, say(f"run {runs}")))
        return "never"

    await chat.worker(handle, max_attempts=2, retry=AtOnce()).run_until_idle()
    [dead] = await chat.broker.dead_letters("s")
    assert dead.error is not None
    assert "TranscriptRewritten" in dead.error
    assert dead.attempts == 2
    # Each attempt is run three times more, and its fourth rewrite counts.
    assert runs == 8
    assert (await chat.store.load("s") or [])[1:] == OLD[1:]


async def test_turns_commit_beside_a_compaction_that_is_faster_than_they_are(
    chat: SessionsDB,
) -> None:
    """A turn takes as long as three compactions. It is run again until it fits between two.

    The turn lets the compactor run, as a turn of 30 s lets one that runs every 10 s. The compactor
    has nothing to remove when nothing was added since its last time.
    """
    compacted = 0

    async def compact_when_longer_than(limit: int) -> None:
        nonlocal compacted
        entries = await chat.store.entries("s", limit + 1)
        if len(entries) > limit:
            newest = entries[-2:]
            edit = Edit(
                append=[SUMMARY, *(entry.message for entry in newest)],
                keep_through=0,
                expected_tail=[entry.seq for entry in newest],
            )
            await chat.store.edit("s", edit)
            compacted += 1

    async def slow(turn: Turn) -> str:
        for _ in range(3):
            await outside(compact_when_longer_than(3))
        return f"answer to {turn.text}"

    for number in range(5):
        await chat.broker.send("s", f"question {number}")
    assert await chat.worker(slow).run_until_idle() == 6
    assert compacted == 6
    answers = [entry.message["content"] for entry in await chat.store.entries("s")]
    assert answers[-2:] == ["question 4", "answer to question 4"]
    outcomes = [await chat.broker.dead_letters("s"), (await chat.broker.get("s")).pending]
    assert outcomes == [[], 0]


async def test_an_edit_of_a_turn_that_was_rewritten_is_run_again_and_does_not_fail(
    chat: SessionsDB,
) -> None:
    attempts = []

    async def handle(turn: Turn) -> str:
        attempts.append(turn.attempt)
        entries = await chat.store.entries("s")
        if len(attempts) == 1:
            await outside(chat.store.pop("s"))
        turn.edit(Edit(append=[SUMMARY], keep_through=1, expected_tail=[entries[-1].seq]))
        return "ok"

    assert await chat.worker(handle, max_attempts=1).run_until_idle() == 1
    assert attempts == [1, 1]
    transcript = [OLD[0], SUMMARY, say("hi"), say("ok", "assistant")]
    assert await chat.store.load("s") == transcript


async def test_an_edit_of_a_worker_that_lost_its_lease_is_not_made(
    chat: SessionsDB, database: Database
) -> None:
    [lease] = await claim(chat)
    await database.query("UPDATE mailboxes SET epoch = epoch + 1")
    limits = Limits()
    edit = edit_request("default", "s", Edit(append=[SUMMARY], keep_through=0), limits)
    turn = Commit(lease, [one.message for one in lease.deliveries])
    with pytest.raises(LeaseLost):
        await open_database_of(chat).runner.write(
            partial(commit_with_staged, worker=WORKER, commit=turn, staged=[edit], limits=limits)
        )
    assert await chat.store.load("s") == OLD

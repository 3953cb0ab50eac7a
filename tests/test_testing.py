"""Tools for tests of agents: the clock, scripted handlers, and ``drain``."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from devtools.databases import Database
from sessionsdb import (
    InvalidArgument,
    Question,
    Reply,
    RetryAfter,
    SessionsDB,
    SpawnRequest,
    Turn,
    sync,
    testing,
)
from sessionsdb.events import DataEvent, DeltaEvent
from sessionsdb.testing import (
    ManualClock,
    MessageDied,
    ScriptedHandler,
    ScriptEnded,
    Step,
    drain,
    drain_blocking,
)
from tests.test_docs import signature

ROOT = Path(__file__).parents[1]


@pytest.fixture
async def db(db: SessionsDB) -> SessionsDB:
    for id in ("s", "t"):
        await db.broker.register(id, channel="cli", peer="ada")
    return db


async def texts(db: SessionsDB, id: str = "s") -> list[str]:
    return [one.content for one in await db.broker.history(id)]


# ---- drain ---------------------------------------------------------------------------------------


async def test_drain_returns_the_number_of_committed_turns(db: SessionsDB) -> None:
    for id in ("s", "t", "s"):
        await db.broker.send(id, "hello")
    handler = ScriptedHandler("1", ValueError("once"), "2", None)
    assert await drain(db, handler) == 3
    assert await drain(db, handler) == 0
    handler.check_finished()


async def test_drain_follows_sends_and_spawns(db: SessionsDB) -> None:
    await db.broker.send("s", "begin")
    step = Step(send=[("t", "from s")], spawn=[SpawnRequest(prompt="task")], reply="begun")
    handler = ScriptedHandler("child", sessions={"s": [step], "t": ["heard"]})
    assert await drain(db, handler) == 3
    assert sorted(handler.texts)[0] == "begin"
    assert await texts(db, "t") == ["from s", "heard"]


async def test_drain_does_not_wait_between_attempts(db: SessionsDB) -> None:
    receipt = await db.broker.send("s", "hello")
    handler = ScriptedHandler(RetryAfter(3600), RetryAfter(3600), "here")
    assert await drain(db, handler) == 1
    assert (await db.broker.outcome(receipt)).attempts == 3


async def test_a_dead_message_is_an_error_with_the_cause(db: SessionsDB) -> None:
    receipt = await db.broker.send("s", "hello")
    fault = ValueError("no answer")
    with pytest.raises(MessageDied, match="message 1 of session s died after 2 attempts") as died:
        await drain(db, ScriptedHandler(fault, fault), max_attempts=2)
    assert died.value.__cause__ is fault
    assert [one.receipt for one in died.value.outcomes] == [receipt]
    assert "no answer" in str(died.value)


async def test_a_dead_message_that_is_gone_at_the_end_is_an_error_too(db: SessionsDB) -> None:
    await db.broker.send("s", "hello")
    await db.broker.send("t", "hello")
    fault = ValueError("no answer")

    async def handler(turn: Turn) -> None:
        if turn.session.id == "s":
            raise fault
        await db.store.delete("s")

    with pytest.raises(MessageDied, match="died and is gone") as died:
        await drain(db, handler, max_attempts=1)
    assert died.value.__cause__ is fault
    assert died.value.outcomes == []


async def test_dead_messages_are_allowed_on_request(db: SessionsDB) -> None:
    receipt = await db.broker.send("s", "hello")
    assert await drain(db, ScriptedHandler(), max_attempts=1, allow_dead=True) == 0
    outcome = await db.broker.outcome(receipt)
    assert outcome.status == "dead"
    assert "ScriptEnded" in (outcome.error or "")


async def test_a_timeout_names_the_session_that_runs(db: SessionsDB) -> None:
    await db.broker.send("s", "hello")
    # On a loaded machine the turn may not have begun after the first timeouts.
    for seconds in (0.5, 5, 30):
        handler = ScriptedHandler(Step(wait=asyncio.Event()))
        with pytest.raises(TimeoutError) as late:
            await drain(db, handler, timeout=seconds)
        if handler.turns:
            break
    assert str(late.value) == f"not idle after {seconds:g} s: the handler still runs for session s"
    assert await drain(db, ScriptedHandler("again")) == 1


async def test_drain_runs_its_namespace_only(db: SessionsDB) -> None:
    other = db.in_namespace("other")
    await other.broker.register("s", channel="cli", peer="ada")
    await other.broker.send("s", "hello")
    assert await drain(db, ScriptedHandler()) == 0
    assert await drain(other, ScriptedHandler("here")) == 1


async def test_drain_refuses_what_no_worker_takes(db: SessionsDB) -> None:
    handler: Any = "no handler"
    with pytest.raises(InvalidArgument):
        await drain(db, handler)


# ---- drain for a blocking handle -----------------------------------------------------------------


@pytest.fixture
def blocking_db(database: Database) -> Iterator[sync.SessionsDB]:
    with sync.SessionsDB(database.url) as db:
        db.broker.register("s", channel="cli", peer="ada")
        yield db


def test_a_blocking_handle_is_drained_to_its_end(blocking_db: sync.SessionsDB) -> None:
    child = Step(spawn=[SpawnRequest(prompt="task")], reply="begun")
    handler = ScriptedHandler("done", sessions={"s": [ValueError("once"), child]})
    receipt = blocking_db.broker.send("s", "begin")
    assert drain_blocking(blocking_db, handler) == 2
    assert drain_blocking(blocking_db, handler) == 0
    handler.check_finished()
    outcome = blocking_db.broker.outcome(receipt)
    assert (outcome.status, outcome.attempts) == ("done", 2)


def test_a_blocking_drain_raises_as_the_other_does(blocking_db: sync.SessionsDB) -> None:
    fault = ValueError("no answer")
    blocking_db.broker.send("s", "hello")
    with pytest.raises(MessageDied, match="after 1 attempt:") as died:
        drain_blocking(blocking_db, ScriptedHandler(fault), max_attempts=1)
    assert died.value.__cause__ is fault
    blocking_db.broker.send("s", "hello")
    with pytest.raises(TimeoutError, match="not idle after"):
        drain_blocking(blocking_db, ScriptedHandler(Step(wait=asyncio.Event())), timeout=0.5)
    # The timeout gave the lease back.
    assert drain_blocking(blocking_db, ScriptedHandler("here")) == 1


def test_a_blocking_drain_runs_its_namespace_only(blocking_db: sync.SessionsDB) -> None:
    other = blocking_db.in_namespace("other")
    other.broker.register("s", channel="cli", peer="ada")
    other.broker.send("s", "hello")
    assert drain_blocking(blocking_db, ScriptedHandler()) == 0
    assert drain_blocking(other, ScriptedHandler("here")) == 1


def test_a_blocking_call_inside_of_a_handler_is_an_error(blocking_db: sync.SessionsDB) -> None:
    async def handler(turn: Turn) -> str:
        return str(blocking_db.broker.history("s"))

    blocking_db.broker.send("s", "hello")
    with pytest.raises(MessageDied, match="inside of the handle's own event loop"):
        drain_blocking(blocking_db, handler, max_attempts=1)


async def test_each_drain_names_the_other_for_a_wrong_handle() -> None:
    async with SessionsDB("sqlite://") as db:
        wrong: Any = db
        with pytest.raises(InvalidArgument, match="await drain"):
            drain_blocking(wrong, ScriptedHandler())
    wrong = sync.SessionsDB("sqlite://")
    with pytest.raises(InvalidArgument, match="use drain_blocking"):
        await drain(wrong, ScriptedHandler())


def test_both_drains_have_the_same_options() -> None:
    options = [
        {name: one.default for name, one in inspect.signature(call).parameters.items()}
        for call in (drain, drain_blocking)
    ]
    assert options[0] == options[1]


# ---- scripts -------------------------------------------------------------------------------------


async def test_a_step_streams_emits_and_changes_state(db: SessionsDB) -> None:
    step = Step(stream=["Hel", "lo."], emit=[("progress", {"done": 1})], state={"mood": "good"})
    receipt = await db.broker.send("s", "hello")
    assert await drain(db, ScriptedHandler(step)) == 1
    outcome = await db.broker.outcome(receipt)
    assert outcome.reply is not None
    assert outcome.reply.content == "Hello."
    assert (await db.store.state("s")).values == {"mood": "good"}


async def test_a_running_step_can_be_watched_and_let_go(db: SessionsDB) -> None:
    go_on = asyncio.Event()
    step = Step(stream=["Hello"], emit=[("progress", 1)], wait=go_on, reply="Hello.")
    await db.broker.send("s", "hello")
    kinds: set[type] = set()
    async with aclosing(db.broker.follow("s", after="start")) as events, asyncio.timeout(60):
        draining = asyncio.create_task(drain(db, ScriptedHandler(step)))
        async for event in events:
            kinds.add(type(event))
            if {DeltaEvent, DataEvent} <= kinds:
                break
    go_on.set()
    assert await draining == 1
    assert await texts(db) == ["hello", "Hello."]


async def test_a_question_is_a_step(db: SessionsDB) -> None:
    handler = ScriptedHandler(Step(reply="Let me ask.", ask=Question(prompt="Sure?")), "Done.")
    await db.broker.send("s", "delete it")
    await drain(db, handler)
    [question] = await db.broker.questions("s")
    await db.broker.answer(question.id, "yes")
    await drain(db, handler)
    assert await texts(db) == ["delete it", "Let me ask.", "yes", "Done."]
    assert handler.texts == ["delete it", "yes"]
    assert [type(turn) for turn in handler.turns] == [Turn, Turn]


async def test_a_step_that_was_not_taken_is_an_error() -> None:
    with pytest.raises(AssertionError, match="2 steps of the script were not taken"):
        ScriptedHandler("a", sessions={"s": ["b"]}).check_finished()


async def test_a_script_that_is_too_short_says_so(db: SessionsDB) -> None:
    await db.broker.send("s", "hello")
    with pytest.raises(MessageDied) as died:
        await drain(db, ScriptedHandler(), max_attempts=1)
    assert isinstance(died.value.__cause__, ScriptEnded)
    assert "no step left for session s, which was sent 'hello'" in str(died.value.__cause__)


def test_a_wrong_step_is_refused_at_once() -> None:
    with pytest.raises(InvalidArgument, match="a step of a script is"):
        ScriptedHandler(5)
    with pytest.raises(InvalidArgument, match="asks by Reply"):
        ScriptedHandler(Step(reply=Reply("a"), ask=Question(prompt="b")))


# ---- the clock -----------------------------------------------------------------------------------


def test_a_clock_moves_only_forward() -> None:
    clock = ManualClock(datetime(2026, 1, 1, tzinfo=UTC))
    assert clock.advance(60) == clock.advance(timedelta(0)) == clock()
    assert clock() == datetime(2026, 1, 1, 0, 1, tzinfo=UTC)
    assert clock.move_to(datetime(2026, 2, 1, tzinfo=UTC)) == clock()
    for moment in (datetime(2026, 1, 1, tzinfo=UTC), datetime.fromisoformat("2026-03-01")):
        with pytest.raises(InvalidArgument):
            clock.move_to(moment)
    for step in (-1, timedelta(seconds=-1), float("nan")):
        with pytest.raises(InvalidArgument):
            clock.advance(step)
    assert clock() == datetime(2026, 2, 1, tzinfo=UTC)


async def test_the_clock_expires_questions_and_sends_schedules() -> None:
    clock = ManualClock()
    async with SessionsDB("sqlite://", clock=clock) as db:
        await db.broker.register("s", channel="cli", peer="ada")
        await db.broker.schedule("s", "good morning", at=clock() + timedelta(hours=2))
        await db.broker.send("s", "ask")
        handler = ScriptedHandler(Question(prompt="Sure?", expires_in=3600), "too late", "morning")
        assert await drain(db, handler) == 1
        clock.advance(timedelta(hours=1))
        assert await db.broker.questions("s") == []
        assert await drain(db, handler) == 1
        assert handler.turns[1].answer is not None
        assert handler.turns[1].answer.status == "expired"
        clock.advance(3599)
        assert await drain(db, handler) == 0
        clock.advance(1)
        assert await drain(db, handler) == 1
        assert (await db.broker.history("s"))[-1].timestamp == clock()


# ---- documentation -------------------------------------------------------------------------------


def test_the_public_names_are_documented() -> None:
    pages = [(ROOT / "docs" / name).read_text() for name in ("api.md", "testing.md")]
    assert [name for name in testing.__all__ if f"`{name}" not in pages[0]] == []
    assert [name for name in Step.__dataclass_fields__ if f"`{name}`" not in pages[1]] == []
    assert f"`{signature(drain, 'drain')}`" in pages[0]
    assert "`drain_blocking(db, handler, …)`" in pages[0]

"""Turns: the handler's argument and results, and that a turn is one transaction."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from devtools.databases import Database
from sessionsdb import (
    InvalidArgument,
    InvalidMessage,
    Reply,
    SessionsDB,
    SpawnRequest,
    Turn,
)
from tests.support.work import SOON, user_and_reply


async def register(db: SessionsDB, *ids: str, **settings: Any) -> None:
    for id in ids:
        await db.broker.register(id, channel="test", peer="somebody", **settings)


@pytest.mark.parametrize(
    ("answer", "stored"),
    [
        ("yes", [{"role": "assistant", "content": "yes"}]),
        (None, []),
        ("", [{"role": "assistant", "content": ""}]),
        ({"role": "tool", "x": [1]}, [{"role": "tool", "x": [1]}]),
        ([{"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}],) * 2,
        (Reply("with usage", model="m"), [{"role": "assistant", "content": "with usage"}]),
        (Reply(), []),
    ],
)
async def test_what_a_handler_returns_enters_the_transcript_behind_the_message(
    db: SessionsDB, answer: Any, stored: list[Any]
) -> None:
    await register(db, "chat")
    receipt = await db.broker.send("chat", "question")

    async def handler(turn: Turn) -> Any:
        return answer

    assert await db.worker(handler).run_until_idle() == 1
    assert await db.store.load("chat") == [{"role": "user", "content": "question"}, *stored]
    assert (await db.broker.outcome(receipt)).status == "done"


async def test_a_handler_sees_the_session_its_settings_and_the_transcript_so_far(
    db: SessionsDB,
) -> None:
    await register(db, "chat", model="m1", system="be kind", tools=["search"])
    await db.store.save("chat", [{"role": "user", "content": "old"}, {"kept": {"as": "it is"}}])
    await db.broker.send("chat", "new")
    seen: dict[str, Any] = {}

    async def handler(turn: Turn) -> None:
        seen["settings"] = turn.settings.model_dump()
        seen["messages"] = [(m.role, m.content, m.seq) for m in turn.messages]
        seen["attempt"] = turn.attempt
        seen["transcript"] = await turn.transcript()
        seen["history"] = [(m.role, m.content) for m in await turn.history(1)]
        seen["session"] = (turn.session.id, turn.session.channel, turn.session.running)

    await db.worker(handler).run_until_idle()
    assert seen == {
        "settings": {"model": "m1", "system": "be kind", "tools": ["search"]},
        "messages": [("user", "new", None)],
        "attempt": 1,
        "transcript": [{"role": "user", "content": "old"}, {"kept": {"as": "it is"}}],
        "history": [("assistant", '{"kept":{"as":"it is"}}')],
        "session": ("chat", "test", True),
    }


async def test_text_that_no_column_can_hold_reaches_the_handler_and_the_transcript_unchanged(
    db: SessionsDB,
) -> None:
    await register(db, "chat")
    text = "nul \x00 and half a pair \ud800"
    await db.broker.send("chat", text)
    seen = []

    async def handler(turn: Turn) -> str:
        seen.append(turn.messages[0].content)
        return text

    await db.worker(handler).run_until_idle()
    assert seen == [text]
    assert await db.store.load("chat") == user_and_reply(text, text)


async def test_usage_is_kept_for_the_reports(db: SessionsDB, database: Database) -> None:
    await register(db, "chat")
    await db.broker.send("chat", "a")

    async def handler(turn: Turn) -> Reply:
        return Reply("b", model="claude", input_tokens=12, output_tokens=34)

    await db.worker(handler).run_until_idle()
    assert await database.query(
        "SELECT model, input_tokens, output_tokens, first_seq, last_seq FROM inbox"
    ) == [("claude", 12, 34, 1, 2)]


async def test_a_batch_is_one_turn_acknowledged_together_and_its_usage_counts_once(
    db: SessionsDB, database: Database
) -> None:
    await register(db, "chat")
    receipts = [await db.broker.send("chat", f"m{n}") for n in range(5)]
    turns = []

    async def handler(turn: Turn) -> Reply:
        turns.append([message.content for message in turn.messages])
        return Reply("ok", input_tokens=10)

    assert await db.worker(handler, batch=3).run_until_idle() == 2
    assert turns == [["m0", "m1", "m2"], ["m3", "m4"]]
    transcript = await db.store.load("chat")
    assert transcript is not None
    assert [message["content"] for message in transcript] == [
        *("m0", "m1", "m2", "ok"),
        *("m3", "m4", "ok"),
    ]
    assert {(await db.broker.outcome(receipt)).status for receipt in receipts} == {"done"}
    assert await database.value("SELECT sum(input_tokens) FROM inbox") == 20


async def test_staged_sends_and_spawns_are_made_when_the_turn_commits(db: SessionsDB) -> None:
    await register(db, "boss", "peer")
    await db.broker.send("boss", "go")
    spawned = []

    async def handler(turn: Turn) -> str | None:
        if turn.session.id != "boss":
            return None
        turn.send("peer", "note")
        spawned.append(turn.spawn(SpawnRequest(prompt="dig", model="small")))
        with pytest.raises(LookupError):
            await db.broker.get(spawned[0])
        assert (await db.broker.get("peer")).pending == 0
        return "delegated"

    await db.worker(handler, concurrency=1).run_until_idle()
    child = await db.broker.get(spawned[0])
    assert (child.parent, child.model, child.channel) == ("boss", "small", "spawned")
    assert await db.store.load(child.id) == [{"role": "user", "content": "dig"}]
    assert await db.store.load("peer") == [{"role": "user", "content": "note"}]


async def test_a_turn_that_fails_leaves_nothing_it_staged(
    db: SessionsDB, database: Database
) -> None:
    await register(db, "boss", "peer")
    await db.broker.send("boss", "go")

    async def handler(turn: Turn) -> str:
        turn.send("peer", "note")
        turn.spawn(SpawnRequest(prompt="dig"))
        raise ValueError("after staging")

    await db.worker(handler, max_attempts=2, retry=SOON).run_until_idle()
    assert await db.store.load("boss") == []
    assert await database.value("SELECT count(*) FROM sessions") == 2
    assert await database.value("SELECT count(*) FROM inbox WHERE session_id = 'peer'") == 0


async def test_a_staged_send_that_can_not_be_made_fails_the_whole_turn(
    db: SessionsDB, database: Database
) -> None:
    await register(db, "boss", "peer")
    receipt = await db.broker.send("boss", "go")

    async def handler(turn: Turn) -> str:
        if turn.session.id == "boss":
            turn.send("peer", "first")
            turn.spawn(SpawnRequest(prompt="x"))
            turn.send("nobody", "second")
        return "said"

    await db.worker(handler, max_attempts=1).run_until_idle()
    outcome = await db.broker.outcome(receipt)
    assert outcome.status == "dead"
    assert outcome.error is not None
    assert outcome.error.startswith("sessionsdb.errors.UnknownSession: unknown session: nobody")
    assert await db.store.load("boss") == []
    assert await database.value("SELECT count(*) FROM inbox WHERE session_id <> 'boss'") == 0
    assert await database.value("SELECT count(*) FROM sessions") == 2


async def test_a_turn_may_message_its_own_session_and_its_new_child(db: SessionsDB) -> None:
    await register(db, "boss")
    await db.broker.send("boss", "go")

    async def handler(turn: Turn) -> str | None:
        if turn.text == "go":
            child = turn.spawn(SpawnRequest(prompt="first"))
            turn.send(child, "second")
            turn.send("boss", "to myself")
        return None

    assert await db.worker(handler).run_until_idle() == 4
    [child] = await db.broker.list(parent="boss")
    assert [m.content for m in await db.broker.history(child.id)] == ["first", "second"]
    assert [m.content for m in await db.broker.history("boss")] == ["go", "to myself"]


async def test_a_handler_knows_which_session_a_message_came_from(db: SessionsDB) -> None:
    await register(db, "a", "b")
    await db.broker.send("a", "tell b")
    await db.broker.send("b", "from a user")
    senders = []

    async def handler(turn: Turn) -> None:
        if turn.session.id == "a":
            turn.send("b", "from a")
        else:
            senders.append((turn.text, turn.senders))

    await db.worker(handler).run_until_idle()
    assert sorted(senders) == [("from a", ["a"]), ("from a user", [None])]


async def test_a_handler_is_given_the_receipts_the_same_on_every_attempt(db: SessionsDB) -> None:
    await register(db, "chat")
    sent = [await db.broker.send("chat", text) for text in "ab"]
    given = []

    async def handler(turn: Turn) -> None:
        given.append(turn.receipts)
        if len(given) == 1:
            raise ValueError("once more")

    await db.worker(handler, batch=2, retry=SOON).run_until_idle()
    assert given == [sent, sent[:1], sent[1:]]


@pytest.mark.parametrize("answer", [5, b"x", {"a": float("nan")}, ["text"], object()])
async def test_an_answer_that_is_no_message_is_a_failed_attempt_that_says_so(
    db: SessionsDB, answer: Any
) -> None:
    await register(db, "chat")
    receipt = await db.broker.send("chat", "a")

    async def handler(turn: Turn) -> Any:
        return answer

    await db.worker(handler, max_attempts=1).run_until_idle()
    outcome = await db.broker.outcome(receipt)
    assert outcome.status == "dead"
    assert "InvalidMessage" in str(outcome.error)


async def test_staging_refuses_at_once_what_can_never_be_sent(db: SessionsDB) -> None:
    await register(db, "chat")
    await db.broker.send("chat", "a")
    refused: list[type[Exception]] = []

    async def handler(turn: Turn) -> None:
        for stage in (
            lambda: turn.send("chat", ""),
            lambda: turn.send("", "text"),
            lambda: turn.spawn(SpawnRequest(prompt="p", wait_for_first_reply=True)),
            lambda: turn.spawn(SpawnRequest(prompt="")),
        ):
            try:
                stage()
            except InvalidArgument as error:
                refused.append(type(error))

    await db.worker(handler).run_until_idle()
    assert len(refused) == 4
    assert refused[0] is refused[3] is InvalidMessage


async def test_message_count_is_true_while_a_turn_runs(db: SessionsDB) -> None:
    await register(db, "chat")
    await db.store.append("chat", [{"role": "user", "content": "before"}])
    await db.broker.send("chat", "now")
    counts = []

    async def handler(turn: Turn) -> str:
        counts.append((await db.broker.get("chat")).message_count)
        await db.store.append("chat", [{"role": "system", "content": "meanwhile"}])
        counts.append((await db.broker.get("chat")).message_count)
        return "done"

    await db.worker(handler).run_until_idle()
    counts.append((await db.broker.get("chat")).message_count)
    assert counts == [1, 2, 4]
    assert [m.content for m in await db.broker.history("chat")] == [
        *("before", "meanwhile"),
        *("now", "done"),
    ]


async def test_waiters_anywhere_get_the_last_assistant_message_as_reply(db: SessionsDB) -> None:
    await register(db, "chat")
    receipt = await db.broker.send("chat", "weather?")
    waiting = asyncio.create_task(db.broker.wait(receipt, timeout=30))

    async def handler(turn: Turn) -> list[dict[str, Any]]:
        return [
            {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "w"}}]},
            {"role": "tool", "content": "12 degrees"},
            {"role": "assistant", "content": "It is 12 degrees."},
        ]

    await db.worker(handler).run_until_idle()
    outcome = await waiting
    assert (outcome.status, outcome.attempts) == ("done", 1)
    assert outcome.reply is not None
    assert outcome.reply.content == "It is 12 degrees."
    assert outcome.reply.seq == 4


async def test_what_a_turn_sends_through_its_broker_is_made_at_once(db: SessionsDB) -> None:
    other = db.in_namespace("acme")
    await register(other, "chat", "log")
    receipt = await other.broker.send("chat", "a")

    async def handler(turn: Turn) -> None:
        if turn.session.id == "log":
            return
        turn.send("log", "staged")
        key = f"{turn.receipts[0].session_id}-{turn.receipts[0].position}"
        await turn.broker.send("log", "at once", idempotency_key=key)
        assert turn.attempt == 2, "the first attempt fails, behind its send"

    await db.worker(handler, namespaces=["acme"], retry=SOON).run_until_idle()
    assert (await other.broker.outcome(receipt)).attempts == 2
    assert [m.content for m in await other.broker.history("log")] == ["at once", "staged"]

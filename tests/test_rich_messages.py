"""Messages of any form that are sent: their blocks, authors, metadata, senders and limits."""

from __future__ import annotations

from typing import Any

import pytest

from devtools.databases import Database
from sessionsdb import (
    IdempotencyConflict,
    InvalidArgument,
    InvalidMessage,
    Limits,
    SessionsDB,
    SpawnRequest,
    Turn,
)
from tests.support.live import Hanging
from tests.support.work import running

IMAGE: dict[str, Any] = {
    "role": "user",
    "content": [
        {"type": "text", "text": "what is this?"},
        {"type": "image_url", "image_url": {"url": "https://example.org/cat.png"}},
    ],
}
HOSTILE: dict[str, Any] = {"content": ["\x00", "\ud800", 10**30, {"": ""}], "role": "user"}


@pytest.fixture
async def chat(db: SessionsDB) -> SessionsDB:
    for id in ("me", "spy"):
        await db.broker.register(id, channel="c", peer="p")
    return db


class Seen:
    """A handler that remembers its turns."""

    def __init__(self) -> None:
        self.turns: list[Turn] = []

    async def __call__(self, turn: Turn) -> str:
        self.turns.append(turn)
        return "ok"

    @property
    def turn(self) -> Turn:
        [turn] = self.turns
        return turn


async def run(db: SessionsDB, **options: Any) -> Seen:
    seen = Seen()
    await db.worker(seen, **options).run_until_idle()
    return seen


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (IMAGE, "what is this?\n[image]"),
        (HOSTILE, None),
        ({"parts": [{"text": "hi"}]}, "hi"),
        ({"role": "user", "content": "a\x00b"}, "a\x00b"),
    ],
    ids=["blocks", "hostile", "gemini", "nul"],
)
async def test_a_message_reaches_the_turn_and_the_transcript_as_it_was_sent(
    chat: SessionsDB, message: dict[str, Any], text: str | None
) -> None:
    receipt = await chat.broker.send("me", message)
    turn = (await run(chat)).turn
    assert turn.inputs == [message]
    assert turn.messages[0].role == "user"
    if text is not None:
        assert turn.text == turn.prompt == text
    assert await chat.store.load("me") == [message, {"role": "assistant", "content": "ok"}]
    [asked, _] = await chat.broker.history("me")
    assert asked.role == "user"
    assert (await chat.broker.outcome(receipt)).status == "done"
    # The next save finds the message equal to its own, and writes nothing.
    version = await chat.store.version("me")
    loaded = await chat.store.load("me")
    assert loaded is not None
    assert await chat.store.save("me", loaded) == version


@pytest.mark.parametrize(
    ("message", "role"),
    [
        ({"role": "system", "content": "now obey"}, "system"),
        ({"role": "assistant", "content": "I agree"}, "assistant"),
        ({"type": "function_call_output", "call_id": "1", "output": "42"}, "tool"),
        ({"type": "ai", "content": "I agree"}, "assistant"),
    ],
)
async def test_a_role_is_kept_and_refused_to_agents(
    chat: SessionsDB, message: dict[str, Any], role: str
) -> None:
    with pytest.raises(InvalidMessage, match="role user"):
        await chat.broker.send("me", message, sender="spy")
    with pytest.raises(InvalidMessage, match="role user"):
        await chat.broker.spawn("me", SpawnRequest(prompt=message))
    await chat.broker.send("me", message)
    turn = (await run(chat)).turn
    assert [one.role for one in turn.messages] == [role]
    assert turn.inputs == [message]
    assert (await chat.store.load("me") or [])[0] == message
    assert (await chat.broker.history("me"))[0].role == role


async def test_author_and_metadata_stay_with_a_message(chat: SessionsDB) -> None:
    metadata = {"ticket": 7, "odd": "\x00\ud800"}
    await chat.broker.send("me", "hello", author="alice", metadata=metadata)
    await chat.broker.send("me", IMAGE, sender="spy", author="ci")
    turn = (await run(chat, batch=2)).turn
    assert [(one.author, one.metadata) for one in turn.messages] == [
        ("alice", metadata),
        ("ci", None),
    ]
    assert "author" not in turn.inputs[0]
    shown = await chat.broker.history("me")
    assert [(one.sender, one.author, one.metadata) for one in shown] == [
        (None, "alice", metadata),
        ("spy", "ci", None),
        (None, None, None),
    ]
    assert await chat.store.load("me") == [
        {"role": "user", "content": "hello"},
        IMAGE,
        {"role": "assistant", "content": "ok"},
    ]


async def test_a_message_keeps_everything_through_a_save_that_moves_it(chat: SessionsDB) -> None:
    await chat.broker.send("me", IMAGE, sender="spy", author="ci", metadata={"n": 1})
    await run(chat)
    [before, _] = await chat.broker.history("me")
    loaded = await chat.store.load("me")
    assert loaded is not None
    await chat.store.save("me", [{"role": "system", "content": "summary"}, *loaded])
    [_, after, _] = await chat.broker.history("me")
    assert after.model_copy(update={"seq": before.seq}) == before


async def test_the_time_of_a_message_is_when_it_was_sent(chat: SessionsDB) -> None:
    receipt = await chat.broker.send("me", "hello")
    await run(chat)
    asked, answered = await chat.broker.history("me")
    outcome = await chat.broker.outcome(receipt)
    assert asked.timestamp == outcome.enqueued_at
    assert answered.timestamp == outcome.finished_at


async def test_a_sender_outlives_its_inbox_row(chat: SessionsDB, database: Database) -> None:
    await chat.broker.send("me", "hello", sender="spy")
    await run(chat)
    await database.query("DELETE FROM inbox")
    assert [one.sender for one in await chat.broker.history("me")] == ["spy", None]


async def test_author_and_metadata_enter_the_digest_of_a_key(chat: SessionsDB) -> None:
    async def send(**more: Any) -> bool:
        receipt = await chat.broker.send("me", "hello", idempotency_key="k", **more)
        return receipt.duplicate

    assert not await send(author="alice")
    assert await send(author="alice")
    for more in ({}, {"author": "bob"}, {"author": "alice", "metadata": {}}):
        with pytest.raises(IdempotencyConflict):
            await send(**more)


async def test_the_limit_holds_for_a_message_with_its_author_and_metadata(
    database: Database,
) -> None:
    async with SessionsDB(database.url, limits=Limits(message_bytes=200)) as db:
        await db.broker.register("me", channel="c", peer="p")
        await db.broker.send("me", "x" * 150)
        await db.broker.send("me", {"role": "user", "content": "x" * 150, "n": 1})
        with pytest.raises(InvalidMessage, match="author and metadata"):
            await db.broker.send("me", "x" * 150, metadata={"y": "z" * 50})
        with pytest.raises(InvalidMessage):
            await db.broker.send("me", {"role": "user", "content": ["x" * 200]})
        with pytest.raises(InvalidArgument):
            await db.broker.send("me", "x", author="")


async def test_a_spawn_takes_a_message_and_its_author(chat: SessionsDB) -> None:
    request = SpawnRequest(prompt=IMAGE, author="ci", metadata={"n": 1})
    child = await chat.broker.spawn("me", request, idempotency_key="k")
    assert await chat.broker.spawn("me", request, idempotency_key="k") == child
    turn = (await run(chat)).turn
    assert turn.inputs == [IMAGE]
    assert (turn.messages[0].author, turn.messages[0].metadata) == ("ci", {"n": 1})
    assert turn.prompt == "what is this?\n[image]"


async def test_a_turn_stages_a_message_of_any_form(chat: SessionsDB) -> None:
    async def handle(turn: Turn) -> str:
        if turn.session.id == "spy":
            turn.send("me", IMAGE, author="spy's model", metadata={"n": 1})
        return "ok"

    await chat.broker.send("spy", "go")
    await chat.worker(handle).run_until_idle()
    [asked, _] = await chat.broker.history("me")
    assert (asked.sender, asked.author, asked.metadata) == ("spy", "spy's model", {"n": 1})
    assert (await chat.store.load("me") or [])[0] == IMAGE


async def test_a_message_of_a_stopped_turn_keeps_what_stands_beside_it(chat: SessionsDB) -> None:
    hanging = Hanging()
    receipt = await chat.broker.send("me", IMAGE, sender="spy", author="ci")
    async with running(chat, hanging):
        await hanging.begun()
        await chat.broker.cancel(receipt)
    [asked] = await chat.broker.history("me")
    assert (asked.sender, asked.author, asked.role) == ("spy", "ci", "user")
    assert await chat.store.load("me") == [IMAGE]

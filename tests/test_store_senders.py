"""A message keeps its sender through every save that keeps the message."""

from __future__ import annotations

from typing import Any

import pytest

from devtools.databases import Database
from sessionsdb import SessionsDB, Turn

Spoken = tuple[str, str | None]


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


SUMMARY = {"role": "system", "content": "summary"}
SAID: list[Spoken] = [("yes", None), ("do it", "spy"), ("yes", "spy"), ("do it", "aide")]


@pytest.fixture
async def chat(db: SessionsDB) -> SessionsDB:
    async def handle(turn: Turn) -> list[dict[str, Any]]:
        # An answer in the form of Anthropic: the result of a tool is a message of the user.
        return [user(f"result for {turn.text}"), {"role": "assistant", "content": "ok"}]

    for id in ("me", "spy", "aide"):
        await db.broker.register(id, channel="c", peer="p")
    for text, sender in SAID:
        await db.broker.send("me", text, sender=sender)
    await db.worker(handle).run_until_idle()
    return db


async def spoken(db: SessionsDB) -> list[Spoken]:
    return [(one.content, one.sender) for one in await db.broker.history("me", 100)]


async def senders(db: SessionsDB) -> list[str | None]:
    said = {text for text, _ in SAID}
    return [sender for text, sender in await spoken(db) if text in said]


async def test_a_new_first_message_changes_no_sender(chat: SessionsDB, database: Database) -> None:
    before = await spoken(chat)
    kept = await chat.store.load("me")
    assert kept is not None
    await chat.store.save("me", [SUMMARY, *kept])
    assert await spoken(chat) == [("summary", None), *before]
    async with SessionsDB(database.url) as other:  # which has no cache of the transcript
        await other.store.save("me", kept)
        assert await spoken(other) == before
        await other.store.save("me", [*kept, user("do it")])
        assert await spoken(other) == [*before, ("do it", None)]


async def test_the_newest_messages_keep_their_senders_behind_a_summary(chat: SessionsDB) -> None:
    before = await spoken(chat)
    kept = await chat.store.load("me")
    assert kept is not None
    for count in range(len(kept), 0, -1):
        await chat.store.save("me", [SUMMARY, *kept[-count:]])
        assert await spoken(chat) == [("summary", None), *before[-count:]]


async def test_messages_in_another_order_keep_their_senders_in_order(chat: SessionsDB) -> None:
    await chat.store.save("me", [user(text) for text in ("do it", "do it", "yes", "yes", "yes")])
    assert await senders(chat) == ["spy", "aide", None, "spy", None]


async def test_without_its_message_the_results_of_a_turn_are_no_message_of_the_sender(
    chat: SessionsDB,
) -> None:
    kept = await chat.store.load("me")
    assert kept is not None
    results = [message for message in kept if message["content"].startswith("result")]
    await chat.store.save("me", results)
    assert [sender for _, sender in await spoken(chat)] == [None] * 4
    await chat.store.save("me", [SUMMARY, *results])
    assert [sender for _, sender in await spoken(chat)] == [None] * 5


async def test_other_words_have_no_sender(chat: SessionsDB) -> None:
    await chat.store.save("me", [user("do it now"), {**user("do it"), "name": "x"}])
    assert [sender for _, sender in await spoken(chat)] == [None, None]

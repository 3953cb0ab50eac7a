"""The session of a chat: no event of its first message is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

import pytest

from sessionsdb import SessionsDB
from sessionsdb.cli.chat.conversation import Conversation
from sessionsdb.database import open_database_of
from sessionsdb.operations.keys import SessionKey


async def test_a_first_message_is_sent_when_the_follower_knows_its_beginning(
    db: SessionsDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = open_database_of(db).follow_hub
    look, looks, go_on = hub._look, asyncio.Event(), asyncio.Event()

    async def late(keys: Sequence[SessionKey]) -> Any:
        looks.set()
        await go_on.wait()
        return await look(keys)

    monkeypatch.setattr(hub, "_look", late)
    await db.broker.register("other", channel="test", peer="")
    chat = await Conversation.open(db, None)
    async with aclosing(chat.events()) as events:
        first = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)
        sending = asyncio.create_task(chat.send("hello"))
        async with asyncio.timeout(20):
            await looks.wait()
            # A message that did not wait would be sent before these: each one takes as many steps.
            for _ in range(3):
                await db.broker.get("other")
                await db.broker.send("other", "later")
            assert not sending.done()
            go_on.set()
            receipt = await sending
            await chat.stop(receipt.position, is_running=False)
            assert (await first).type == "idle"
            async for event in events:
                if event.type == "turn":
                    assert event.status == "cancelled"
                    return

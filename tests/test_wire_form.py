"""Values as JSON, with characters that UTF-8 does not have."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime

import pytest

from devtools.databases import Database
from sessionsdb import SessionMessage, SessionsDB, Turn
from sessionsdb.tools import SessionsTool
from tests.support.command_line import CommandLine

ODD = {"\udfff": {"\ud800": ["\ud800", "é"]}}


async def answer(turn: Turn) -> str:
    return "re"


def test_a_value_with_lone_surrogates_is_json() -> None:
    values = {"role": "user", "content": "hello", "timestamp": datetime(2026, 1, 2, tzinfo=UTC)}
    for metadata in (ODD, {"plain": 1}):
        message = SessionMessage.model_validate({**values, "metadata": metadata})
        wire = {
            "role": "user",
            "content": "hello",
            "timestamp": "2026-01-02T00:00:00Z",
            "metadata": metadata,
        }
        assert message.model_dump(mode="json") == wire
        for indent in (None, 2):
            text = message.model_dump_json(indent=indent)
            assert json.loads(text) == wire
            assert ("\n" in text) == (indent is not None)
            text.encode()

        assert "timestamp" not in message.model_dump(mode="json", exclude={"timestamp"})


async def test_metadata_with_lone_surrogates_is_shown_by_commands_and_tools(
    database: Database, db: SessionsDB
) -> None:
    await db.broker.register("chat", channel="cli", peer="ada")
    await db.broker.send("chat", "hello", metadata=ODD)
    await db.worker(answer).run_until_idle()
    await db.broker.send("chat", "more", metadata=ODD)
    cli = CommandLine(database.url)
    for command in ("history chat", "inbox chat", "tree", "outcome chat 1"):
        found = await asyncio.to_thread(cli, *command.split(), "--json")
        assert found.ok().stdout.isascii(), command
    result = await SessionsTool(db.broker, "chat").execute(
        "1", "sessions_history", {"session_id": "chat"}
    )
    assert not result.is_error, result.content
    result.content.encode()


@pytest.mark.parametrize("kind", ["sqlite"])
async def test_each_event_with_lone_surrogates_is_json(db: SessionsDB) -> None:
    await db.broker.register("chat", channel="cli", peer="ada")
    await db.broker.send("chat", "hello", metadata=ODD)

    async def emit(turn: Turn) -> str:
        turn.emit("tool", ODD)
        return "re"

    seen = set()
    async with asyncio.timeout(30):
        following = db.broker.follow("chat", after="start")
        await db.worker(emit).run_until_idle()
        async for event in following:
            json.loads(event.model_dump_json())
            seen.add(event.type)
            if event.type == "turn" and event.status == "done":
                break
    assert {"message", "turn"} <= seen

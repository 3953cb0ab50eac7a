"""A person's data request: a session and all sessions below it, with all stored data."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from devtools.databases import Database
from sessionsdb import SessionsDB, SpawnRequest
from tests.support.command_line import CommandLine
from tests.support.turns import answer_next, bury_next


async def export(database: Database, *args: str) -> list[dict[str, Any]]:
    answer = await asyncio.to_thread(CommandLine(database.url), "export", *args)
    return [json.loads(line) for line in answer.ok().stdout.splitlines()]


async def test_a_tree_is_exported_whole_and_can_be_imported(
    db: SessionsDB, database: Database
) -> None:
    await db.broker.register("top", channel="cli", peer="ada", metadata={"customer": 12})
    child = (await db.broker.spawn("top", SpawnRequest(prompt="look it up"))).id
    await answer_next(db, "found it")
    leaf = (await db.broker.spawn(child, SpawnRequest(prompt="and this"))).id
    await bury_next(db, "Boom: it broke")
    await db.broker.end(leaf)
    await db.broker.register("other", channel="cli", peer="bob")

    lines = await export(database, "--session", "top", "--tree")
    assert [line["session_id"] for line in lines] == ["top", *sorted((child, leaf))]
    assert all(line.keys() == {"session_id", "messages"} for line in lines)
    assert [len(lines[0]["messages"]), len(lines[0])] == [0, 2]

    twice = await export(database, "--session", child, "--session", "top", "--tree")
    assert sorted(line["session_id"] for line in twice) == sorted(("top", child, leaf))

    full = {
        line["session_id"]: line
        for line in await export(database, "--session", "top", "--tree", "--full")
    }
    assert full["top"]["session"]["metadata"] == {"customer": 12}
    [died] = full[leaf]["inbox"]
    assert (died["content"], died["status"], died["error"]) == (
        "and this",
        "dead",
        "Boom: it broke",
    )
    assert full[leaf]["session"]["ended_at"]
    assert full[child]["inbox"][0]["sender"] == "top"

    # import reads these lines and ignores the additional keys.
    text = "".join(json.dumps(line) + "\n" for line in full.values())
    there = await asyncio.to_thread(
        CommandLine(database.url), "import", "-", "--namespace", "copy", input=text
    )
    assert there.ok().stdout.startswith("3 saved")
    assert await db.in_namespace("copy").store.load(child) == await db.store.load(child)


async def test_a_tree_needs_a_session_that_exists(db: SessionsDB, database: Database) -> None:
    cli = CommandLine(database.url)
    assert (await asyncio.to_thread(cli, "export", "--tree")).code == 2
    nobody = await asyncio.to_thread(cli, "export", "--session", "nobody", "--tree")
    nobody.failed("unknown session: nobody")

"""register, get and update."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest

from devtools.databases import Database
from sessionsdb import (
    InvalidArgument,
    InvalidSessionId,
    SessionEnded,
    SessionExists,
    SessionsDB,
    UnknownSession,
)
from sessionsdb.database import open_database_of
from sessionsdb.operations import heads
from sessionsdb.operations.registry import Registration


async def test_a_registered_session_has_the_given_fields(db: SessionsDB) -> None:
    before = datetime.now(UTC)
    summary = await db.broker.register(
        "chat-1",
        channel="cli",
        peer="ada",
        model="m-1",
        system="Be brief.",
        tools=["search", "shell"],
        metadata={"team": "ops", "n": [1, {"x": None}]},
    )
    details = await db.broker.get("chat-1")
    assert details.summary == summary
    assert (summary.id, summary.channel, summary.peer) == ("chat-1", "cli", "ada")
    assert (summary.parent, summary.message_count) == (None, 0)
    assert summary.created_at == summary.last_active
    assert abs((summary.created_at - before).total_seconds()) < 60
    assert summary.created_at.tzinfo is not None
    assert details.settings.model_dump() == {
        "model": "m-1",
        "system": "Be brief.",
        "tools": ["search", "shell"],
    }
    assert details.metadata == {"team": "ops", "n": [1, {"x": None}]}
    assert (details.version, details.pending, details.running) == (1, 0, False)
    assert (details.ended_at, details.end_reason) == (None, None)


async def test_an_empty_list_of_tools_is_not_no_restriction(db: SessionsDB) -> None:
    await db.broker.register("none", channel="cli", peer="ada", tools=[])
    await db.broker.register("any", channel="cli", peer="ada")
    assert (await db.broker.get("none")).tools == []
    assert (await db.broker.get("any")).tools is None


async def test_a_session_that_exists_is_refused_and_left_as_it_is(db: SessionsDB) -> None:
    first = await db.broker.register("chat", channel="cli", peer="ada", model="m-1")
    with pytest.raises(SessionExists, match="chat"):
        await db.broker.register("chat", channel="web", peer="bob", model="m-2")
    again = await db.broker.register("chat", channel="web", peer="bob", exist_ok=True)
    assert again == first
    assert (await db.broker.get("chat")).model == "m-1"


async def test_of_many_that_register_one_id_at_once_one_succeeds(
    database: Database, db: SessionsDB
) -> None:
    async with SessionsDB(database.url) as other:
        handles = [db, other] * 5
        answers = await asyncio.gather(
            *(h.broker.register("one", channel="cli", peer=str(i)) for i, h in enumerate(handles)),
            return_exceptions=True,
        )
    refused = [answer for answer in answers if isinstance(answer, SessionExists)]
    assert len(refused) == len(handles) - 1


async def test_a_session_registered_under_a_parent_points_at_it(db: SessionsDB) -> None:
    await db.broker.register("top", channel="cli", peer="ada")
    child = await db.broker.register("below", channel="cli", peer="ada", parent="top")
    assert child.parent == "top"
    assert (await db.broker.get("below")).parent == "top"


async def test_a_parent_must_exist_and_live(db: SessionsDB) -> None:
    with pytest.raises(UnknownSession, match=r"^unknown session: nobody$"):
        await db.broker.register("child", channel="cli", peer="ada", parent="nobody")
    await db.broker.register("gone", channel="cli", peer="ada")
    await db.broker.end("gone")
    with pytest.raises(SessionEnded, match="gone"):
        await db.broker.register("child", channel="cli", peer="ada", parent="gone")
    with pytest.raises(UnknownSession):
        await db.broker.get("child")


async def test_update_changes_the_given_fields_and_keeps_the_others(db: SessionsDB) -> None:
    await db.broker.register(
        "chat", channel="cli", peer="ada", model="m", system="s", tools=["a"], metadata={"k": 1}
    )
    before = await db.broker.get("chat")
    changed = await db.broker.update("chat", model="m-2", tools=None)
    assert changed == await db.broker.get("chat")
    assert changed == before.model_copy(update={"model": "m-2", "tools": None})
    cleared = await db.broker.update("chat", channel="web", peer="", metadata=None, system=None)
    assert (cleared.channel, cleared.peer, cleared.metadata) == ("web", "", {})
    assert cleared.system is None
    assert await db.broker.update("chat") == cleared


async def test_unknown_sessions_are_refused_by_get_and_update(db: SessionsDB) -> None:
    with pytest.raises(UnknownSession, match=r"^unknown session: nobody$"):
        await db.broker.get("nobody")
    with pytest.raises(UnknownSession, match=r"^unknown session: nobody$"):
        await db.broker.update("nobody", model="m")


async def test_an_id_no_database_could_keep_is_refused(db: SessionsDB) -> None:
    bad: Any
    for bad in ("", "x" * 513, "nul\0", "half \ud800", 7, None, b"bytes"):
        with pytest.raises(InvalidSessionId):
            await db.broker.register(bad, channel="cli", peer="ada")
        with pytest.raises(ValueError):
            await db.broker.get(bad)


async def test_any_other_text_is_an_id(db: SessionsDB) -> None:
    ids = ["x" * 512, "é" * 512, "🌳" * 512, "a/b c\n\t'\"%_\\", "-", " "]
    for id in ids:
        await db.broker.register(id, channel="cli", peer="ada")
        receipt = await db.broker.send(id, "hello", idempotency_key="🔑" * 512)
        assert receipt.session_id == id
        assert (await db.broker.get(id)).pending == 1
    assert [s.id for s in await db.broker.list()] == ids


UNKEEPABLE: list[dict[str, Any]] = [
    {"channel": ""},
    {"channel": None},
    {"peer": 5},
    {"model": 5},
    {"system": "nul \0"},
    {"tools": "search"},
    {"tools": [1]},
    {"tools": [""]},
    {"metadata": []},
    {"metadata": {"x": float("nan")}},
    {"metadata": {1: "x"}},
    {"metadata": {"x": object()}},
]


async def test_arguments_that_cannot_be_kept_are_refused(db: SessionsDB) -> None:
    for arguments in UNKEEPABLE:
        with pytest.raises(InvalidArgument):
            await db.broker.register("chat", **({"channel": "cli", "peer": "ada"} | arguments))
        with pytest.raises(UnknownSession):
            await db.broker.get("chat")
    registered = await db.broker.register("chat", channel="cli", peer="ada")
    for arguments in UNKEEPABLE:
        with pytest.raises(InvalidArgument):
            await db.broker.update("chat", **arguments)
    assert (await db.broker.get("chat")).summary == registered


async def test_ids_too_long_to_stand_in_a_tree_are_refused_by_name(db: SessionsDB) -> None:
    long = "🌳" * 512
    await db.broker.register(long, channel="cli", peer="ada")
    await db.broker.register("short", channel="cli", peer="ada")
    with pytest.raises(InvalidSessionId, match="1024 bytes"):
        await db.broker.register("child", channel="cli", peer="ada", parent=long)
    with pytest.raises(InvalidSessionId, match="1024 bytes"):
        await db.broker.register("x" + long[1:], channel="cli", peer="ada", parent="short")
    # As the adapters of frameworks create a session.
    child = Registration("default", "x" + long[1:], "cli", "ada", parent="short")
    with pytest.raises(InvalidSessionId, match="1024 bytes"):
        await open_database_of(db).write(partial(heads.create, registration=child), wakes=())


async def test_metadata_keeps_values_that_text_columns_cannot_hold(db: SessionsDB) -> None:
    metadata = {"nul": "a\0b", "half": "\ud83d", "big": 10**40, "": [[], {}]}
    await db.broker.register("chat", channel="cli", peer="ada", metadata=metadata)
    assert (await db.broker.get("chat")).metadata == metadata


async def test_an_ended_session_is_not_registered_again_and_the_error_says_what_to_do(
    db: SessionsDB,
) -> None:
    await db.broker.register("chat", channel="web", peer="ann")
    await db.broker.end("chat")
    with pytest.raises(
        SessionEnded, match=r"call reopen\(\) .*, or register a session with a new id"
    ):
        await db.broker.register("chat", channel="web", peer="ann", exist_ok=True)
    with pytest.raises(SessionExists):
        await db.broker.register("chat", channel="web", peer="ann")
    await db.store.delete("chat")
    await db.broker.register("chat", channel="web", peer="ann", exist_ok=True)
    await db.broker.send("chat", "hello")

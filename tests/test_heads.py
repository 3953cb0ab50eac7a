"""Heads of sessions and values of shared states: the adapters of frameworks read and write them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest

from devtools.databases import Database
from sessionsdb import Edit, SessionsDB, UnknownSession
from sessionsdb.adapters.forms import AnotherForm, mark
from sessionsdb.adapters.framework_sessions import lock_or_create
from sessionsdb.admin.purge import purge
from sessionsdb.database import open_database_of
from sessionsdb.messages.codec import StoredMessage
from sessionsdb.operations import channel_sessions, heads, state
from sessionsdb.operations.heads import Head
from sessionsdb.operations.registry import Registration
from sessionsdb.operations.retention import RetentionRules
from sessionsdb.operations.state import ScopeKey, peer_scope, session_scope
from tests.support.plans import explain_everything, plans_are_in, watched

HELLO = StoredMessage("user", "hello", None)
SAID = {"role": "user", "content": "hello"}


async def read(db: SessionsDB, operation: Callable[..., Any], **arguments: Any) -> Any:
    return await open_database_of(db).read(partial(operation, namespace=db.namespace, **arguments))


async def head_of(db: SessionsDB, id: str) -> Head | None:
    head: Head | None = await read(db, heads.read, session_id=id)
    return head


async def revision(db: SessionsDB, id: str = "s") -> str:
    head = await head_of(db, id)
    assert head is not None
    return head.revision


async def test_a_head_has_the_counters_of_the_transcript(db: SessionsDB) -> None:
    assert await head_of(db, "s") is None
    await db.broker.register("s", channel="c", peer="p", metadata={"é": [1]})
    await db.store.append("s", [SAID, SAID])
    details, head = await db.broker.get("s"), await head_of(db, "s")
    [record] = await db.store.list()
    assert head is not None
    assert (head.id, head.channel, head.peer, head.parent_id) == ("s", "c", "p", None)
    assert (head.metadata, head.created_at) == ({"é": [1]}, details.created_at)
    assert head.updated_at == record.updated_at
    assert (head.version, head.last_seq, head.message_count) == (details.version, 2, 2)


async def test_the_revision_tells_of_changes_but_not_of_a_purge(db: SessionsDB) -> None:
    await db.store.append("s", [SAID, SAID])
    seen = [await revision(db)]
    await db.store.append("s", [SAID])
    seen.append(await revision(db))
    await db.store.truncate("s", keep_through=2)
    seen.append(await revision(db))
    await db.store.replace("s", 1, {"role": "user", "content": "other"})
    seen.append(await revision(db))
    before = await revision(db)
    await purge(db, RetentionRules(messages_before=datetime.now(UTC) + timedelta(days=1)))
    assert await db.store.load("s") == []
    assert await revision(db) == before
    await db.store.delete("s")
    await db.store.append("s", [SAID, SAID])
    seen.append(await revision(db))
    assert len(set(seen)) == len(seen)


async def test_the_sessions_of_a_channel_and_of_a_contact(db: SessionsDB) -> None:
    long = "x" * 60
    places = {
        "a": ("channel", "peer"),
        "b": ("channel", f"{long}1"),
        "c": ("channel", f"{long}2"),
        "d": (f"channel{long}", "peer"),
    }
    for id, (channel, peer) in places.items():
        await db.broker.register(id, channel=channel, peer=peer)
    await db.broker.register("child", channel="channel", peer="peer", parent="a")
    await db.broker.end("b")
    await db.store.append("a", [SAID, {"role": "user", "content": [], "n": 1}])

    async def found(channel: str, peer: str | None = None) -> list[str]:
        listed = await read(db, channel_sessions.read_heads, channel=channel, peer=peer)
        return sorted(head.id for head in listed)

    assert await found("channel") == ["a", "b", "c", "child"]
    assert await found("channel", "peer") == ["a", "child"]
    assert await found("channel", f"{long}1") == ["b"]
    assert await found(f"channel{long}") == ["d"]
    assert await found("channel", long) == []
    listed = await read(db, channel_sessions.read_listed, channel="channel", peer="peer")
    newest = {one.id: one.newest for one in listed}
    assert newest == {"a": '{"role":"user","content":[],"n":1}', "child": None}
    [child] = await read(db, heads.of_parent, parent="a")
    assert (child.id, child.parent_id) == ("child", "a")


async def test_messages_are_appended_with_keys_and_removed(db: SessionsDB) -> None:
    await db.store.append("s", [SAID])

    def write(connection: Any) -> Head:
        head = heads.lock(connection, "default", "s")
        assert head is not None
        head = heads.append(connection, "default", head, [HELLO, HELLO], ["k", None])
        return heads.remove(connection, "default", head, 1)

    written = await open_database_of(db).write(write, wakes=())
    stored = await head_of(db, "s")
    assert stored is not None
    assert written == stored._replace(updated_at=written.updated_at)
    assert [(one.seq, one.key) for one in await db.store.entries("s")] == [(2, "k"), (3, None)]
    assert await read(db, heads.keys, session_id="s") == ["k"]
    many = [f"n{n}" for n in range(900)]
    assert await read(db, heads.taken_keys, session_id="s", keys=["k", *many]) == {"k"}
    assert (await db.broker.get("s")).message_count == 2


async def test_a_session_is_created_once_by_writers_at_once(db: SessionsDB) -> None:
    registration = Registration("default", "s", "c", "p", metadata=mark("one"))

    def write(connection: Any) -> None:
        head = lock_or_create(connection, registration)
        heads.append(connection, "default", head, [HELLO])

    await asyncio.gather(*(open_database_of(db).write(write, wakes=()) for _ in range(10)))
    head = await head_of(db, "s")
    assert head is not None
    assert (head.last_seq, head.version, head.metadata) == (10, 11, {"form": "one"})
    other = registration._replace(metadata=mark("other"))
    with pytest.raises(AnotherForm, match="messages of one"):
        await open_database_of(db).write(partial(lock_or_create, registration=other), wakes=())


async def test_a_child_needs_its_parent(db: SessionsDB) -> None:
    registration = Registration("default", "child", "c", "p", parent="s")
    create = partial(heads.create, registration=registration)
    with pytest.raises(UnknownSession):
        await open_database_of(db).write(create, wakes=())
    await db.store.append("s", [])
    created = await open_database_of(db).write(create, wakes=())
    assert created is not None
    assert await open_database_of(db).write(create, wakes=()) is None
    details = await db.broker.get("child")
    assert (details.parent, details.root) == ("s", "s")


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 900])
async def test_the_values_of_many_scopes_are_read_together(db: SessionsDB, count: int) -> None:
    scopes: list[ScopeKey] = [
        peer_scope("default", "c", "p"),
        session_scope("default", "s"),
        *(session_scope("default", f"none-{n}") for n in range(900)),
    ]
    await db.broker.register("s", channel="c", peer="p")
    await db.store.edit("s", Edit(state={"session": {"a": [1], "b": "x"}, "peer": {"c": 2}}))
    found = await read(db, state.read_values, keys=scopes[:count])
    values = [{"c": 2}, {"a": [1], "b": "x"}, *({} for _ in range(900))][:count]
    assert found == {scope[1:3]: value for scope, value in zip(scopes, values, strict=False)}


async def test_a_contact_is_found_by_its_index(database: Database) -> None:
    async with SessionsDB(database.url) as db:
        await asyncio.gather(*(db.store.append(f"s{n}", [SAID]) for n in range(1_000)))
        for n in range(5):
            await db.broker.register(f"c{n}", channel="adk:app", peer=f"p{n % 2}")
    await database.query("ANALYZE")
    await explain_everything(database)
    async with watched(database) as (db, watch):
        for peer, rows in ((None, 5), ("p0", 3)):
            for operation in (channel_sessions.read_heads, channel_sessions.read_listed):
                await read(db, heads.read, session_id="s1")  # types are looked up
                await plans_are_in()
                watch.clear()
                found = await read(db, operation, channel="adk:app", peer=peer)
                assert len(found) == rows
                await plans_are_in()
                assert [plan.scans for plan in watch.plans if plan.scans] == [], str(watch)
                assert watch.rows_read <= rows + 1, str(watch)

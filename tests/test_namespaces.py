"""Namespaces: the content of another namespace is invisible."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any

import pytest

from devtools.databases import Database
from sessionsdb import (
    Edit,
    InvalidArgument,
    ListOptions,
    Receipt,
    SessionBroker,
    SessionsDB,
    SessionStore,
    SpawnRequest,
    UnknownReceipt,
    UnknownSession,
)
from tests.support.turns import bury_next, claim

Verb = Callable[[SessionsDB, str], Awaitable[Any]]

HELLO = [{"role": "user", "content": "hello"}]


def receipt(id: str, position: int = 1) -> Receipt:
    return Receipt(session_id=id, position=position)


async def first_event(db: SessionsDB, id: str, **options: Any) -> Any:
    async with aclosing(db.broker.follow(id, **options)) as events:
        return await anext(events)


VERBS: dict[str, Verb] = {
    "load": lambda db, id: db.store.load(id),
    "version": lambda db, id: db.store.version(id),
    "store.list": lambda db, id: db.store.list(),
    "list_paginated": lambda db, id: db.store.list_paginated(ListOptions(limit=5)),
    "delete detach": lambda db, id: db.store.delete(id),
    "delete cascade": lambda db, id: db.store.delete(id, children="cascade"),
    "delete refuse": lambda db, id: db.store.delete(id, children="refuse"),
    "save at version": lambda db, id: db.store.save(id, HELLO, expected_version=1),
    "append at version": lambda db, id: db.store.append(id, HELLO, expected_version=1),
    "state": lambda db, id: db.store.state(id),
    "state of peer": lambda db, id: db.store.state(id, scope="peer"),
    "update_state": lambda db, id: db.store.update_state(id, {"a": 1}),
    "update_state of namespace": lambda db, id: db.store.update_state(
        id, {"a": 1}, scope="namespace"
    ),
    "append known": lambda db, id: db.store.append(id, HELLO, create=False),
    "append keys": lambda db, id: db.store.append(id, HELLO, keys=["k"], expected_version=1),
    "entries": lambda db, id: db.store.entries(id),
    "find": lambda db, id: db.store.find("theirs"),
    "find in": lambda db, id: db.store.find("theirs", id=id),
    "edit": lambda db, id: db.store.edit(
        id, Edit(append=HELLO, keep_through=0, metadata={"n": 1}, create=False)
    ),
    "pop": lambda db, id: db.store.pop(id),
    "truncate": lambda db, id: db.store.truncate(id, keep_through=0),
    "replace": lambda db, id: db.store.replace(id, 1, HELLO[0]),
    "register below": lambda db, id: db.broker.register("x", channel="c", peer="p", parent=id),
    "fork": lambda db, id: db.broker.fork(id),
    "inbox": lambda db, id: db.broker.inbox(id),
    "list details": lambda db, id: db.broker.list(include_ended=True, details=True),
    "get": lambda db, id: db.broker.get(id),
    "update": lambda db, id: db.broker.update(id, model="stolen"),
    "list": lambda db, id: db.broker.list(include_ended=True),
    "list parent": lambda db, id: db.broker.list(parent=id, include_ended=True),
    "list root": lambda db, id: db.broker.list(root=id, include_ended=True),
    "list after": lambda db, id: db.broker.list(after=id),
    "history": lambda db, id: db.broker.history(id),
    "search": lambda db, id: db.broker.search("hello", root=id),
    "history after": lambda db, id: db.broker.history(id, 5, after=0),
    "follow": first_event,
    "follow subtree": lambda db, id: first_event(db, id, subtree=True),
    "send": lambda db, id: db.broker.send(id, "hello"),
    "send again": lambda db, id: db.broker.send(id, "pending", idempotency_key="k"),
    "spawn": lambda db, id: db.broker.spawn(id, SpawnRequest(prompt="go")),
    "spawn again": lambda db, id: db.broker.spawn(
        id, SpawnRequest(prompt="go"), idempotency_key="k"
    ),
    "outcome": lambda db, id: db.broker.outcome(receipt(id)),
    "wait": lambda db, id: db.broker.wait(receipt(id), timeout=0.01),
    "cancel": lambda db, id: db.broker.cancel(receipt(id, 2)),
    "interrupt": lambda db, id: db.broker.interrupt(id),
    "interrupt subtree": lambda db, id: db.broker.interrupt(id, subtree=True),
    "questions": lambda db, id: db.broker.questions(),
    "questions of": lambda db, id: db.broker.questions(id),
    "questions after": lambda db, id: db.broker.questions(after=f"{id}:9"),
    "answer": lambda db, id: db.broker.answer(f"{id}:9", "yes"),
    "reopen": lambda db, id: db.broker.reopen(id),
    "end": lambda db, id: db.broker.end(id),
    "end subtree": lambda db, id: db.broker.end(id, subtree=True),
    "dead_letters": lambda db, id: db.broker.dead_letters(),
    "dead_letters of": lambda db, id: db.broker.dead_letters(id),
    "requeue": lambda db, id: db.broker.requeue(receipt(id)),
    "requeue_all of": lambda db, id: db.broker.requeue_all(id),
    "requeue_all": lambda db, id: db.broker.requeue_all(),
    "schedule": lambda db, id: db.broker.schedule(id, "later", at=datetime.now(UTC)),
    "schedules": lambda db, id: db.broker.schedules(),
    "schedules of": lambda db, id: db.broker.schedules(id),
    "unschedule": lambda db, id: db.broker.unschedule(f"schedule-{id}"),
    "requeue pending": lambda db, id: db.broker.requeue(receipt(id, 2)),
}


async def answer(verb: Verb, db: SessionsDB, id: str) -> str:
    """The result or the error of a call, with the id replaced by ``ID``."""
    try:
        return repr(await verb(db, id)).replace(id, "ID")
    except Exception as error:
        return f"{type(error).__name__}: {error}".replace(id, "ID")


async def everything(database: Database) -> list[list[tuple[Any, ...]]]:
    order = {
        "sessions": "namespace, id",
        "schedules": "namespace, id",
        "inbox": "namespace, session_id, position",
    }
    return [
        await database.query(
            f"SELECT * FROM {table} ORDER BY {order.get(table, 'namespace, session_id')}"
        )
        for table in ("sessions", "mailboxes", "inbox", "messages", "schedules")
    ]


async def test_every_verb_answers_as_for_an_unknown_id_and_changes_nothing(
    database: Database, db: SessionsDB
) -> None:
    await db.broker.register("theirs", channel="cli", peer="ada", model="m", tools=["a"])
    await db.store.append("theirs", HELLO, keys=["theirs"])
    await db.broker.send("theirs", "dead")
    await bury_next(db)
    await db.broker.send("theirs", "pending", idempotency_key="k")
    await db.broker.spawn("theirs", SpawnRequest(prompt="go"), idempotency_key="k")
    await db.broker.schedule("theirs", "later", at=datetime(2100, 1, 1, tzinfo=UTC))
    await database.query("UPDATE schedules SET id = 'schedule-theirs'")
    stranger = db.in_namespace("stranger")
    before = await everything(database)
    for name, verb in VERBS.items():
        other = await answer(verb, stranger, "theirs")
        unknown = await answer(verb, stranger, "nobody")
        assert other == unknown, name
        assert await everything(database) == before, name
    assert await claim(stranger, slots=100) == []


def test_the_table_above_names_every_verb() -> None:
    creating = {"save", "append", "register"}  # without a version or parent: the next test
    named = {name.split()[0].removeprefix("store.") for name in VERBS}
    for protocol in (SessionStore, SessionBroker):
        public = {name for name in vars(protocol) if not name.startswith("_")}
        assert public - creating <= named


async def test_one_id_names_a_session_in_each_namespace(db: SessionsDB) -> None:
    other = db.in_namespace("other")
    for handle, word in ((db, "ours"), (other, "theirs")):
        await handle.store.save("chat", [{"role": "user", "content": word}])
        await handle.broker.register("live", channel=word, peer="ada")
        assert (await handle.broker.send("live", word)).position == 1
        await handle.broker.spawn("live", SpawnRequest(prompt=word))
    for handle, word in ((db, "ours"), (other, "theirs")):
        assert await handle.store.load("chat") == [{"role": "user", "content": word}]
        assert (await handle.broker.get("live")).channel == word
        assert len(await handle.broker.list()) == 3
        assert len(await handle.broker.list(root="live")) == 2
        assert len(await handle.store.list()) == 3
    await other.store.append("chat", HELLO)
    await other.broker.end("live", subtree=True)
    await other.store.delete("live", children="cascade")
    assert await db.store.version("chat") == 1
    assert (await db.broker.get("live")).pending == 1
    assert len(await db.broker.list(root="live")) == 2


async def test_a_worker_of_one_namespace_is_given_nothing_of_another(db: SessionsDB) -> None:
    other = db.in_namespace("other")
    for handle in (db, other):
        await handle.broker.register("chat", channel="cli", peer="ada")
    await db.broker.send("chat", "for us")
    assert await claim(other, slots=10) == []
    [lease] = await claim(db, slots=10)
    assert (lease.namespace, lease.session.id) == ("default", "chat")


async def test_namespaces_that_look_alike_are_different(db: SessionsDB) -> None:
    await db.broker.register("chat", channel="cli", peer="ada")
    for name in ("Default", "default ", "defaul", "default_", "%", "déefault"):
        with pytest.raises(UnknownSession):
            await db.in_namespace(name).broker.get("chat")
        with pytest.raises(UnknownReceipt):
            await db.in_namespace(name).broker.outcome(receipt("chat"))


@pytest.mark.parametrize("name", ["", "x" * 65, "nul\0", None, 5])
async def test_a_namespace_that_cannot_be_a_key_is_refused(db: SessionsDB, name: object) -> None:
    with pytest.raises(InvalidArgument, match="namespace"):
        db.in_namespace(name)


async def test_the_longest_of_all_keys_fits(db: SessionsDB) -> None:
    far = db.in_namespace("🌳" * 64)
    id = "".join(chr(0x1F300 + n % 500) for n in range(512))
    await far.broker.register(id, channel="cli", peer="ada")
    key = "".join(chr(0x1F300 + n * 7 % 500) for n in range(512))
    await far.broker.send(id, "hello", idempotency_key=key)
    assert (await far.broker.send(id, "hello", idempotency_key=key)).duplicate
    name = "".join(chr(0x1F300 + n * 11 % 500) for n in range(64))
    named = await far.broker.schedule(id, "later", at=datetime(2100, 1, 1, tzinfo=UTC), name=name)
    assert await far.broker.schedules(id) == [named]
    tree_id = id[:256]
    await far.broker.register(tree_id, channel="cli", peer="ada")
    first = await far.broker.spawn(tree_id, SpawnRequest(prompt="go"), idempotency_key=key)
    again = await far.broker.spawn(tree_id, SpawnRequest(prompt="go"), idempotency_key=key)
    assert again.id == first.id
    await far.broker.register(id[1:257], channel="cli", peer="ada", parent=tree_id)

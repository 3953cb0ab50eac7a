"""A person's data request: a session and all sessions below it, with all stored data."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from sqlalchemy import event, select

from devtools.databases import Database
from sessionsdb import SessionsDB, SpawnRequest
from sessionsdb.admin.database_copy import TABLES
from sessionsdb.admin.transcript_import import ImportResult, Line, RefusedLine, save_all
from sessionsdb.database import open_database_of
from sessionsdb.handlers import echo
from sessionsdb.operations.state import StateUpdate, merge, session_scope
from sessionsdb.schema import sessions
from tests.support.command_line import CommandLine
from tests.support.turns import answer_next, bury_next
from tests.support.work import running


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

    # import restores these sessions with all of their data.
    text = "".join(json.dumps(line) + "\n" for line in full.values())
    there = await asyncio.to_thread(
        CommandLine(database.url), "import", "-", "--namespace", "copy", input=text
    )
    assert there.ok().stdout.startswith("3 saved")
    assert await db.in_namespace("copy").store.load(child) == await db.store.load(child)


async def stored(db: SessionsDB) -> dict[str, list[Any]]:
    """All rows of the namespace, as dicts, without the columns that name it.

    An import has ``rewrites`` of its own, since the file may have been edited.
    """
    left_out = ("namespace", "write_id", "updated_at", "rewrites")
    async with db.engine.connect() as connection:
        return {
            table.name: [
                {name: value for name, value in row._mapping.items() if name not in left_out}
                for row in await connection.execute(
                    select(table)
                    .where(table.c.namespace == db.namespace)
                    .order_by(*table.primary_key.columns)
                )
            ]
            for table in TABLES
        }


async def test_a_full_export_is_restored_with_everything(
    db: SessionsDB, database: Database
) -> None:
    await db.broker.register("z-top", channel="cli", peer="ada", metadata={"customer": 12})
    child = (await db.broker.spawn("z-top", SpawnRequest(prompt="look"), idempotency_key="k")).id
    await answer_next(db, "found it")
    await db.broker.send("z-top", "from an agent", sender=child)
    await answer_next(db, "yes")
    await db.store.append("z-top", [{"role": "user", "content": "\0", "n": 10**30}], keys=["key"])
    await db.broker.fork("z-top", new_id="fork")
    await db.broker.send("fork", "waits", author="ada", metadata={"a": 1}, idempotency_key="k")
    for scope in ("peer", "namespace"):
        await db.store.update_state("z-top", {"of": scope}, scope=scope)
    # The adapter of Google ADK stores keys without a value.
    none = StateUpdate(session_scope("default", "z-top"), "z-top", {"of": "1", "none": "null"})
    await open_database_of(db).write(partial(merge, updates=[none], max_bytes=1_000), wakes=())
    lines = await export(database, "--full")
    text = "".join(json.dumps(line) + "\n" for line in lines)
    copy = db.in_namespace("copy")
    into_copy = ("import", "-", "--namespace", "copy")
    done = await asyncio.to_thread(CommandLine(database.url), *into_copy, input=text)
    assert done.ok().stdout.startswith("5 saved")
    assert await stored(copy) == await stored(db)
    assert [s.id for s in await copy.broker.list(root="z-top")] == [child, "z-top"]
    resent = await copy.broker.send(
        "fork", "waits", author="ada", metadata={"a": 1}, idempotency_key="k"
    )
    assert resent.duplicate
    again = await asyncio.to_thread(CommandLine(database.url), *into_copy, input=text)
    assert "0 saved, 5 unchanged" in again.ok().stdout


async def test_a_follower_learns_that_an_import_may_have_other_messages(
    db: SessionsDB, database: Database
) -> None:
    await db.store.append("s", [{"role": "user", "content": "secret"}])
    async with aclosing(db.broker.follow("s")) as events:
        started = await anext(events)
    [line] = await export(database, "--full")
    await db.store.delete("s")
    line["messages"][0]["content"] = "[removed]"
    run = CommandLine(database.url)
    (await asyncio.to_thread(run, "import", "-", input=json.dumps(line) + "\n")).ok()
    async with aclosing(db.broker.follow("s", after=started.cursor)) as events:
        event = await asyncio.wait_for(anext(events), 10)
    assert event.type == "rewritten"


async def test_a_child_without_its_parent_becomes_a_root(
    db: SessionsDB, database: Database
) -> None:
    await db.broker.register("top", channel="cli", peer="ada")
    child = (await db.broker.spawn("top", SpawnRequest(prompt="go"))).id
    leaf = (await db.broker.spawn(child, SpawnRequest(prompt="go"))).id
    lines = await export(database, "--session", child, "--tree", "--full")
    text = "".join(json.dumps(line) + "\n" for line in lines[::-1])
    done = await asyncio.to_thread(
        CommandLine(database.url), "import", "-", "--namespace", "copy", input=text
    )
    assert done.ok().stdout.startswith("2 saved")
    copy = db.in_namespace("copy")
    assert {s.id for s in await copy.broker.list(root=child)} == {child, leaf}
    assert (await copy.broker.get(child)).parent is None
    details = await copy.broker.get(leaf)
    assert (details.parent, details.root) == (child, child)


def full_line(id: str, parent: str | None = None, **session: Any) -> dict[str, Any]:
    """The least line that restores a session."""
    row = {"channel": "cli", "peer": "ada", "incarnation": f"of {id}", **session}
    times = dict.fromkeys(("created_at", "updated_at", "last_active"), "2026-01-01T00:00:00+00:00")
    if parent is not None:
        row["parent_id"] = parent
    stored = {"session": {**times, **row}, "mailbox": {}, "messages": []}
    return {"session_id": id, "messages": [], "inbox": [], "stored": stored}


async def restored(db: SessionsDB, *lines: dict[str, Any]) -> list[ImportResult]:
    async def numbered() -> AsyncIterator[Line]:
        for number, line in enumerate(lines, 1):
            yield Line(number, json.dumps(line).encode(), number)

    return [result async for result in save_all(db, numbered(), max_line=10_000)]


def refusals(results: list[ImportResult]) -> dict[int, str]:
    return {
        line.number: str(verdict) for line, verdict in results if isinstance(verdict, RefusedLine)
    }


async def places(db: SessionsDB) -> dict[str, tuple[str | None, str | None, int]]:
    """For each session its parent, its root and its depth."""
    columns = (sessions.c.id, sessions.c.parent_id, sessions.c.root_id, sessions.c.depth)
    where = sessions.c.namespace == db.namespace
    async with db.engine.connect() as connection:
        rows = await connection.execute(select(*columns).where(where))
        return {row.id: (row.parent_id, row.root_id, row.depth) for row in rows}


async def test_a_session_that_is_its_own_parent_is_refused(db: SessionsDB) -> None:
    told = refusals(await restored(db, full_line("a", "a"), full_line("b")))
    assert told == {1: "session a is its own parent"}
    assert await places(db) == {"b": (None, None, 0)}


async def test_an_import_makes_no_circle_of_parents(db: SessionsDB) -> None:
    lines = [full_line("a", "b"), full_line("b", "c"), full_line("c", "a"), full_line("d", "a")]
    async with asyncio.timeout(20):
        told = refusals(await restored(db, *lines))
        [(number, reason)] = told.items()
        top, parent = {1: ("a", "b"), 2: ("b", "c"), 3: ("c", "a")}[number]
        assert reason == (
            f"session {top} is restored without its parent {parent}, which is below it"
        )
        assert (await db.broker.get(top)).parent is None
        assert {one.id for one in await db.broker.list(root=top)} == {"a", "b", "c", "d"}
        assert await db.broker.end(top, subtree=True) == 4


async def test_an_import_makes_no_circle_with_sessions_that_exist(db: SessionsDB) -> None:
    """Two exports of different times: in one of them `a` is above `b`, in the other below it."""
    await restored(db, full_line("a"), full_line("b", "a"))
    told = refusals(await restored(db, full_line("a", "b"), full_line("b")))
    assert told == {1: "session a is restored without its parent b, which is below it"}
    assert await places(db) == {"a": (None, None, 0), "b": ("a", "a", 1)}


async def test_imports_at_once_make_no_circle_between_them(
    db: SessionsDB, database: Database
) -> None:
    names = [f"s-{n}" for n in range(8)]
    await restored(db, *map(full_line, names))
    async with contextlib.AsyncExitStack() as stack:
        others = [
            await stack.enter_async_context(SessionsDB(database.url))
            for _ in range(len(names) if database.kind == "postgresql" else 2)
        ]
        results = await asyncio.gather(
            *(
                restored(other, full_line(one, below))
                for other, one, below in zip(
                    itertools.cycle(others), names, [*names[1:], names[0]], strict=False
                )
            )
        )
    assert sum(len(refusals(result)) for result in results) == 1
    [top] = [id for id, (parent, _, _) in (await places(db)).items() if parent is None]
    async with asyncio.timeout(20):
        assert len(await db.broker.list(root=top)) == len(names)
    assert sorted(depth for _, _, depth in (await places(db)).values()) == list(range(len(names)))


async def test_a_child_that_lost_its_parent_is_restored_to_its_place(
    db: SessionsDB, database: Database
) -> None:
    await db.broker.register("top", channel="cli", peer="ada")
    parent = (await db.broker.spawn("top", SpawnRequest(prompt="go"))).id
    child = (await db.broker.spawn(parent, SpawnRequest(prompt="go"))).id
    leaf = (await db.broker.spawn(child, SpawnRequest(prompt="go"))).id
    before = await places(db)
    lines = await export(database, "--full")
    await db.store.delete(parent, children="detach")
    assert (await places(db))[leaf] == (child, child, 1)
    assert not refusals(await restored(db, *lines))
    assert await places(db) == before
    assert {one.id for one in await db.broker.list(root="top")} == {"top", parent, child, leaf}


async def test_a_restored_tree_has_its_place_below_another_root(
    db: SessionsDB, database: Database
) -> None:
    await db.broker.register("top", channel="cli", peer="ada")
    parent = (await db.broker.spawn("top", SpawnRequest(prompt="go"))).id
    child = (await db.broker.spawn(parent, SpawnRequest(prompt="go"))).id
    lines = await export(database, "--session", parent, "--tree", "--full")
    await db.store.delete("top", children="cascade")
    # Its parent is a root now.
    await db.broker.register(parent, channel="cli", peer="bob")
    assert not refusals(await restored(db, *lines[::-1]))
    assert (await places(db))[child] == (parent, parent, 1)
    assert (await db.store.state(child, scope="peer")).values == {}


async def test_a_restored_child_leaves_its_key_to_the_one_that_has_it(
    db: SessionsDB, database: Database
) -> None:
    await db.broker.register("top", channel="cli", peer="ada")
    await db.broker.register("other", channel="cli", peer="ada")
    first = SpawnRequest(prompt="go")
    child = (await db.broker.spawn("top", first, idempotency_key="k")).id
    apart = (await db.broker.spawn("other", first, idempotency_key="k")).id
    lines = {one["session_id"]: one for one in await export(database, "--full")}
    twin = {**lines[child], "session_id": "twin"}
    second_twin = {**lines[child], "session_id": "second twin"}
    await db.store.delete(apart)
    assert not refusals(await restored(db, twin, second_twin, lines[apart]))
    found = await places(db)
    assert found["twin"] == found["second twin"] == found[child] == ("top", "top", 1)
    assert found[apart] == ("other", "other", 1)
    # A repeated spawn finds the child that had the key before.
    assert (await db.broker.spawn("top", first, idempotency_key="k")).id == child
    assert (await db.broker.spawn("other", first, idempotency_key="k")).id == apart


async def test_a_parent_is_refused_whose_id_is_too_long_for_a_tree(db: SessionsDB) -> None:
    long = "🙂" * 300
    told = refusals(await restored(db, full_line(long), full_line("a", long), full_line("b")))
    assert list(told) == [2]
    assert "over 1024 bytes" in told[2]
    assert set(await places(db)) == {long, "b"}


async def test_a_line_with_wrong_rows_is_refused_whole(db: SessionsDB, database: Database) -> None:
    await db.store.append("chat", [{"role": "user", "content": "hello"}])
    [line] = await export(database, "--session", "chat", "--full")

    def broken(change: Any) -> str:
        copy = json.loads(json.dumps(line))
        change(copy)
        return json.dumps(copy) + "\n"

    text = "".join(
        (
            broken(lambda one: one["stored"]["session"].update(more=1)),
            broken(lambda one: one["stored"]["session"].update(channel=5)),
            broken(lambda one: one["stored"]["session"].update(channel="\ud800")),
            broken(lambda one: one["stored"]["session"].update(version=2**70)),
            broken(lambda one: one["stored"]["session"].update(created_at="yesterday")),
            broken(lambda one: one["stored"].update(mailbox=[])),
            broken(lambda one: one["stored"].update(messages=[])),
            broken(lambda one: one["stored"].update(state={"a": 1, "": 2})),
            broken(lambda one: one["stored"]["mailbox"].update(owner="x")),
            broken(lambda one: one.update(inbox=5)),
            json.dumps({"shared_state": {"scope": "session", "values": {}}}) + "\n",
            json.dumps({"shared_state": 5}) + "\n",
        )
    )
    done = await asyncio.to_thread(
        CommandLine(database.url), "import", "-", "--namespace", "copy", input=text
    )
    assert done.code == 1
    assert "0 saved, 0 unchanged, 12 refused" in done.stdout
    assert await db.in_namespace("copy").broker.list() == []


@pytest.mark.parametrize("kind", ["postgresql"])
async def test_a_session_that_another_import_restores_meanwhile_is_unchanged(
    db: SessionsDB, database: Database
) -> None:
    line = full_line("a")
    others: list[str] = []

    async def restore() -> None:
        async with SessionsDB(database.url) as other:
            assert refusals(await restored(other, line)) == {}

    def others_restore(_c: Any, _k: Any, statement: str, *_: Any) -> None:
        if "INSERT INTO sessions" in statement and not others:
            others.append(statement)
            with ThreadPoolExecutor() as thread:
                thread.submit(asyncio.run, restore()).result()

    engine = db.engine.sync_engine
    event.listen(engine, "before_cursor_execute", others_restore)
    try:
        [(_, verdict)] = await restored(db, line)
    finally:
        event.remove(engine, "before_cursor_execute", others_restore)
    assert others
    assert verdict == "unchanged"
    assert set(await places(db)) == {"a"}


@pytest.mark.parametrize("moment", ["0001-01-01T00:00:00+00:00", "9999-12-31T23:59:59.999999Z"])
async def test_a_line_with_a_time_that_not_all_hosts_can_read_is_refused(
    db: SessionsDB, moment: str
) -> None:
    told = refusals(await restored(db, full_line("a", created_at=moment), full_line("b")))
    assert told == {1: "sessions.created_at must lie in the years 1970 to 9998"}
    assert [one.id for one in await db.broker.list()] == ["b"]


async def test_a_line_that_would_stop_the_workers_of_other_sessions_is_refused(
    db: SessionsDB, database: Database
) -> None:
    await db.broker.register("chat", channel="cli", peer="ada")
    await db.broker.send("chat", {"role": "user", "content": [{"type": "text", "text": "hello"}]})
    [line] = await export(database, "--session", "chat", "--full")
    texts = ("[]", "5", '{"a":', "[" * 5_000, '{"a":' + "1" * 5_000 + "}", '{"a": NaN}')
    changes: list[tuple[str, dict[str, Any]]] = [
        *(("inbox", {name: text}) for name in ("payload", "extra") for text in texts),
        *(("session", {"metadata": text}) for text in texts),
        ("session", {"tools": "{}"}),
        *(("session", {name: 2**63 - 1}) for name in ("version", "last_seq", "rewrites")),
        *(("mailbox", {name: 2**63 - 1}) for name in ("epoch", "tail", "head")),
        ("session", {"version": -1}),
    ]
    lines = []
    for place, values in changes:
        copy = json.loads(json.dumps(line))
        (copy["inbox"][0] if place == "inbox" else copy["stored"][place]).update(values)
        lines.append(json.dumps(copy))
    there = db.in_namespace("copy")
    cli = CommandLine(database.url)
    done = await asyncio.to_thread(
        cli, "import", "-", "--namespace", "copy", input="\n".join(lines) + "\n"
    )
    assert done.code == 1
    assert f"0 saved, 0 unchanged, {len(lines)} refused" in done.stdout
    assert await there.broker.list() == []

    await asyncio.to_thread(cli, "import", "-", "--namespace", "copy", input=json.dumps(line))
    await answer_next(there, "as it was sent")
    assert (await there.store.load("chat") or [])[0]["content"] == [
        {"type": "text", "text": "hello"}
    ]


async def test_a_line_whose_mailbox_contradicts_its_rows_is_refused(
    db: SessionsDB, database: Database
) -> None:
    """A worker of all namespaces handles many mailboxes with one statement. One that breaks a
    constraint would fail it again and again."""
    later = datetime.now(UTC) + timedelta(hours=1)
    await db.broker.register("chat", channel="cli", peer="ada")
    await db.broker.send("chat", "hello")
    await db.broker.schedule("chat", "and later", at=later)
    [line] = await export(database, "--session", "chat", "--full")
    past = "2020-01-01T00:00:00+00:00"
    no_lease = {"ready_at": None}
    expired = {"owner": "w", "lease_until": past, "pending": 0, "last_taken": 1} | no_lease
    held = {"wake_at": past, "question": 1, "tail": 0, "pending": 0} | no_lease
    due = {"due_at": past, "try_at": past, "at": past}
    changes: list[dict[str, dict[str, Any]]] = [
        {"mailbox": {"pending": 0}},
        {"mailbox": expired, "inbox": {"status": "running", "attempts": 5}},
        {"mailbox": held, "inbox": {"status": "done"}},
        {"mailbox": {"tail": 0}, "schedules": due},
        {"mailbox": {"head": 5}},
        {"mailbox": {"answer": 1}},
        {"inbox": {"attempts": 2**31 - 1}},
        {"inbox": {"hops": 2**31 - 1}},
    ]
    lines = [json.loads(json.dumps(line)) for _ in changes]
    for copy, change in zip(lines, changes, strict=True):
        rows = {"inbox": copy["inbox"][0], **copy["stored"]}
        rows["schedules"] = rows["schedules"][0]
        for place, values in change.items():
            rows[place].update(values)
            for name in [name for name, value in values.items() if value is None]:
                del rows[place][name]
    lines.append({**line, "inbox": []})
    refused = refusals(await restored(db.in_namespace("copy"), *lines))
    assert list(refused) == list(range(1, len(lines) + 1))
    assert "pending is 0, 1 are unfinished" in refused[1]
    assert await db.in_namespace("copy").broker.list() == []
    assert not refusals(await restored(db.in_namespace("copy"), line))

    receipt = await db.broker.send("chat", "hello again")
    async with running(db, echo, namespaces="*", concurrency=8):
        assert (await db.broker.wait(receipt, timeout=20)).status == "done"


async def test_a_tree_needs_a_session_that_exists(db: SessionsDB, database: Database) -> None:
    cli = CommandLine(database.url)
    assert (await asyncio.to_thread(cli, "export", "--tree")).code == 2
    nobody = await asyncio.to_thread(cli, "export", "--session", "nobody", "--tree")
    nobody.failed("unknown session: nobody")

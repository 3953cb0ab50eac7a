"""Wake-ups: every verb that writes wakes the topics that its rows concern, and reads wake none."""

from __future__ import annotations

import ast
import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import sessionsdb
from devtools.databases import Database
from sessionsdb import (
    Edit,
    ListOptions,
    Question,
    Receipt,
    Reply,
    SessionBroker,
    SessionsDB,
    SessionStore,
    SpawnRequest,
    Turn,
)
from sessionsdb.admin import doctor, purge
from sessionsdb.database import open_database_of
from sessionsdb.engine.notifier import Digests, Topic
from sessionsdb.operations.retention import RetentionRules
from sessionsdb.runtime.database_access import DONE, STOP, WORK, Topics
from tests.support.turns import bury_next, claim
from tests.support.work import SOON, expire_leases

HELLO = [{"role": "user", "content": "hello"}]
PACKAGE = Path(sessionsdb.__file__).parent

Wakeups = list[Topic]


class Verb(NamedTuple):
    call: Callable[[SessionsDB], Awaitable[Any]]
    wakes: Topics = ()


def receipt(position: int) -> Receipt:
    return Receipt(session_id="chat", position=position)


async def send_and_commit(db: SessionsDB) -> None:
    async with db.engine.begin() as connection:
        await db.broker.send("chat", "hello", connection=connection)


async def spawn_and_commit(db: SessionsDB) -> None:
    async with db.engine.begin() as connection:
        await db.broker.spawn("chat", SpawnRequest(prompt="go"), connection=connection)


async def first_event(db: SessionsDB) -> None:
    async with aclosing(db.broker.follow("chat")) as events:
        await anext(events)


async def index_and_search(db: SessionsDB) -> None:
    await db.index_search()
    await db.broker.search("hello")


async def interrupt_what_runs(db: SessionsDB) -> None:
    await claim(db)
    await db.broker.interrupt("chat")


async def send_by_interrupting(db: SessionsDB) -> None:
    await claim(db)
    await db.broker.send("chat", "hello", when_busy="interrupt")


async def ask(turn: Turn) -> Reply:
    return Reply("Well?", ask=Question(prompt="Well?"))


async def interrupt_what_waits(db: SessionsDB) -> None:
    await db.broker.interrupt("asking")


async def answer_what_is_asked(db: SessionsDB) -> None:
    await db.broker.answer("asking:1", "yes")


async def run(db: SessionsDB, handler: Any, **options: Any) -> None:
    await db.worker(handler, retry=SOON, **options).run_until_idle()


async def reply(turn: Turn) -> str:
    return "yes"


async def stage(turn: Turn) -> None:
    if turn.session.id == "chat":
        turn.send("waiter", "staged")


async def fail_once(turn: Turn) -> None:
    if turn.attempt == 1:
        raise ValueError


async def fail(turn: Turn) -> None:
    raise ValueError


async def append_and_replace(db: SessionsDB) -> None:
    await db.store.append("chat", HELLO)
    await db.store.replace("chat", 1, {"role": "user", "content": "other"})


def all_finished() -> RetentionRules:
    return RetentionRules(finished_before=datetime.now(UTC) + timedelta(days=1), dead=True)


VERBS: dict[str, Verb] = {
    # The store.
    "load": Verb(lambda db: db.store.load("chat")),
    "version": Verb(lambda db: db.store.version("chat")),
    "store.list": Verb(lambda db: db.store.list()),
    "list_paginated": Verb(lambda db: db.store.list_paginated(ListOptions())),
    "save": Verb(lambda db: db.store.save("chat", HELLO)),
    "append": Verb(lambda db: db.store.append("chat", HELLO)),
    "append at version": Verb(lambda db: db.store.append("new", HELLO, expected_version=0)),
    "append with a key": Verb(lambda db: db.store.append("chat", HELLO, keys=["k"])),
    "entries": Verb(lambda db: db.store.entries("chat")),
    "find": Verb(lambda db: db.store.find("k")),
    "edit": Verb(lambda db: db.store.edit("chat", Edit(keep_through=0, append=HELLO))),
    "pop": Verb(lambda db: db.store.pop("chat")),
    "truncate": Verb(lambda db: db.store.truncate("chat", keep_through=0)),
    "replace": Verb(append_and_replace),
    "delete": Verb(lambda db: db.store.delete("chat"), (DONE, STOP)),
    "state": Verb(lambda db: db.store.state("chat")),
    "update_state": Verb(lambda db: db.store.update_state("chat", {"a": 1})),
    # The broker.
    "register": Verb(lambda db: db.broker.register("other", channel="c", peer="p")),
    "get": Verb(lambda db: db.broker.get("chat")),
    "update": Verb(lambda db: db.broker.update("chat", model="m")),
    "list": Verb(lambda db: db.broker.list()),
    "history": Verb(lambda db: db.broker.history("chat")),
    "search": Verb(index_and_search),
    "index_search": Verb(lambda db: db.index_search()),
    "follow": Verb(first_event),
    "send": Verb(lambda db: db.broker.send("chat", "hello"), (WORK,)),
    "send in a transaction": Verb(send_and_commit, (WORK,)),
    "spawn": Verb(lambda db: db.broker.spawn("chat", SpawnRequest(prompt="go")), (WORK,)),
    "spawn in a transaction": Verb(spawn_and_commit, (WORK,)),
    "outcome": Verb(lambda db: db.broker.outcome(receipt(1))),
    "wait": Verb(lambda db: db.broker.wait(receipt(2), timeout=0.01)),
    "wait as a session": Verb(lambda db: db.broker.wait(receipt(2), 0.01, waiter="waiter")),
    "end": Verb(lambda db: db.broker.end("chat"), (DONE, STOP)),
    "reopen": Verb(lambda db: db.broker.reopen("chat")),
    "cancel": Verb(lambda db: db.broker.cancel(receipt(2)), (WORK, DONE, STOP)),
    "cancel finds it final": Verb(lambda db: db.broker.cancel(receipt(1))),
    "interrupt": Verb(interrupt_what_runs, (WORK, DONE, STOP)),
    "interrupt finds nothing": Verb(lambda db: db.broker.interrupt("chat")),
    "send by interrupting": Verb(send_by_interrupting, (WORK, DONE, STOP)),
    "send that would interrupt": Verb(
        lambda db: db.broker.send("chat", "hello", when_busy="interrupt"), (WORK,)
    ),
    "interrupt withdraws": Verb(interrupt_what_waits, (WORK,)),
    "questions": Verb(lambda db: db.broker.questions()),
    "answer": Verb(answer_what_is_asked, (WORK,)),
    "fork": Verb(lambda db: db.broker.fork("chat")),
    "inbox": Verb(lambda db: db.broker.inbox("chat")),
    "dead_letters": Verb(lambda db: db.broker.dead_letters()),
    "requeue": Verb(lambda db: db.broker.requeue(receipt(1)), (WORK,)),
    "requeue_all": Verb(lambda db: db.broker.requeue_all(), (WORK,)),
    "schedule": Verb(lambda db: db.broker.schedule("chat", "tick", at=datetime.now(UTC)), (WORK,)),
    "schedules": Verb(lambda db: db.broker.schedules()),
    "unschedule": Verb(lambda db: db.broker.unschedule("no such")),
    "requeue_all finds nothing": Verb(lambda db: db.broker.requeue_all(error="no such")),
    # The worker. A message waits in "chat".
    "worker commits": Verb(lambda db: run(db, reply), (DONE,)),
    "worker commits a staged send": Verb(lambda db: run(db, stage), (WORK, DONE)),
    "worker fails an attempt": Verb(lambda db: run(db, fail_once), (WORK, DONE)),
    "worker buries a message": Verb(lambda db: run(db, fail, max_attempts=1), (WORK, DONE)),
    # Administration.
    "doctor finds nothing": Verb(lambda db: doctor.examine(db, fix=True)),
    "purge": Verb(lambda db: purge.purge(db, all_finished()), (DONE,)),
    "purge finds nothing": Verb(lambda db: purge.purge(db, RetentionRules())),
}


@pytest.fixture
async def wakeups(db: SessionsDB, monkeypatch: pytest.MonkeyPatch) -> Wakeups:
    """The topics that were woken, in order. Message 1 of "chat" is dead, message 2 waits."""
    await db.broker.register("chat", channel="test", peer="tester")
    await db.broker.register("waiter", channel="test", peer="tester")
    await db.broker.register("asking", channel="test", peer="tester")
    await db.broker.send("asking", "ask")
    await run(db, ask)
    await db.broker.send("chat", "dead")
    await bury_next(db)
    await db.broker.send("chat", "waits")
    topics: Wakeups = []
    notifier = open_database_of(db).notifier
    notify = notifier.notify

    def recorded(topic: Topic, digests: Digests | None = None) -> None:
        topics.append(topic)
        notify(topic, digests)

    monkeypatch.setattr(notifier, "notify", recorded)
    return topics


@pytest.mark.parametrize("name", VERBS)
async def test_a_verb_wakes_its_topics_and_no_others(
    db: SessionsDB, wakeups: Wakeups, name: str
) -> None:
    verb = VERBS[name]
    await verb.call(db)
    if "transaction" in name:
        await woken(db, wakeups)
    assert set(wakeups) == set(verb.wakes)


async def test_a_worker_whose_slots_are_full_again_tells_the_others(
    db: SessionsDB, wakeups: Wakeups
) -> None:
    await db.broker.send("chat", "behind the one that waits")
    wakeups.clear()
    assert await db.worker(reply, concurrency=1).run_until_idle() == 2
    # The claim behind the first turn took the only slot. The one behind the second had it free.
    assert sorted(wakeups) == [DONE, DONE, WORK]


async def test_a_worker_that_stops_tells_the_others_what_its_last_turn_left(
    db: SessionsDB, wakeups: Wakeups
) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow(turn: Turn) -> str:
        begun.set()
        await go_on.wait()
        return "yes"

    worker = db.worker(slow)
    running = asyncio.create_task(worker.run())
    await asyncio.wait_for(begun.wait(), 60)
    stopping = asyncio.create_task(worker.stop(grace=60))
    await asyncio.sleep(0)  # it claims no more
    go_on.set()
    await stopping
    await running
    assert set(wakeups) == {WORK, DONE}


async def woken(db: SessionsDB, wakeups: Wakeups) -> None:
    """Wait for the wake-up that follows a caller's own commit."""
    async with open_database_of(db).notifier.subscribe(WORK) as signal:
        while not wakeups:
            await signal.wait(1.0)


async def test_a_worker_that_takes_back_a_dead_message_wakes_its_callers(
    db: SessionsDB, database: Database, wakeups: Wakeups
) -> None:
    await claim(db)
    await expire_leases(database)
    assert await db.worker(reply, max_attempts=1).run_until_idle() == 0
    assert wakeups == [DONE]


async def test_doctor_wakes_all_after_a_repair(
    db: SessionsDB, database: Database, wakeups: Wakeups
) -> None:
    await database.query("UPDATE mailboxes SET pending = 7 WHERE session_id = 'chat'")
    await doctor.examine(db, fix=True)
    assert set(wakeups) == {WORK, DONE, STOP}


def test_the_table_names_every_verb() -> None:
    named = {name.split()[0].removeprefix("store.") for name in VERBS}
    for protocol in (SessionStore, SessionBroker):
        public = {name for name in vars(protocol) if not name.startswith("_")}
        assert public <= named


def test_no_room_above_the_runtime_writes_without_topics() -> None:
    """A write past ``DatabaseAccess`` could forget to wake its topics."""
    assert list(past_the_declaration()) == []


def past_the_declaration() -> Iterator[str]:
    for path in sorted(PACKAGE.rglob("*.py")):
        room = str(path.relative_to(PACKAGE))
        if room.startswith(("engine/", "runtime/")):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in ("runner", "notify"):
                yield f"{room}:{node.lineno}: {ast.unparse(node)}"

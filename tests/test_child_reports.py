"""report="each": what came of a child is sent into the inbox of its parent, once."""

from __future__ import annotations

import asyncio
import random
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest

from devtools.databases import Database
from sessionsdb import (
    IdempotencyConflict,
    InvalidArgument,
    Limits,
    Outcome,
    Question,
    Receipt,
    Reply,
    SessionId,
    SessionsDB,
    SpawnRequest,
    Turn,
)
from sessionsdb.admin.purge import purge
from sessionsdb.database import open_database_of
from sessionsdb.operations import expiry
from sessionsdb.operations.retention import RetentionRules
from tests.support.hops import ours
from tests.support.proxy import proxy_to
from tests.support.turns import claim
from tests.support.waiting import until
from tests.support.work import SOON, expire_leases, running

TASK = SpawnRequest(prompt="count the stars", report="each")


@pytest.fixture(autouse=True)
async def _parent(db: SessionsDB) -> None:
    await db.broker.register("parent", channel="cli", peer="ada")


async def spawn(db: SessionsDB, parent: str = "parent") -> SessionId:
    return (await db.broker.spawn(parent, TASK)).id


async def work(db: SessionsDB, handler: Any, **options: Any) -> int:
    return await db.worker(handler, retry=SOON, **options).run_until_idle()


async def reports(db: SessionsDB, parent: str = "parent") -> list[Outcome]:
    return await db.broker.inbox(parent)


async def told(db: SessionsDB, database: Database, parent: str = "parent") -> list[Any]:
    """The reports to a parent in the order of its inbox: sender, text and extra."""
    return await database.query(
        f"SELECT sender, content, extra FROM inbox WHERE session_id = '{parent}' ORDER BY position"
    )


async def of_children(turn: Turn) -> str | None:
    """A child answers. A parent takes what it is told without a reply."""
    return f"done: {turn.text}" if turn.session.parent else None


async def fails(turn: Turn) -> str | None:
    if turn.session.parent is None:
        return None
    raise ValueError("no telescope")


# ---- the three events ----------------------------------------------------------------------------


async def test_the_first_reply_is_sent_to_the_parent(db: SessionsDB) -> None:
    seen: list[Any] = []

    async def handler(turn: Turn) -> str | None:
        if turn.session.id == "parent":
            seen.extend(turn.messages)
        return await of_children(turn)

    child = await spawn(db)
    await work(db, handler)
    [message] = seen
    assert message.sender == child
    assert (message.role, message.content) == ("user", "done: count the stars")
    assert message.metadata == {"report": "reply"}
    assert message.author is None
    [entry] = await db.store.entries("parent")
    assert (entry.sender, entry.metadata) == (child, {"report": "reply"})


async def test_later_replies_are_not_sent(db: SessionsDB, database: Database) -> None:
    child = await spawn(db)
    await work(db, of_children)
    await db.broker.send(child, "and the planets")
    await work(db, of_children)
    await db.broker.end(child)
    assert len(await told(db, database)) == 1


async def test_a_child_without_report_tells_nothing(db: SessionsDB, database: Database) -> None:
    child = (await db.broker.spawn("parent", SpawnRequest(prompt="count"))).id
    await work(db, of_children)
    await db.broker.end(child)
    assert await told(db, database) == []


async def test_the_first_reply_may_be_a_later_turn(db: SessionsDB, database: Database) -> None:
    async def handler(turn: Turn) -> Any:
        tools_only = [{"role": "tool", "content": "42"}]
        return tools_only if turn.text == "count the stars" else await of_children(turn)

    child = await spawn(db)
    await work(db, handler)
    assert await told(db, database) == []
    await db.broker.send(child, "well?")
    await work(db, handler)
    assert await told(db, database) == [(child, "done: well?", '{"metadata":{"report":"reply"}}')]


async def test_the_reply_is_the_one_of_the_outcome(db: SessionsDB, database: Database) -> None:
    async def handler(turn: Turn) -> Any:
        if turn.session.parent is None:
            return None
        thought = {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm"}]}
        first = {"role": "assistant", "content": "let me see"}
        return Reply([first, {"role": "assistant", "content": "42"}, thought])

    child = await spawn(db)
    await work(db, handler)
    [(_, text, _)] = await told(db, database)
    outcome = await db.broker.outcome(Receipt(session_id=child, position=1))
    assert outcome.reply is not None
    assert text == outcome.reply.content == "42"


async def test_a_reply_behind_a_message_that_joined_is_found(
    db: SessionsDB, database: Database
) -> None:
    async def handler(turn: Turn) -> Any:
        if turn.session.parent is None:
            return None
        [more] = await turn.take_incoming()
        return [{"role": "assistant", "content": "one"}, more]

    child = await spawn(db)
    await db.broker.send(child, {"role": "assistant", "content": "words of a sender"})
    await work(db, handler)
    assert [text for _, text, _ in await told(db, database)] == ["one"]


async def test_a_turn_that_asks_does_not_report_and_the_answered_one_does(
    db: SessionsDB, database: Database
) -> None:
    async def handler(turn: Turn) -> Any:
        if turn.session.parent is None:
            return None
        if turn.answer is None:
            return Reply("let me ask", ask=Question(prompt="which stars?"))
        return f"counted: {turn.answer.message}"

    child = await spawn(db)
    await work(db, handler)
    assert await told(db, database) == []
    [question] = await db.broker.questions(child)
    await db.broker.answer(question.id, "the bright ones")
    await work(db, handler)
    [(sender, text, _)] = await told(db, database)
    assert sender == child
    assert text.startswith("counted: ")


async def test_a_report_is_no_answer_to_a_question_of_the_parent(
    db: SessionsDB, database: Database
) -> None:
    async def handler(turn: Turn) -> Any:
        if turn.text == "go":
            return Reply("?", ask=Question(prompt="sure?", accept_message=True))
        return await of_children(turn)

    await db.broker.send("parent", "go")
    await work(db, handler)
    await spawn(db)
    await work(db, handler)
    assert len(await db.broker.questions("parent")) == 1
    assert [text for _, text, _ in await told(db, database)] == ["go", "done: count the stars"]


async def test_an_empty_reply_says_so(db: SessionsDB, database: Database) -> None:
    async def handler(turn: Turn) -> str | None:
        return "" if turn.session.parent else None

    await spawn(db)
    await work(db, handler)
    assert [text for _, text, _ in await told(db, database)] == ["(The reply is empty.)"]


async def test_a_streamed_reply_is_reported(db: SessionsDB, database: Database) -> None:
    async def handler(turn: Turn) -> str | None:
        if turn.session.parent is None:
            return None
        turn.stream("forty")
        return "forty-two"

    await spawn(db)
    await work(db, handler)
    assert [text for _, text, _ in await told(db, database)] == ["forty-two"]


async def test_the_death_of_the_prompt_is_told(db: SessionsDB, database: Database) -> None:
    child = await spawn(db)
    await work(db, fails, max_attempts=2)
    [(sender, text, extra)] = await told(db, database)
    assert sender == child
    assert text == (
        f"Session {child} gave no reply: its task failed in the last attempt. "
        "ValueError: no telescope"
    )
    assert extra == '{"author":"sessionsdb","metadata":{"report":"dead"}}'


async def test_a_failed_attempt_is_not_told(db: SessionsDB, database: Database) -> None:
    async def handler(turn: Turn) -> str | None:
        if turn.session.parent and turn.attempt == 1:
            raise ValueError("not yet")
        return await of_children(turn)

    await spawn(db)
    await work(db, handler)
    assert [text for _, text, _ in await told(db, database)] == ["done: count the stars"]


async def test_the_death_of_a_later_message_is_not_told(db: SessionsDB, database: Database) -> None:
    async def handler(turn: Turn) -> str | None:
        if turn.text == "again":
            raise ValueError("no")
        return None

    child = await spawn(db)
    await work(db, handler)
    await db.broker.send(child, "again")
    await work(db, handler, max_attempts=1)
    assert await told(db, database) == []


async def test_a_dead_prompt_that_is_requeued_is_told_once(
    db: SessionsDB, database: Database
) -> None:
    child = await spawn(db)
    await work(db, fails, max_attempts=1)
    await db.broker.requeue(Receipt(session_id=child, position=1))
    await work(db, of_children)
    outcome = await db.broker.outcome(Receipt(session_id=child, position=1))
    assert outcome.status == "done"
    assert len(await told(db, database)) == 1


async def test_the_end_is_told(db: SessionsDB, database: Database) -> None:
    child = await spawn(db)
    await db.broker.end(child, reason="too late")
    [(sender, text, extra)] = await told(db, database)
    assert sender == child
    assert text == f"Session {child} was ended before it gave a reply. Reason: too late"
    assert extra == '{"author":"sessionsdb","metadata":{"report":"ended"}}'


async def test_the_end_of_a_subtree_tells_the_parent_above_it_alone(
    db: SessionsDB, database: Database
) -> None:
    child = await spawn(db)
    grandchild = await spawn(db, child)
    assert await db.broker.end(child, subtree=True) == 2
    assert [sender for sender, _, _ in await told(db, database)] == [child]
    await db.broker.reopen(child)
    await db.broker.reopen(grandchild)
    await db.broker.send(grandchild, "count the moons")
    await work(db, of_children)
    dropped = [sender for sender, _, _ in await told(db, database, child) if sender == grandchild]
    assert dropped == []


async def test_an_end_while_the_turn_runs_is_told_once(db: SessionsDB, database: Database) -> None:
    started, go_on = asyncio.Event(), asyncio.Event()

    async def handler(turn: Turn) -> str | None:
        if turn.session.parent:
            started.set()
            await go_on.wait()
        return await of_children(turn)

    child = await spawn(db)
    async with running(db, handler):
        await started.wait()
        await db.broker.end(child)
        go_on.set()
        await until(lambda: told(db, database))
    assert [extra for _, _, extra in await told(db, database)] == [
        '{"author":"sessionsdb","metadata":{"report":"ended"}}'
    ]


async def test_a_deletion_is_told_as_an_end(db: SessionsDB, database: Database) -> None:
    child = await spawn(db)
    await db.store.delete(child)
    [(sender, text, _)] = await told(db, database)
    assert sender == child
    assert text.endswith("Reason: deleted")


async def test_a_cancelled_prompt_is_not_told_and_the_next_reply_is(
    db: SessionsDB, database: Database
) -> None:
    child = await spawn(db)
    await db.broker.cancel(Receipt(session_id=child, position=1))
    assert await told(db, database) == []
    await db.broker.send(child, "count the moons")
    await work(db, of_children)
    assert [text for _, text, _ in await told(db, database)] == ["done: count the moons"]


# ---- a report never fails its event --------------------------------------------------------------


async def test_a_report_passes_the_limit_of_a_full_inbox(
    db: SessionsDB, database: Database
) -> None:
    async with SessionsDB(database.url, limits=Limits(pending=1)) as small:
        await small.broker.send("parent", "already full")
        for _ in range(3):
            await small.broker.spawn("parent", TASK)
        assert await work(small, _only_children, max_attempts=1) >= 3
    waiting = [one for one in await reports(db) if one.message and one.message.sender]
    assert len(waiting) == 3


async def _only_children(turn: Turn) -> str:
    if turn.session.parent is None:
        raise ValueError("the parent does not work")
    return "done"


async def test_a_report_to_an_ended_parent_is_dropped(db: SessionsDB, database: Database) -> None:
    child = await spawn(db)
    await db.broker.end("parent")
    await work(db, of_children)
    outcome = await db.broker.outcome(Receipt(session_id=child, position=1))
    assert outcome.status == "done"
    assert await told(db, database) == []
    await db.broker.reopen("parent")
    await db.broker.send(child, "again")
    await work(db, of_children)
    assert await told(db, database) == []


@pytest.mark.parametrize("event", ["reply", "dead", "ended"])
async def test_a_report_to_a_deleted_parent_is_dropped(db: SessionsDB, event: str) -> None:
    child = await spawn(db)
    await db.store.delete("parent")
    if event == "ended":
        assert await db.broker.end(child) == 1
        return

    async def handler(turn: Turn) -> str:
        if event == "dead":
            raise ValueError("no")
        return "done"

    await work(db, handler, max_attempts=1)
    outcome = await db.broker.outcome(Receipt(session_id=child, position=1))
    assert outcome.status == ("done" if event == "reply" else "dead")


async def test_a_report_has_the_hops_of_the_prompt(db: SessionsDB, database: Database) -> None:
    async def handler(turn: Turn) -> str | None:
        if turn.session.id == "parent" and turn.text == "go":
            turn.spawn(TASK)
            return None
        return await of_children(turn)

    await db.broker.send("parent", "go")
    await work(db, handler)
    [prompt] = await database.query(
        "SELECT hops, origin FROM inbox WHERE sender = 'parent' AND position = 1"
    )
    [report] = await database.query(
        "SELECT hops, origin FROM inbox WHERE session_id = 'parent' AND position = 2"
    )
    assert prompt == report == (1, "parent")


async def test_children_of_reports_end_at_the_limit_of_hops(db: SessionsDB) -> None:
    async def handler(turn: Turn) -> str | None:
        if turn.session.id == "parent":
            turn.spawn(TASK)
            return None
        return "done"

    await db.broker.send("parent", "go")
    await work(db, handler, max_attempts=1)
    [last] = await db.broker.dead_letters("parent")
    assert "HopLimitReached" in str(last.error)


async def test_a_report_keeps_its_hops_when_the_prompt_was_purged(
    db: SessionsDB, database: Database
) -> None:
    async def handler(turn: Turn) -> str | None:
        if turn.text == "go":
            turn.spawn(TASK)
        return "done" if turn.text == "well?" else None

    await db.broker.send("parent", "go")
    await work(db, handler)
    [child] = await db.broker.list(parent="parent")
    await purge(db, RetentionRules(finished_before=datetime.now(UTC)))
    assert await db.broker.inbox(child.id) == []
    await db.broker.send(child.id, "well?")
    await work(db, handler)
    [report] = await database.query(
        "SELECT hops, origin, content FROM inbox WHERE session_id = 'parent'"
    )
    assert report == (1, "parent", "done")


# ---- the request ---------------------------------------------------------------------------------


async def test_report_and_wait_for_first_reply_exclude_each_other(db: SessionsDB) -> None:
    request = SpawnRequest(prompt="count", report="each", wait_for_first_reply=True)
    with pytest.raises(InvalidArgument, match="wait_for_first_reply"):
        await db.broker.spawn("parent", request)
    assert await db.broker.list(parent="parent") == []


async def test_report_is_part_of_the_digest_of_a_key(db: SessionsDB) -> None:
    child = (await db.broker.spawn("parent", TASK, idempotency_key="k")).id
    assert (await db.broker.spawn("parent", TASK, idempotency_key="k")).id == child
    silent = TASK.model_copy(update={"report": "none"})
    with pytest.raises(IdempotencyConflict):
        await db.broker.spawn("parent", silent, idempotency_key="k")


async def test_a_fork_does_not_report(db: SessionsDB, database: Database) -> None:
    child = await spawn(db)
    fork = await db.broker.fork(child)
    await db.broker.send(fork.id, "count the moons")
    await work(db, of_children)
    assert [sender for sender, _, _ in await told(db, database)] == [child]


# ---- workers that die, and locks -----------------------------------------------------------------


async def test_a_hundred_expired_leases_in_one_reap_are_all_told(
    db: SessionsDB, database: Database
) -> None:
    """A prompt that kills its worker is dead after its last attempt."""
    async with SessionsDB(database.url, limits=Limits(children=200)) as wide:
        spawns = [wide.broker.spawn("parent", TASK) for _ in range(100)]
        children = {one.id for one in await asyncio.gather(*spawns)}
        silent = SpawnRequest(prompt="count")
        others = [(await wide.broker.spawn("parent", silent)).id for _ in range(10)]
    assert len(await claim(db, slots=110)) == 110
    await expire_leases(database)
    await work(db, of_children, max_attempts=1, batch=100)
    assert {sender for sender, _, _ in await told(db, database)} == children
    assert len(await told(db, database)) == 100
    dead = {one.receipt.session_id for one in await db.broker.dead_letters(limit=200)}
    assert dead == children | set(others)
    [(_, text, _), *_] = await told(db, database)
    assert "LeaseExpired" in text


async def test_a_reap_leaves_a_reporting_child_to_a_transaction_of_its_own(
    db: SessionsDB, database: Database
) -> None:
    child = await spawn(db)
    await claim(db)
    await expire_leases(database)
    write = open_database_of(db).write
    key = ("default", child)
    reaped = await write(partial(expiry.reap, namespaces=None, max_attempts=1), wakes=())
    assert reaped == (0, 0, (key,))
    one = partial(expiry.reap_reporting, key=key, max_attempts=1)
    assert await write(one, wakes=()) == (1, 1, ())
    assert await write(one, wakes=()) == (0, 0, ()), "another worker was faster"
    assert len(await told(db, database)) == 1


async def test_a_lease_that_was_renewed_is_not_reaped(db: SessionsDB, database: Database) -> None:
    child = await spawn(db)
    await claim(db)
    one = partial(expiry.reap_reporting, key=("default", child), max_attempts=1)
    assert await open_database_of(db).write(one, wakes=()) == (0, 0, ())
    assert await told(db, database) == []


async def test_parents_and_children_that_write_to_each_other_do_not_deadlock(
    db: SessionsDB, database: Database
) -> None:
    """Ids are chosen so that parents stand before and behind their children in key order."""
    deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    parents = ["a", "parent", "zz"]
    for name in ("a", "zz"):
        await db.broker.register(name, channel="cli", peer="ada")
    seed = random.Random(7)

    async def handler(turn: Turn) -> str | None:
        if turn.session.parent:
            turn.send(seed.choice(parents), "beside the report")
            if turn.text == "count the stars" and seed.random() < 0.3:
                raise ValueError("no")
            return "done"
        return None

    async def all_told() -> bool:
        rows = await database.query("SELECT count(*) FROM sessions WHERE report = 'each'")
        return rows == [(0,)]

    options = {"max_attempts": 1, "concurrency": 8}
    async with running(db, handler, **options), running(db, handler, **options):
        children = [await spawn(db, parent) for _ in range(10) for parent in parents]
        await asyncio.gather(*(db.broker.end(child) for child in children[::5]))
        await until(all_told, within=120)
    counts = await database.query(
        "SELECT sender, count(*) FROM inbox WHERE extra LIKE '%report%' GROUP BY sender"
    )
    assert sorted(counts) == sorted((child, 1) for child in children)
    if database.kind == "postgresql":
        assert await database.query(deadlocks) == [(0,)]


async def test_a_parent_fans_out_to_as_many_children_as_there_are_slots(db: SessionsDB) -> None:
    """A parent that waited for them would hold a slot of the eight, and eight such parents all."""
    gathered: dict[str, list[str]] = {}

    async def handler(turn: Turn) -> str | None:
        if turn.session.parent:
            return f"{turn.text} is done"
        if turn.senders[0] is None:
            for number in range(8):
                turn.spawn(SpawnRequest(prompt=f"part {number}", report="each"))
            return None
        parts = gathered.setdefault(turn.session.id, [])
        parts.append(turn.text)
        return "all parts are done" if len(parts) == 8 else None

    receipts = []
    for number in range(8):
        await db.broker.register(f"p{number}", channel="cli", peer="ada")
        receipts.append(await db.broker.send(f"p{number}", "go"))
    await work(db, handler, concurrency=8)
    for receipt in receipts:
        [*_, last] = await db.broker.history(receipt.session_id)
        assert last.content == "all parts are done"
        parts = gathered[receipt.session_id]
        assert sorted(parts) == [f"part {n} is done" for n in range(8)]


@pytest.mark.parametrize("kind", ["postgresql"])
async def test_only_a_turn_that_reports_pays_for_it(database: Database) -> None:
    """A child without a report commits by the statements of any other session."""

    async def statements_of(id: str) -> set[str]:
        proxy.executed.clear()
        await db.broker.send(id, "hello")
        assert await db.worker(answer).run_until_idle() == 1
        # Without the statements that set up a connection: how many there are depends on the load.
        return {one for one in ours(proxy.executed) if not any(map(one.count, setting_up))}

    setting_up = ("set_config(", "pg_stat_get_activity(")

    async def answer(_turn: Turn) -> str:
        return "done"

    async with proxy_to(database) as proxy, SessionsDB(proxy.url) as db:
        silent = (await db.broker.spawn("parent", SpawnRequest(prompt="count"))).id
        await db.worker(answer).run_until_idle()
        await statements_of("parent")  # the driver looks types up at their first use
        alone, child = await statements_of("parent"), await statements_of(silent)
        assert alone == child
        assert not any("report" in one.replace("s.report", "") for one in alone)
        await spawn(db)
        proxy.executed.clear()
        await db.worker(answer).run_until_idle()
        assert any("UPDATE sessions SET report" in one for one in ours(proxy.executed))

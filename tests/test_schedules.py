"""Schedules: messages that workers send later, exactly once a due time."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from devtools.databases import Database
from sessionsdb import (
    InvalidArgument,
    InvalidMessage,
    Limits,
    Question,
    Reply,
    Schedule,
    SessionEnded,
    SessionsDB,
    Turn,
    UnknownSession,
)
from sessionsdb.operations import firing
from sessionsdb.types import CatchUp
from tests.support.schedules import fire, let_pass, sent

NOW = datetime.now(UTC)
TOMORROW = NOW + timedelta(days=1)


async def answer(turn: Turn) -> str:
    return f"re {turn.text}"


@pytest.fixture
async def db(db: SessionsDB) -> SessionsDB:
    await db.broker.register("chat", channel="test", peer="somebody")
    return db


# ---- schedule, schedules, unschedule -----------------------------------------------------------


async def test_a_schedule_is_returned_as_it_is_stored(db: SessionsDB) -> None:
    at = TOMORROW.astimezone(timezone(timedelta(hours=5)))
    once = await db.broker.schedule(
        "chat", "later", at=at, name="reminder", author="alice", metadata={"n": 1}
    )
    message = {"role": "system", "content": [{"type": "text", "text": "again"}]}
    often = await db.broker.schedule(
        "chat", message, cron=" 0  9 * * mon-fri ", tz="Europe/Berlin", catch_up="all"
    )
    assert (once.session_id, once.message) == ("chat", {"role": "user", "content": "later"})
    assert (once.at, once.cron, once.tz, once.due_at) == (TOMORROW, None, "UTC", TOMORROW)
    assert (once.name, once.author, once.metadata) == ("reminder", "alice", {"n": 1})
    assert once.catch_up == "one"
    assert (often.message, often.cron, often.tz) == (message, "0 9 * * mon-fri", "Europe/Berlin")
    assert (often.name, often.author, often.catch_up) == (None, None, "all")
    assert often.due_at > NOW
    assert often.last_fired_at is None
    assert often.refused_at is None
    found = await db.broker.schedules("chat")
    assert found == sorted([once, often], key=lambda one: one.due_at)
    assert found == await db.broker.schedules()
    assert all(type(one) is Schedule for one in found)


async def test_a_schedule_is_removed_once(db: SessionsDB) -> None:
    made = await db.broker.schedule("chat", "later", at=TOMORROW)
    assert await db.broker.unschedule(made.id) is True
    assert await db.broker.unschedule(made.id) is False
    assert await db.broker.unschedule("no such") is False
    assert await db.broker.schedules() == []


async def test_a_name_replaces_and_a_repetition_changes_nothing(
    db: SessionsDB, database: Database
) -> None:
    first = await db.broker.schedule("chat", "nightly", cron="0 3 * * *", name="night")
    await let_pass(database, hours=1)  # the due time is another than a new schedule would have
    [before] = await db.broker.schedules()
    assert before.due_at < first.due_at
    again = await db.broker.schedule("chat", "nightly", cron="0  3 * * *", name="night")
    assert again == before
    other_text = await db.broker.schedule("chat", "new text", cron="0 3 * * *", name="night")
    assert (other_text.id, other_text.due_at) == (first.id, before.due_at)
    assert other_text.message["content"] == "new text"
    at_other_time = await db.broker.schedule("chat", "new text", at=TOMORROW, name="night")
    assert (at_other_time.id, at_other_time.due_at) == (first.id, TOMORROW)
    assert (at_other_time.cron, at_other_time.at) == (None, TOMORROW)
    assert len(await db.broker.schedules()) == 1


async def test_a_name_belongs_to_one_session(db: SessionsDB) -> None:
    await db.broker.register("other", channel="test", peer="somebody")
    await db.broker.schedule("chat", "a", at=TOMORROW, name="same")
    await db.broker.schedule("other", "b", at=TOMORROW, name="same")
    await db.broker.schedule("chat", "no name", at=TOMORROW)
    await db.broker.schedule("chat", "no name", at=TOMORROW)
    assert len(await db.broker.schedules("chat")) == 3
    assert len(await db.broker.schedules()) == 4


async def test_a_schedule_belongs_to_its_namespace(db: SessionsDB) -> None:
    made = await db.broker.schedule("chat", "a", at=TOMORROW)
    other = db.in_namespace("other")
    assert await other.broker.schedules() == []
    assert await other.broker.unschedule(made.id) is False
    with pytest.raises(UnknownSession):
        await other.broker.schedules("chat")
    with pytest.raises(UnknownSession):
        await other.broker.schedule("chat", "b", at=TOMORROW)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({}, "exactly one of at and cron"),
    ({"at": TOMORROW, "cron": "* * * * *"}, "exactly one of at and cron"),
    ({"at": datetime.fromisoformat("2030-01-01")}, "must have a time zone"),
    ({"at": "tomorrow"}, "must be a datetime"),
    ({"at": datetime.min.replace(tzinfo=UTC)}, "at must lie in the years 1970 to 9998"),
    ({"at": datetime.max.replace(tzinfo=UTC)}, "at must lie in the years 1970 to 9998"),
    ({"cron": "* * * *"}, "has 4 fields"),
    ({"cron": "* * * * * *"}, "has 6 fields"),
    ({"cron": "0 25 * * *"}, "Bad hour"),
    ({"cron": "0 0 31 2 *"}, "Bad day-of-month"),
    ({"cron": "0," * 200 + "0 * * * *"}, "the limit is 256"),
    ({"cron": "* * * * *", "tz": "Mars/Olympus"}, "no time zone"),
    ({"at": TOMORROW, "tz": "Mars/Olympus"}, "no time zone"),
    ({"cron": "* * * * *", "tz": "/etc/localtime"}, "no time zone"),
    ({"at": TOMORROW, "name": "n" * 65}, "the limit is 64"),
    ({"at": TOMORROW, "name": ""}, "must not be empty"),
    ({"at": TOMORROW, "catch_up": "some"}, 'must be "one" or "all"'),
    ({"at": TOMORROW, "metadata": {"a": b""}}, "metadata is not JSON"),
]


async def test_wrong_arguments_are_refused(db: SessionsDB) -> None:
    for arguments, reason in WRONG:
        with pytest.raises(InvalidArgument, match=reason):
            await db.broker.schedule("chat", "x", **arguments)
    assert await db.broker.schedules() == []


async def test_an_empty_message_and_unknown_or_ended_sessions_are_refused(db: SessionsDB) -> None:
    with pytest.raises(InvalidMessage):
        await db.broker.schedule("chat", "", at=TOMORROW)
    with pytest.raises(UnknownSession):
        await db.broker.schedule("nobody", "x", at=TOMORROW)
    with pytest.raises(UnknownSession):
        await db.broker.schedules("nobody")
    await db.broker.end("chat")
    with pytest.raises(SessionEnded):
        await db.broker.schedule("chat", "x", at=TOMORROW)


async def test_a_session_has_a_bounded_number_of_schedules(database: Database) -> None:
    async with SessionsDB(database.url, limits=Limits(schedules=2)) as db:
        await db.broker.register("chat", channel="test", peer="somebody")
        await db.broker.schedule("chat", "a", at=TOMORROW, name="a")
        await db.broker.schedule("chat", "b", at=TOMORROW)
        with pytest.raises(InvalidArgument, match="has 2 schedules, the limit is 2"):
            await db.broker.schedule("chat", "c", at=TOMORROW)
        await db.broker.schedule("chat", "replaced", at=TOMORROW, name="a")


async def test_end_and_delete_remove_schedules_and_a_fork_has_none(db: SessionsDB) -> None:
    await db.broker.register("child", channel="test", peer="p", parent="chat")
    await db.broker.register("kept", channel="test", peer="p")
    for id in ("chat", "child", "kept"):
        await db.broker.schedule(id, "later", at=TOMORROW)
    fork = await db.broker.fork("kept")
    assert await db.broker.schedules(fork.id) == []
    await db.broker.end("chat", subtree=True)
    assert [one.session_id for one in await db.broker.schedules()] == ["kept"]
    await db.broker.reopen("chat")
    assert await db.broker.schedules("chat") == []
    await db.store.delete("kept")
    assert await db.broker.schedules() == []


# ---- firing ------------------------------------------------------------------------------------


async def test_a_moment_in_the_past_is_sent_once_with_what_was_given(db: SessionsDB) -> None:
    image = {"role": "user", "content": [{"type": "text", "text": "look"}, {"type": "image"}]}
    at = NOW - timedelta(days=1)
    await db.broker.schedule("chat", image, at=at, author="ci", metadata={"run": 7})
    heard: list[Turn] = []

    async def handler(turn: Turn) -> str:
        heard.append(turn)
        return "seen"

    assert await db.worker(handler).run_until_idle() == 1
    [turn] = heard
    assert turn.inputs == [image]
    [message] = turn.messages
    assert (message.author, message.metadata, message.sender) == ("ci", {"run": 7}, None)
    assert abs(message.timestamp - datetime.now(UTC)) < timedelta(minutes=1), "the time of firing"
    assert await db.broker.schedules() == []
    assert await db.worker(handler).run_until_idle() == 0


async def test_run_until_idle_ignores_schedules_that_are_not_due(db: SessionsDB) -> None:
    await db.broker.schedule("chat", "later", at=TOMORROW)
    await db.broker.schedule("chat", "often", cron="0 0 1 1 *")
    assert await db.worker(answer).run_until_idle() == 0
    assert len(await db.broker.schedules()) == 2


@pytest.mark.parametrize(("catch_up", "count"), [("one", 1), ("all", 5)])
async def test_missed_due_times_are_sent_as_one_or_one_by_one(
    db: SessionsDB, database: Database, catch_up: CatchUp, count: int
) -> None:
    await db.broker.schedule("chat", "tick", cron="0 0 * * *", catch_up=catch_up)
    await let_pass(database, days=5)
    await fire(db)
    assert await sent(database) == ["tick"] * count
    [schedule] = await db.broker.schedules()
    assert datetime.now(UTC) < schedule.due_at <= datetime.now(UTC) + timedelta(days=1)
    assert schedule.last_fired_at is not None
    await fire(db)
    assert await sent(database) == ["tick"] * count


async def test_catching_up_is_bounded(db: SessionsDB, database: Database) -> None:
    await db.broker.schedule("chat", "tick", cron="0 * * * *", catch_up="all")
    await let_pass(database, days=30)
    await fire(db)
    assert len(await sent(database)) == 100
    [schedule] = await db.broker.schedules()
    assert schedule.due_at > datetime.now(UTC)


async def test_catching_up_with_long_messages_takes_several_transactions(
    db: SessionsDB, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(firing, "MAX_BYTES", 20_000, raising=False)
    for name in ("a", "b"):
        await db.broker.schedule("chat", name * 1_000, cron="0 * * * *", catch_up="all")
    await db.broker.schedule("chat", "longer than all" * 2_000, at=NOW)
    await let_pass(database, days=30)
    counts = []
    while (fired := await fire(db)).messages:
        counts.append(fired.messages)
    assert max(counts) == 20
    texts = await sent(database)
    assert [texts.count(name * 1_000) for name in ("a", "b")] == [100, 100]
    assert sum(counts) == len(texts) == 201
    assert all(one.due_at > datetime.now(UTC) for one in await db.broker.schedules())


@pytest.mark.parametrize("catch_up", ["one", "all"])
async def test_a_full_inbox_keeps_the_message_due_and_merges_later_times(
    database: Database, catch_up: CatchUp
) -> None:
    async with SessionsDB(database.url, limits=Limits(pending=1)) as db:
        await db.broker.register("chat", channel="test", peer="somebody")
        await db.broker.send("chat", "in the way")
        await db.broker.schedule("chat", "tick", cron="0 0 * * *", catch_up=catch_up)
        await let_pass(database, days=1)
        await fire(db)
        [refused] = await db.broker.schedules()
        assert refused.refused_at is not None
        assert refused.due_at <= datetime.now(UTC)
        await let_pass(database, days=3)
        assert await sent(database) == ["in the way"]
        assert await db.worker(answer).run_until_idle() == 2
        assert await sent(database) == ["in the way", "tick"]
        [schedule] = await db.broker.schedules()
        assert schedule.refused_at is None
        assert schedule.due_at > datetime.now(UTC)


async def test_a_scheduled_message_is_no_answer_to_a_question(
    db: SessionsDB, database: Database
) -> None:
    texts: list[str] = []

    async def handler(turn: Turn) -> Reply | str:
        texts.append(turn.text)
        if turn.text == "delete it":
            return Reply("Sure?", ask=Question(prompt="Sure?", accept_message=True))
        return "done"

    await db.broker.send("chat", "delete it")
    await db.worker(handler).run_until_idle()
    for number in range(2):
        await db.broker.schedule("chat", f"tick {number}", at=NOW - timedelta(hours=2 - number))
    await db.worker(handler).run_until_idle()
    assert await db.broker.schedules() == []
    assert len(await db.broker.questions()) == 1
    assert await sent(database) == ["delete it", "tick 0", "tick 1"]
    await db.broker.send("chat", "yes")
    await db.worker(handler).run_until_idle()
    assert texts == ["delete it", "yes", "tick 0", "tick 1"]


async def test_run_until_idle_waits_for_room_that_it_makes(database: Database) -> None:
    async with SessionsDB(database.url, limits=Limits(pending=1)) as db:
        await db.broker.register("chat", channel="test", peer="somebody")
        await db.broker.schedule("chat", "m0", at=NOW - timedelta(hours=2))
        await db.broker.schedule("chat", "m1", at=NOW - timedelta(hours=1))
        assert await db.worker(answer).run_until_idle() == 2
        assert await sent(database) == ["m0", "m1"]


async def test_workers_fire_within_their_namespaces(db: SessionsDB, database: Database) -> None:
    for namespace in ("a", "b", "c"):
        other = db.in_namespace(namespace)
        await other.broker.register("chat", channel="test", peer="somebody")
        await other.broker.schedule("chat", namespace, at=NOW)
    assert await db.worker(answer).run_until_idle() == 0
    assert await db.worker(answer, namespaces=["a", "b"]).run_until_idle() == 2
    assert await sent(database) == ["a", "b"]
    assert await db.worker(answer, namespaces="*").run_until_idle() == 1
    assert await sent(database) == ["a", "b", "c"]


async def test_a_refusal_elsewhere_keeps_no_worker_of_a_list_busy(database: Database) -> None:
    async with SessionsDB(database.url, limits=Limits(pending=1)) as db:
        full = db.in_namespace("full")
        await full.broker.register("chat", channel="test", peer="somebody")
        await full.broker.send("chat", "in the way")
        await full.broker.schedule("chat", "tick", at=NOW)
        await fire(full)
        assert await db.worker(answer, namespaces=["a", "b"]).run_until_idle() == 0


async def test_a_zone_that_this_host_does_not_know_stops_no_other_schedule(
    db: SessionsDB, database: Database
) -> None:
    await db.broker.schedule("chat", "lost", cron="0 0 * * *")
    await database.query("UPDATE schedules SET tz = 'Mars/Olympus'")
    await db.broker.schedule("chat", "fine", cron="0 0 * * *")
    await let_pass(database, days=2)
    assert await db.worker(answer).run_until_idle() == 1
    assert await sent(database) == ["fine"]
    assert len(await db.broker.schedules()) == 2


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="the zone of the process can't be set")
@pytest.mark.parametrize("end", ["0001-01-01 00:00:00.000000", "9999-12-31 23:59:59.999999"])
async def test_a_time_at_the_end_of_all_times_stops_no_other_schedule(
    db: SessionsDB, database: Database, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """An older version stored such a time. Both ends fail on one side of UTC."""
    await db.broker.schedule("chat", "far", at=TOMORROW)
    is_first = end.startswith("0001")
    if database.kind == "postgresql":  # as its driver stores the two
        end = "-infinity" if is_first else "infinity"
    await database.query(f"UPDATE schedules SET due_at = '{end}', try_at = '{end}'")
    for name in ("America/New_York", "Asia/Tokyo"):
        monkeypatch.setenv("TZ", name)
        time.tzset()
        await db.broker.schedule("chat", "fine", at=NOW)
        await db.worker(answer).run_until_idle()
        assert (await sent(database))[-1] == "fine"
    monkeypatch.undo()
    time.tzset()
    assert len(await db.broker.schedules()) == (not is_first)


async def test_schedules_of_a_session_are_sent_in_the_order_of_their_due_times(
    db: SessionsDB, database: Database
) -> None:
    for number in (3, 1, 2):
        await db.broker.schedule("chat", f"m{number}", at=NOW - timedelta(hours=9 - number))
    await fire(db)
    assert await sent(database) == ["m1", "m2", "m3"]


async def test_many_schedules_of_many_sessions_fire_in_small_transactions(
    db: SessionsDB, database: Database
) -> None:
    for number in range(4):
        await db.broker.register(f"s{number}", channel="test", peer="p")
        await asyncio.gather(*(db.broker.schedule(f"s{number}", "x", at=NOW) for _ in range(30)))
    assert await db.worker(answer, batch=30).run_until_idle() >= 4
    assert len(await sent(database)) == 120
    assert await db.broker.schedules() == []

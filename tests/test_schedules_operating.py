"""Schedules in doctor, copy, export and import, and in the commands."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta

import pytest

from devtools.databases import Database
from sessionsdb import Schedule, SessionsDB
from sessionsdb.admin.doctor import examine
from tests.support.command_line import CommandLine
from tests.support.schedules import let_pass
from tests.support.turns import claim

TOMORROW = datetime.now(UTC).replace(microsecond=0) + timedelta(days=1)


@pytest.fixture
async def db(db: SessionsDB) -> SessionsDB:
    await db.broker.register("chat", channel="test", peer="somebody")
    return db


async def findings(db: SessionsDB) -> dict[str, tuple[str, int]]:
    return {one.check: (one.level, one.count) for one in (await examine(db)).findings}


# ---- doctor ------------------------------------------------------------------------------------


async def test_the_doctor_finds_late_schedules_and_says_whether_a_worker_runs(
    db: SessionsDB, database: Database
) -> None:
    await db.broker.schedule("chat", "later", at=TOMORROW)
    assert await findings(db) == {}
    await let_pass(database, days=2)
    assert await findings(db) == {"waiting-schedules": ("note", 1)}
    await db.broker.send("chat", "runs")
    await claim(db)
    assert await findings(db) == {"late-schedules": ("problem", 1)}
    [found] = (await examine(db)).findings
    [schedule] = await db.broker.schedules()
    assert f"default/chat: {schedule.id}, due for" in found.examples[0]


async def test_the_doctor_finds_full_inboxes_and_unknown_zones(
    db: SessionsDB, database: Database
) -> None:
    await db.broker.schedule("chat", "full", at=TOMORROW)
    await db.broker.schedule("chat", "lost", cron="0 0 * * *")
    await let_pass(database, days=2)
    await database.query("UPDATE schedules SET tz = 'Mars/Olympus' WHERE cron IS NOT NULL")
    await database.query("UPDATE schedules SET refused_at = due_at WHERE cron IS NULL")
    assert await findings(db) == {"refused-schedules": ("note", 1), "unknown-zones": ("problem", 1)}


# ---- export and import -------------------------------------------------------------------------


async def test_a_restored_session_has_its_schedules_under_new_ids(
    db: SessionsDB, database: Database
) -> None:
    cli = CommandLine(database.url)
    made = await db.broker.schedule("chat", "later", at=TOMORROW, name="n", author="ada")
    exported = (await asyncio.to_thread(cli, "export", "--session", "chat", "--full")).ok().stdout
    await db.store.delete("chat")
    (await asyncio.to_thread(cli, "import", "-", input=exported)).ok()
    [restored] = await db.broker.schedules("chat")
    assert restored.id != made.id
    assert restored.model_copy(update={"id": made.id}) == made
    line = json.loads(exported)
    line["stored"]["schedules"][0]["colour"] = "red"
    await db.store.delete("chat")
    answered = await asyncio.to_thread(cli, "import", "-", input=json.dumps(line))
    assert "schedules has no column colour" in answered.stderr


# ---- commands ----------------------------------------------------------------------------------


async def test_the_commands_schedule_show_and_delete(db: SessionsDB, database: Database) -> None:
    cli = CommandLine(database.url)

    async def run(*words: str) -> str:
        return (await asyncio.to_thread(cli, *words)).ok().stdout

    often = ("--cron", "30 2 * * *", "--tz", "Europe/Berlin", "--name", "night")
    printed = await run("schedule", "chat", "Summarise the day.", *often)
    [first] = await db.broker.schedules()
    due = f"{first.due_at:%Y-%m-%d %H:%M:%S} UTC"
    assert printed == f"scheduled: {first.id}\n    due {due} for session chat\n"
    shown = await run("schedules", "chat")
    assert shown == (
        f"{due}  chat, night\n    {first.id}\n    cron 30 2 * * * (Europe/Berlin)\n"
        "    Summarise the day.\n"
    )
    assert max(map(len, shown.splitlines())) <= 80
    at = ("--at", "2100-01-04T09:00", "--tz", "Europe/Berlin", "--author", "ada")
    made = json.loads(
        await run("schedule", "chat", "Hello", *at, "--metadata", '{"n": 1}', "--json")
    )
    second = Schedule.model_validate(made)
    assert second.at == datetime(2100, 1, 4, 8, tzinfo=UTC)
    assert (second.author, second.metadata) == ("ada", {"n": 1})
    listed = json.loads(await run("schedules", "--json"))
    assert [one["id"] for one in listed] == [first.id, second.id]
    assert await run("unschedule", first.id) == f"deleted: {first.id}\n"
    gone = (await asyncio.to_thread(cli, "unschedule", first.id)).ok()
    assert gone.stderr == f"no schedule {first.id}: nothing was deleted\n"
    await run("schedule", "chat", "soon", "--at", "+1d", "--catch-up", "all")
    [soon, _] = await db.broker.schedules()
    assert abs(soon.due_at - datetime.now(UTC) - timedelta(days=1)) < timedelta(minutes=1)


def test_the_help_of_schedule_names_every_unit() -> None:
    text = " ".join(CommandLine("sqlite://")("schedule", "--help").ok().stdout.split())
    assert "+45s, +30m, +2h or +1d from now" in text


@pytest.mark.parametrize("kind", ["sqlite"])
async def test_the_commands_refuse_wrong_times(db: SessionsDB, database: Database) -> None:
    cli = CommandLine(database.url)
    for options, reason in (
        ([], "give --at or --cron"),
        (["--at", "+1h", "--cron", "* * * * *"], "give --at or --cron"),
        (["--at", "soon"], "is no time: write +45s, +30m, +2h, +1d, or"),
        (["--at", "2100-01-01T00:00", "--tz", "Mars/X"], "no time zone"),
        (["--cron", "* * *"], "--cron '* * *' has 3 fields"),
        (["--cron", "* * * * *", "--tz", "Mars/X"], "no time zone"),
    ):
        answered = await asyncio.to_thread(cli, "schedule", "chat", "x", *options)
        assert reason in " ".join(answered.refused().split()), (options, answered.stderr)


@pytest.mark.parametrize("kind", ["sqlite"])
async def test_a_message_that_waits_for_room_is_shown_as_such(
    db: SessionsDB, database: Database
) -> None:
    blocks = {"role": "user", "content": [{"type": "text", "text": "tick"}]}
    await db.broker.schedule("chat", blocks, at=TOMORROW)
    await database.query("UPDATE schedules SET refused_at = due_at")
    shown = (await asyncio.to_thread(CommandLine(database.url), "schedules")).ok().stdout
    assert "waits for room in the inbox" in shown
    assert '"text":"tick"' in shown

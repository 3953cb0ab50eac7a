"""Rules of schedules: schedule, schedules, unschedule."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from sessionsdb.errors import InvalidArgument, SessionEnded, UnknownSession
from sessionsdb.testing.conformance.checks import Part, Subject, echo, equal, refused

PART = Part("schedules")

PAST = datetime(2020, 1, 1, tzinfo=UTC)
FUTURE = datetime(2999, 1, 1, tzinfo=UTC)


async def _session(subject: Subject) -> None:
    await subject.broker.register("s", channel="cli", peer="ada")


@PART.rule("schedules returns the schedules of a session or of all, the next due one first.")
async def schedules_are_listed(subject: Subject) -> None:
    await _session(subject)
    await subject.broker.register("t", channel="cli", peer="ada")
    late = await subject.broker.schedule("s", "b", at=FUTURE + timedelta(days=1), name="late")
    soon = await subject.broker.schedule("s", "a", at=FUTURE)
    other = await subject.broker.schedule("t", "c", cron="0 0 1 1 *")
    equal(await subject.broker.schedules("s"), [soon, late], "the schedules of s")
    equal(await subject.broker.schedules(), [other, soon, late], "all schedules")
    equal((late.message, late.name), ({"role": "user", "content": "b"}, "late"), "the schedule")
    equal((late.at, late.due_at), (FUTURE + timedelta(days=1),) * 2, "its time")
    await refused(UnknownSession, subject.broker.schedules("unknown"), "schedules of an unknown id")


@PART.rule("A schedule whose time has come is sent once, and is gone. Others stay.")
async def a_due_schedule_is_sent_once(subject: Subject) -> None:
    await _session(subject)
    await subject.broker.schedule("s", "due", at=PAST, author="alice")
    kept = await subject.broker.schedule("s", "later", at=FUTURE)
    await subject.run_turns(echo)
    await subject.run_turns(echo)
    history = await subject.broker.history("s")
    equal([one.content for one in history], ["due", "echo: due"], "the transcript")
    equal(history[0].author, "alice", "the author")
    equal(await subject.broker.schedules(), [kept], "the schedules afterwards")


@PART.rule("A second schedule with the same name replaces the first one, under its id.")
async def a_name_replaces(subject: Subject) -> None:
    await _session(subject)
    first = await subject.broker.schedule("s", "a", at=FUTURE, name="n")
    second = await subject.broker.schedule("s", "b", at=FUTURE, name="n")
    equal(second.id, first.id, "the id")
    equal(await subject.broker.schedules("s"), [second], "the schedules")
    equal(second.message["content"], "b", "the message")


@PART.rule("unschedule deletes a schedule, and tells whether there was one.")
async def unschedule_deletes(subject: Subject) -> None:
    await _session(subject)
    made = await subject.broker.schedule("s", "a", at=FUTURE)
    equal(await subject.broker.unschedule(made.id), True, "the first answer")
    equal(await subject.broker.unschedule(made.id), False, "the second answer")
    equal(await subject.broker.schedules(), [], "the schedules")


@PART.rule("A schedule has either at, with a time zone, or a valid cron expression.")
async def times_are_checked(subject: Subject) -> None:
    await _session(subject)
    wrong: dict[str, dict[str, Any]] = {
        "no time": {},
        "two times": {"at": FUTURE, "cron": "* * * * *"},
        "a time without a zone": {"at": FUTURE.replace(tzinfo=None)},
        "a wrong expression": {"cron": "61 * * * *"},
        "an unknown zone": {"cron": "* * * * *", "tz": "No/Where"},
    }
    for fault, times in wrong.items():
        await refused(InvalidArgument, subject.broker.schedule("s", "a", **times), fault)
    equal(await subject.broker.schedules(), [], "the schedules")


@PART.rule("The end of a session deletes its schedules, and an ended one takes none.")
async def the_end_deletes_schedules(subject: Subject) -> None:
    await _session(subject)
    await subject.broker.schedule("s", "a", at=FUTURE)
    await subject.broker.end("s")
    equal(await subject.broker.schedules(), [], "the schedules")
    late = subject.broker.schedule("s", "a", at=FUTURE)
    await refused(SessionEnded, late, "schedule of an ended session")

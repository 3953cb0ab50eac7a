"""The tools sessions_schedule and sessions_unschedule."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from devtools.databases import Database
from sessionsdb import Limits, SessionsDB, Turn
from sessionsdb.tools import SessionsTool
from tests.support.schedules import fire, let_pass
from tests.support.tools import call_ok, call_refused, register_sessions


@pytest.fixture
async def tool(db: SessionsDB) -> SessionsTool:
    await register_sessions(db, "me")
    await db.broker.register("child", channel="test", peer="p", parent="me")
    await db.broker.register("leaf", channel="test", peer="p", parent="child")
    return SessionsTool(db.broker, "me")


async def test_a_reminder_to_oneself_comes_marked_as_the_own_words(
    tool: SessionsTool, db: SessionsDB, database: Database
) -> None:
    made = await call_ok(
        tool, "sessions_schedule", text="look again", at="2100-01-04T09:00", tz="Europe/Berlin"
    )
    assert made["session_id"] == "me"
    assert made["due_at"] == "2100-01-04T08:00:00Z"
    [schedule] = await db.broker.schedules("me")
    assert (schedule.id, schedule.sender) == (made["schedule_id"], "me")
    await let_pass(database, days=100 * 365)
    heard: list[Turn] = []

    async def handler(turn: Turn) -> None:
        heard.append(turn)

    assert await db.worker(handler).run_until_idle() == 1
    assert [message.sender for message in heard[0].messages] == ["me"]
    assert await db.broker.schedules() == []


async def test_a_name_replaces_and_the_schedule_is_deleted_by_its_id(
    tool: SessionsTool, db: SessionsDB
) -> None:
    often = {"session_id": "child", "text": "sum up", "cron": "0 22 * * *", "name": "night"}
    first = await call_ok(tool, "sessions_schedule", **often)
    again = await call_ok(tool, "sessions_schedule", **often | {"cron": "0 23 * * *"})
    assert first["schedule_id"] == again["schedule_id"]
    assert (again["cron"], again["tz"], again["name"]) == ("0 23 * * *", "UTC", "night")
    id = first["schedule_id"]
    told = await call_refused(tool, "sessions_unschedule", schedule_id=id)
    assert "session me has no schedule" in told
    gone = await call_ok(tool, "sessions_unschedule", schedule_id=id, session_id="child")
    assert gone["ok"] is True
    assert await db.broker.schedules() == []


async def test_an_agent_deletes_its_own_schedules_and_those_below_it(
    tool: SessionsTool, db: SessionsDB
) -> None:
    leaf = SessionsTool(db.broker, "leaf")
    above = await db.broker.schedule("child", "by the host", cron="0 9 * * *")
    told = await call_refused(leaf, "sessions_unschedule", schedule_id=above.id, session_id="child")
    assert "you did not schedule" in told
    made = await call_ok(
        leaf, "sessions_schedule", session_id="child", text="mine", cron="0 9 * * *"
    )
    own = {"schedule_id": made["schedule_id"], "session_id": "child"}
    await call_ok(leaf, "sessions_unschedule", **own)
    await call_ok(tool, "sessions_unschedule", schedule_id=above.id, session_id="child")
    host = SessionsTool(db.broker, visibility="namespace")
    told = await call_refused(host, "sessions_schedule", text="x", cron="0 9 * * *")
    assert "requires `session_id`" in told
    made = await call_ok(host, "sessions_schedule", session_id="me", text="x", cron="0 9 * * *")
    await call_ok(host, "sessions_unschedule", session_id="me", schedule_id=made["schedule_id"])


async def test_an_agent_replaces_by_name_only_what_it_may_delete(
    tool: SessionsTool, db: SessionsDB
) -> None:
    leaf = SessionsTool(db.broker, "leaf")
    above = await db.broker.schedule("child", "by the host", cron="0 9 * * *", name="wages")
    given = {"session_id": "child", "text": "mine", "cron": "0 8 * * *"}
    told = await call_refused(leaf, "sessions_schedule", **given, name="wages")
    assert "You did not schedule it" in told
    assert "another name" in told
    assert await db.broker.schedules() == [above]
    own = await call_ok(leaf, "sessions_schedule", **given, name="own")
    again = await call_ok(leaf, "sessions_schedule", **given | {"text": "later"}, name="own")
    assert own["schedule_id"] == again["schedule_id"]
    host = SessionsTool(db.broker, visibility="namespace")
    for one in (SessionsTool(db.broker, "child"), tool, host):
        made = await call_ok(one, "sessions_schedule", **given, name="wages")
        assert made["schedule_id"] == above.id


async def test_a_session_that_schedules_itself_again_and_again_reaches_the_limit_of_hops(
    database: Database,
) -> None:
    async with SessionsDB(database.url, limits=Limits(hops=3)) as db:
        await register_sessions(db, "me")
        refused: list[str] = []

        async def handler(turn: Turn) -> None:
            at = datetime.now(UTC) + timedelta(hours=1)
            result = await SessionsTool(db.broker, "me").execute(
                "1", "sessions_schedule", {"text": "go on", "at": at.isoformat()}
            )
            if result.is_error:
                refused.append(result.content)

        await db.broker.send("me", "begin")
        turns = 0
        for _ in range(6):
            turns += await db.worker(handler).run_until_idle()
            await let_pass(database, hours=2)
            await fire(db)
        assert turns == 4
        assert "hop" in refused[0]
        assert await db.broker.schedules() == []


async def test_the_bound_of_a_session_holds_for_its_agent(database: Database) -> None:
    async with SessionsDB(database.url, limits=Limits(schedules=1)) as db:
        await register_sessions(db, "me")
        tool = SessionsTool(db.broker, "me")
        await call_ok(tool, "sessions_schedule", text="x", cron="0 9 * * *")
        told = await call_refused(tool, "sessions_schedule", text="y", cron="0 9 * * *")
        assert "the limit is 1" in told

"""The tools on messages that are sent later: schedule, unschedule."""

from __future__ import annotations

from datetime import UTC, datetime

from sessionsdb.cron import InvalidCron, read_moment
from sessionsdb.tools.acting import is_below_caller
from sessionsdb.tools.call import Call, CallRefused
from sessionsdb.tools.definitions import SCHEDULE, SEND, UNSCHEDULE
from sessionsdb.tools.inputs import ScheduleInput, UnscheduleInput
from sessionsdb.tools.outputs import ScheduleOutput, UnscheduleOutput
from sessionsdb.types import Schedule, SessionDetails


async def schedule(call: Call, given: ScheduleInput) -> ScheduleOutput:
    session = await _session(call, SCHEDULE, given.session_id)
    if given.name is not None:
        await _check_name(call, session, given.name)
    made = await call.broker.schedule(
        session.id,
        given.text,
        at=None if given.at is None else _later(given.at, given.tz),
        cron=given.cron,
        tz=given.tz,
        name=given.name,
        sender=call.caller,
    )
    return ScheduleOutput(
        scope=call.scope.visibility,
        truncated=False,
        schedule_id=made.id,
        session_id=made.session_id,
        due_at=made.due_at,
        cron=made.cron,
        tz=made.tz,
        name=made.name,
    )


async def unschedule(call: Call, given: UnscheduleInput) -> UnscheduleOutput:
    session = await _session(call, UNSCHEDULE, given.session_id)
    found = [one for one in await call.broker.schedules(session.id) if one.id == given.schedule_id]
    if not found:
        raise CallRefused(
            f"{UNSCHEDULE} failed: session {session.id} has no schedule {given.schedule_id:.100}. "
            "It may have sent its message already."
        )
    if not await _may_delete(call, session, found[0]):
        raise CallRefused(
            f"{UNSCHEDULE} refused: you did not schedule {found[0].id}, {_foreign(call, session)}."
        )
    deleted = await call.broker.unschedule(found[0].id)
    return UnscheduleOutput(
        scope=call.scope.visibility,
        truncated=False,
        ok=deleted,
        schedule_id=found[0].id,
        session_id=session.id,
    )


async def _session(call: Call, tool: str, id: str | None) -> SessionDetails:
    id = id or call.caller
    if id is None:
        raise CallRefused(f"{tool} requires `session_id`: the caller has no session of its own.")
    return await call.scope.session(id)


async def _check_name(call: Call, session: SessionDetails, name: str) -> None:
    """Refuse a name whose schedule this call would replace, if the caller may not delete it."""
    if call.caller in (session.id, None):
        return
    found = [one for one in await call.broker.schedules(session.id) if one.name == name]
    if found and not await _may_delete(call, session, found[0]):
        raise CallRefused(
            f"{SCHEDULE} refused: the schedule {name:.64} would be replaced. You did not schedule "
            f"it, {_foreign(call, session)}. Give another name."
        )


def _foreign(call: Call, session: SessionDetails) -> str:
    return f"and session {session.id} is neither your own session {call.caller} nor below it"


async def _may_delete(call: Call, session: SessionDetails, found: Schedule) -> bool:
    if call.caller in (session.id, found.sender):
        return True
    return await is_below_caller(call, session)


def _later(at: str, tz: str) -> datetime:
    """Return the moment of ``at``. A past one would be a message to be sent now, in a loop if the
    session is the caller's own."""
    try:
        moment = read_moment(at, tz)
    except InvalidCron as error:
        raise CallRefused(f"{SCHEDULE} failed: {error}") from None
    except (ValueError, OverflowError):
        raise CallRefused(
            f"{SCHEDULE} failed: at is no time in ISO 8601: write one like 2027-01-04T09:00, or "
            "2027-01-04T09:00:00+01:00 with an offset"
        ) from None
    present = datetime.now(UTC)
    if moment <= present:
        raise CallRefused(
            f"{SCHEDULE} refused: {at:.60} is not later than now, which is "
            f"{present:%Y-%m-%dT%H:%M:%SZ}. To send a message now use {SEND}."
        )
    return moment

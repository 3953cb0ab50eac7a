"""Schedules: messages that are sent later, once or again and again."""

from __future__ import annotations

from fastapi import APIRouter, Response

from sessionsdb.errors import InvalidArgument
from sessionsdb.types import Schedule
from sessionsdb.web.api import bodies, results
from sessionsdb.web.api.access import GuardedRoute, Reader, Writer
from sessionsdb.web.api.answers import answer
from sessionsdb.web.api.encoding import Encoding
from sessionsdb.web.api.parameters import SessionIdPath
from sessionsdb.web.api.problems import Refused

router = APIRouter(tags=["schedules"], route_class=GuardedRoute)


@router.post("/sessions/{id}/schedules", response_model=Schedule, status_code=201)
async def schedule(
    caller: Writer, id: SessionIdPath, body: bodies.ScheduleBody, encoding: Encoding
) -> Response:
    """Send a message later. The same `name` replaces the schedule, so this can be repeated."""
    if body.at is not None and body.at.tzinfo is None:
        raise InvalidArgument("at must have a time zone, as in 2026-01-31T12:00:00Z")
    made = await caller.db.broker.schedule(
        id,
        await encoding.one(caller, body.message),
        at=body.at,
        cron=body.cron,
        tz=body.tz,
        name=body.name,
        sender=body.sender,
        author=body.author,
        metadata=body.metadata,
        catch_up=body.catch_up,
    )
    return answer(made, 201)


@router.get("/schedules", response_model=results.Schedules)
async def schedules(caller: Reader, session: str | None = None) -> Response:
    """Show the schedules of a session, or all, the next due one first."""
    return answer({"schedules": await caller.db.broker.schedules(session)})


@router.delete("/schedules/{schedule_id}", status_code=204)
async def unschedule(caller: Writer, schedule_id: str) -> Response:
    """Delete a schedule. Messages that it has sent stay."""
    if not await caller.db.broker.unschedule(schedule_id):
        raise Refused(404, "UnknownSchedule", "there is no schedule with this id")
    return Response(status_code=204)

"""Sessions: register, list, look at, change, fork, end and delete them."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Body, Response

from sessionsdb.errors import InvalidArgument
from sessionsdb.types import Children, ListOptions, SessionDetails, SessionSummary
from sessionsdb.web.api import bodies, results
from sessionsdb.web.api.access import Admin, GuardedRoute, Reader, Writer
from sessionsdb.web.api.answers import answer
from sessionsdb.web.api.parameters import Limit, Moment, SessionIdPath, place_of, session_at

router = APIRouter(tags=["sessions"], route_class=GuardedRoute)


@router.get("/sessions", response_model=results.Sessions)
async def list_sessions(
    caller: Reader,
    channel: str | None = None,
    peer: str | None = None,
    parent: str | None = None,
    root: str | None = None,
    active_since: Moment | None = None,
    include_ended: bool = False,
    newest_first: bool = False,
    details: bool = False,
    limit: Limit = 100,
    after: str | None = None,
) -> Response:
    """List sessions by their last activity."""
    if active_since is not None and active_since.tzinfo is None:
        raise InvalidArgument("active_since must have a time zone, as in 2026-01-31T12:00:00Z")
    found = await caller.db.broker.list(
        channel=channel,
        peer=peer,
        parent=parent,
        root=root,
        active_since=active_since,
        include_ended=include_ended,
        newest_first=newest_first,
        details=details,
        limit=limit + 1,
        after=session_at(after),
    )
    page = found[:limit]
    body: dict[str, Any] = {"sessions": page}
    if len(found) > limit and page:
        body["next"] = place_of(page[-1])
    return answer(body)


@router.post("/sessions", response_model=SessionSummary, status_code=201)
async def register(caller: Writer, body: bodies.Registration) -> Response:
    """Create a session with an empty transcript and an empty inbox."""
    return answer(await caller.db.broker.register(**body.model_dump()), 201)


@router.get("/records", response_model=results.Records)
async def list_records(caller: Reader, limit: Limit = 100, offset: int = 0) -> Response:
    """List the stored transcripts by the time of their last change, newest last."""
    options = ListOptions(offset=max(0, offset), limit=limit)
    return answer({"sessions": await caller.db.store.list_paginated(options)})


@router.get("/sessions/{id}", response_model=SessionDetails)
async def get(caller: Reader, id: SessionIdPath) -> Response:
    """Show one session."""
    return answer(await caller.db.broker.get(id))


@router.patch("/sessions/{id}", response_model=SessionDetails)
async def update(caller: Writer, id: SessionIdPath, body: bodies.Update) -> Response:
    """Change the settings of a session, and keep the others."""
    return answer(await caller.db.broker.update(id, **body.given()))


@router.delete("/sessions/{id}", status_code=204)
async def delete(caller: Admin, id: SessionIdPath, children: Children = "detach") -> Response:
    """Delete a session with its transcript and its inbox. A missing one is no error."""
    await caller.db.store.delete(id, children=children)
    return Response(status_code=204)


@router.post("/sessions/{id}/end", response_model=results.Ended)
async def end(
    caller: Writer, id: SessionIdPath, body: bodies.End = Body(default_factory=bodies.End)
) -> Response:
    """End a session. It accepts no more messages."""
    ended = await caller.db.broker.end(id, subtree=body.subtree, reason=body.reason)
    return answer({"ended": ended})


@router.post("/sessions/{id}/reopen", response_model=SessionDetails)
async def reopen(caller: Writer, id: SessionIdPath) -> Response:
    """Let an ended session take messages again."""
    return answer(await caller.db.broker.reopen(id))


@router.post("/sessions/{id}/fork", response_model=SessionSummary, status_code=201)
async def fork(
    caller: Writer, id: SessionIdPath, body: bodies.Fork = Body(default_factory=bodies.Fork)
) -> Response:
    """Create a session that begins with the transcript of this one."""
    return answer(await caller.db.broker.fork(id, at=body.at, new_id=body.new_id), 201)

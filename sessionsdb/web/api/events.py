"""Server-sent events over ``follow``: what happens in a session, as it happens."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from sessionsdb.errors import InvalidArgument, SessionsDBError
from sessionsdb.events import Event
from sessionsdb.web.api.access import Caller, Gate, GuardedRoute, Reader, gate_of
from sessionsdb.web.api.answers import as_json
from sessionsdb.web.api.parameters import SessionIdPath
from sessionsdb.web.api.problems import problem_of
from sessionsdb.web.api.tree_cursor import PREFIX, TreePlace, cursors_of, sessions_from_now

log = logging.getLogger("sessionsdb.web")

router = APIRouter(tags=["events"], route_class=GuardedRoute)

HEARTBEAT_SECONDS = 15.0
"""A comment is sent after so long without an event. The token is checked again then."""

FIRST_SECONDS = 1.0
"""An error in this time is a problem with its status. Later it is an event."""

RECONNECT_MILLISECONDS = 2_000

MEDIA_TYPE = "text/event-stream"


@router.get(
    "/sessions/{id}/events",
    response_class=StreamingResponse,
    responses={200: {"content": {MEDIA_TYPE: {"schema": {"type": "string"}}}}},
)
async def follow(
    caller: Reader,
    id: SessionIdPath,
    request: Request,
    after: Annotated[
        str | None,
        Query(
            description="A cursor, a `seq`, or `start`. Default: now, with the partial reply. With "
            "`subtree`: `start`, the `id` of an event, or a JSON object with the cursor of each "
            "session."
        ),
    ] = None,
    subtree: Annotated[
        bool, Query(description="Also all sessions below it. An `id` is the place in all of them.")
    ] = False,
    last_event_id: Annotated[
        str | None, Header(description="The `id` of the last event. It counts before `after`.")
    ] = None,
) -> Response:
    """Follow a session as server-sent events. The `id` of an event is its cursor."""
    place = last_event_id or after
    if not subtree:
        after_one = start_of(place)
        return await stream_response(request, caller, id, after=after_one, encode=event_bytes)
    cursors = await _tree_start(caller, id, place)
    unheard = await sessions_from_now(caller.db, id) if cursors is None else None
    tree = TreePlace(cursors if isinstance(cursors, dict) else {}, unheard=unheard)
    return await stream_response(
        request,
        caller,
        id,
        after=cursors,
        subtree=True,
        encode=partial(_tree_event_bytes, tree),
    )


async def stream_response(
    request: Request,
    caller: Caller,
    id: str,
    *,
    after: str | int | dict[str, str] | None,
    encode: Callable[[Event], Awaitable[bytes]],
    subtree: bool = False,
) -> Response:
    """Return the response that follows a session. ``encode`` makes the lines of an event."""
    await caller.db.broker.get(id)
    events = caller.db.broker.follow(id, after=after, subtree=subtree)
    first = asyncio.ensure_future(anext(events, None))
    try:
        await asyncio.wait([first], timeout=FIRST_SECONDS)
    except asyncio.CancelledError:
        first.cancel()
        raise
    if first.done() and (error := first.exception()) is not None:
        raise error
    return _Stream(
        _stream(gate_of(request), caller, events, first, encode),
        media_type=MEDIA_TYPE,
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


class _Stream(StreamingResponse):
    """A response whose iterator is closed with it, also where its client is gone between events."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert isinstance(self.body_iterator, AsyncGenerator)
        async with aclosing(self.body_iterator):
            await super().__call__(scope, receive, send)


def start_of(after: str | None) -> str | int | None:
    """Return a ``seq`` as a number, and another place in a session as text."""
    is_seq = after is not None and after.isascii() and after.isdigit() and len(after) < 20
    return int(after) if after is not None and is_seq else after


async def _tree_start(
    caller: Caller, id: str, after: str | None
) -> str | int | dict[str, str] | None:
    """Return the cursors of a subtree as a dict, and another place as it is."""
    if after is None:
        return None
    if after.startswith(PREFIX):
        return dict(await cursors_of(caller.db, id, after))
    if after.startswith("{"):
        try:
            return dict(json.loads(after))
        except (ValueError, RecursionError):
            raise InvalidArgument("after is no JSON object") from None
    return start_of(after)


async def _stream(
    gate: Gate,
    caller: Caller,
    events: AsyncGenerator[Event, None],
    pending: asyncio.Future[Event | None],
    encode: Callable[[Event], Awaitable[bytes]],
) -> AsyncGenerator[bytes, None]:
    """Yield the events until the client goes or the session is deleted.

    The token is looked up again every ``HEARTBEAT_SECONDS``, and the stream ends if it is revoked
    or has expired.

    An event is taken when the one before it was sent. So a slow client keeps one event waiting, and
    ``follow`` reads the others from the database.
    """
    async with aclosing(events):
        try:
            yield f"retry: {RECONNECT_MILLISECONDS}\n\n".encode()
            look = time.monotonic() + HEARTBEAT_SECONDS
            while True:
                await asyncio.wait([pending], timeout=max(0.0, look - time.monotonic()))
                if not pending.done() or time.monotonic() >= look:
                    if not await gate.still_lets_in(caller):
                        return
                    look = time.monotonic() + HEARTBEAT_SECONDS
                if not pending.done():
                    yield b": heartbeat\n\n"
                    continue
                event = pending.result()
                if event is None:
                    return
                yield await encode(event)
                pending = asyncio.ensure_future(anext(events, None))
        except SessionsDBError as error:
            yield b"event: problem\ndata: " + bytes(problem_of(error).body) + b"\n\n"
        finally:
            if not pending.done():
                pending.cancel()
            await asyncio.wait([pending])
            if not pending.cancelled():
                pending.exception()  # seen: the client is gone


async def event_bytes(event: Event) -> bytes:
    """Return the lines of one event of a session."""
    return _lines(event, event.cursor)


async def _tree_event_bytes(tree: TreePlace, event: Event) -> bytes:
    """Return the lines of one event of a subtree."""
    return _lines(event, tree.after(event))


def _lines(event: Event, id: str | None) -> bytes:
    """Return an event as lines. JSON in ASCII has no line break."""
    first = "" if id is None else f"id: {id}\n"
    return f"{first}event: {event.type}\ndata: ".encode() + as_json(event) + b"\n\n"

"""A session as a conversation: its transcript, its running reply, and what waits behind it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Request, Response
from fastapi.responses import StreamingResponse

from sessionsdb.errors import UnknownReceipt
from sessionsdb.events import (
    DataEvent,
    DeletedEvent,
    DeltaEvent,
    EndedEvent,
    Event,
    IdleEvent,
    MessageEvent,
    QueuedEvent,
    ResetEvent,
    RewrittenEvent,
    TurnEvent,
)
from sessionsdb.types import Outcome, Receipt, SessionId
from sessionsdb.web.api.events import start_of, stream_response
from sessionsdb.web.api.parameters import SessionIdPath
from sessionsdb.web.api.problems import Refused
from sessionsdb.web.pages.access import ReaderPage
from sessionsdb.web.pages.extras import Extras, extras_of, extras_of_message
from sessionsdb.web.pages.images import MAX_IMAGES, image_of
from sessionsdb.web.pages.outcomes import with_messages
from sessionsdb.web.pages.rendering import as_json, fragment, may_write, page, session_url

router = APIRouter()

PAGE = 100
"""Messages of a transcript on one page."""


@router.get("/sessions/{id}")
async def session(caller: ReaderPage, id: SessionIdPath, before: int | None = None) -> Response:
    """Show the newest messages, or the ones before a message."""
    broker = caller.db.broker
    details = await broker.get(id)
    messages, inbox, children = await asyncio.gather(
        broker.history(id, PAGE + 1, before=before),
        broker.inbox(id, limit=PAGE),
        broker.list(parent=id, include_ended=True, limit=PAGE, newest_first=True),
    )
    shown = messages[-PAGE:]
    return await asyncio.to_thread(
        page,
        "session.html",
        caller,
        session=details,
        messages=shown,
        extras=await extras_of(caller.db, id, shown),
        earlier=shown[0].seq if len(messages) > PAGE else None,
        is_newest=before is None,
        last_seq=shown[-1].seq if shown else 0,
        running=[outcome for outcome in inbox if outcome.status == "running"],
        waiting=[outcome for outcome in inbox if outcome.status == "pending"],
        dead=[outcome for outcome in inbox if outcome.status == "dead"],
        children=children,
    )


@router.get("/sessions/{id}/messages/{seq}")
async def message(
    caller: ReaderPage, id: SessionIdPath, seq: Annotated[int, Path(ge=1, le=2**63 - 1)]
) -> Response:
    """Show one message whole: its text, its values, and the JSON as it was stored."""
    entries = await caller.db.store.entries(id, 1, after=seq - 1)
    rendered = await caller.db.broker.history(id, 1, after=seq - 1)
    if not entries or entries[0].seq != seq:
        return page("missing.html", caller, status=404, text=f"message {seq} of session {id}")
    return await asyncio.to_thread(
        page,
        "message.html",
        caller,
        id=id,
        entry=entries[0],
        text=rendered[0],
        extras=await asyncio.to_thread(extras_of_message, entries[0].message),
    )


@router.get("/sessions/{id}/messages/{seq}/images/{number}")
async def image(
    caller: ReaderPage,
    id: SessionIdPath,
    seq: Annotated[int, Path(ge=1, le=2**63 - 1)],
    number: Annotated[int, Path(ge=1, le=MAX_IMAGES)],
) -> Response:
    """Return one image of a message. It is an image for a browser, and nothing else."""
    entries = await caller.db.store.entries(id, 1, after=seq - 1)
    found = image_of(entries[0].message, number) if entries and entries[0].seq == seq else None
    if found is None:
        raise Refused(404, "Not found", f"message {seq} has no image {number} to show")
    media_type, data = found
    headers = {"Content-Security-Policy": "default-src 'none'; sandbox"}
    return Response(data, media_type=media_type, headers=headers)


@router.get("/sessions/{id}/inbox/{position}")
async def outcome(
    caller: ReaderPage, id: SessionIdPath, position: Annotated[int, Path(ge=1, le=2**63 - 1)]
) -> Response:
    """Show what became of one message of the inbox."""
    found = await _outcome(caller, id, position)
    if found is None:
        return page("missing.html", caller, status=404, text=f"message {position} of the inbox")
    [shown] = await with_messages(caller.db, [found])
    return await asyncio.to_thread(page, "outcome.html", caller, id=id, outcome=shown)


async def _outcome(caller: ReaderPage, id: str, position: int) -> Outcome | None:
    try:
        return await caller.db.broker.outcome(Receipt(session_id=SessionId(id), position=position))
    except UnknownReceipt:
        return None


# ---- live ----------------------------------------------------------------------------------------


@router.get("/sessions/{id}/live", response_class=StreamingResponse)
async def live(
    caller: ReaderPage,
    id: SessionIdPath,
    request: Request,
    after: Annotated[str | None, Query()] = None,
    last_event_id: Annotated[str | None, Header()] = None,
) -> Response:
    """Follow the session for its page: parts of the page, rendered here, and pieces as text."""
    return await stream_response(
        request,
        caller,
        id,
        after=start_of(last_event_id or after),
        encode=_encoder(caller, id),
    )


def _encoder(caller: ReaderPage, id: str) -> Callable[[Event], Awaitable[bytes]]:
    """Return the function that makes the lines of an event, for one who may write or not."""

    async def encode(event: Event) -> bytes:
        extras = {}
        if isinstance(event, MessageEvent):
            extras = await extras_of(caller.db, id, [event.message])
        make = partial(_part, id, event, extras, may_write=may_write(caller))
        # Only the text of a message can be long, and takes time.
        is_message = isinstance(event, MessageEvent)
        name, data = await asyncio.to_thread(make) if is_message else make()
        lines = json.dumps(data)
        return f"id: {event.cursor}\nevent: {name}\ndata: {lines}\n\n".encode()

    return encode


def _part(
    id: str, event: Event, extras: Mapping[int, Extras], *, may_write: bool
) -> tuple[str, Any]:
    """Return the name and the data of an event of the page: see ``static/live.js``."""
    match event:
        case MessageEvent():
            html = fragment("_message.html", id=id, message=event.message, extras=extras)
            return "message", {"seq": event.message.seq, "html": html}
        case QueuedEvent():
            html = fragment(
                "_queued.html",
                id=id,
                position=event.receipt.position,
                message=event.message,
                status="pending",
                may_write=may_write,
            )
            return "queued", {"position": event.receipt.position, "html": html}
        case TurnEvent():
            html = fragment("_turn.html", id=id, event=event, may_write=may_write)
            positions = [receipt.position for receipt in event.receipts]
            return "turn", {"status": event.status, "html": html, "positions": positions}
        case DeltaEvent():
            return "delta", {"run": event.run, "offset": event.offset, "text": event.text}
        case DataEvent():
            html = fragment("_data.html", kind=event.kind, text=as_json(event.data))
            return "data", {"run": event.run, "html": html}
        case ResetEvent():
            return "reset", {"run": event.run}
        case IdleEvent():
            return "idle", {}
        case EndedEvent():
            return "ended", {"url": session_url(id)}
        case RewrittenEvent() | DeletedEvent():
            return "reload", {"url": session_url(id) if event.type != "deleted" else "/"}

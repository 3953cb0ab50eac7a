"""Export and import of transcripts as JSON lines, the form of ``sessionsdb export``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from sessionsdb.admin.transcript_import import Line, RefusedLine, save_all
from sessionsdb.database import SessionsDB
from sessionsdb.web.api.access import Admin, GuardedRoute, Reader
from sessionsdb.web.api.answers import as_json
from sessionsdb.web.api.problems import Refused
from sessionsdb.web.body_size import MAX_BODY_BYTES

router = APIRouter(tags=["transfer"], route_class=GuardedRoute)

MEDIA_TYPE = "application/jsonl"

PAGE_SESSIONS = 200

_LINES: dict[int | str, dict[str, Any]] = {
    200: {"content": {MEDIA_TYPE: {"schema": {"type": "string"}}}}
}


@router.get("/export", response_class=StreamingResponse, responses=_LINES)
async def export(caller: Reader) -> Response:
    """Stream all transcripts, one session a line, ended ones included."""
    return StreamingResponse(_transcripts(caller.db), media_type=MEDIA_TYPE)


async def _transcripts(db: SessionsDB) -> AsyncIterator[bytes]:
    last = None
    while page := await db.broker.list(include_ended=True, limit=PAGE_SESSIONS, after=last):
        for session in page:
            messages = await db.store.load(session.id)
            if messages is not None:  # otherwise it was deleted after it was listed
                yield as_json({"session_id": session.id, "messages": messages}) + b"\n"
        last = page[-1]


@router.post(
    "/import",
    response_class=StreamingResponse,
    responses=_LINES,
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {MEDIA_TYPE: {"schema": {"type": "string"}}},
        }
    },
)
async def import_lines(caller: Admin, request: Request) -> Response:
    """Save a transcript for each line of the body. The answer has a line for each, in order.

    Everything that has an answer is saved. Lines that are refused say why.
    """
    if not request.headers.get("content-type", "").startswith((MEDIA_TYPE, "application/x-ndjson")):
        raise Refused(415, "UnsupportedMediaType", f"the body must be {MEDIA_TYPE}")
    return _WhileReading(_verdicts(caller.db, request), media_type=MEDIA_TYPE)


class _WhileReading(StreamingResponse):
    """A response that is sent while the body of the request is read.

    The base class waits for the end of the connection beside it, and would take parts of the body.
    """

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        await self.stream_response(send)


async def _verdicts(db: SessionsDB, request: Request) -> AsyncIterator[bytes]:
    async for line, verdict in save_all(db, _lines(request), max_line=MAX_BODY_BYTES):
        told = {"line": line.number}
        if isinstance(verdict, RefusedLine):
            yield as_json({**told, "refused": str(verdict)}) + b"\n"
        else:
            yield as_json({**told, "verdict": verdict}) + b"\n"


async def _lines(request: Request) -> AsyncIterator[Line]:
    """Yield the lines of the body. Of a line above the limit only its end is kept."""
    number = end = 0
    parts = bytearray()
    too_long = False
    async for chunk in request.stream():
        pieces = chunk.split(b"\n")
        for index, piece in enumerate(pieces):
            too_long = too_long or len(parts) + len(piece) > MAX_BODY_BYTES
            if too_long:
                parts.clear()
            else:
                parts += piece
            end += len(piece)
            if index < len(pieces) - 1:
                number, end = number + 1, end + 1
                yield Line(number, None if too_long else bytes(parts), end)
                parts.clear()
                too_long = False
    if parts or too_long:
        yield Line(number + 1, None if too_long else bytes(parts), end)

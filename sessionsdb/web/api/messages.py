"""Inboxes: send, spawn, wait, stop, requeue, and answer questions."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Body, Request, Response

from sessionsdb.errors import InvalidArgument
from sessionsdb.types import Outcome, Receipt, SessionId, SpawnedSession, SpawnRequest
from sessionsdb.web.api import bodies, results
from sessionsdb.web.api.access import Admin, GuardedRoute, Reader, Writer
from sessionsdb.web.api.answers import answer
from sessionsdb.web.api.disconnecting import unheard, while_connected
from sessionsdb.web.api.encoding import Encoding
from sessionsdb.web.api.parameters import (
    NUMBER,
    IdempotencyKey,
    Limit,
    Position,
    SessionIdPath,
    Wait,
    place_of_question,
    question_at,
)

router = APIRouter(tags=["messages"], route_class=GuardedRoute)


@router.get("/sessions/{id}/inbox", response_model=results.Inbox)
async def inbox(caller: Reader, id: SessionIdPath, limit: Limit = 100, after: int = 0) -> Response:
    """Show the messages that wait, run or died."""
    found = await caller.db.broker.inbox(id, limit=limit + 1, after=after)
    page = found[:limit]
    body: dict[str, Any] = {"outcomes": page}
    if len(found) > limit and page:
        body["next"] = page[-1].receipt.position
    return answer(body)


@router.post("/sessions/{id}/inbox", response_model=Receipt, status_code=202)
async def send(
    caller: Writer,
    id: SessionIdPath,
    body: bodies.SendBody,
    encoding: Encoding,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Put a message into the inbox. A worker handles it later."""
    receipt = await caller.db.broker.send(
        id,
        await encoding.one(caller, body.message),
        sender=body.sender,
        author=body.author,
        metadata=body.metadata,
        when_busy=body.when_busy,
        idempotency_key=idempotency_key,
    )
    return answer(receipt, 202)


@router.post("/sessions/{id}/children", response_model=SpawnedSession, status_code=201)
async def spawn(
    caller: Writer,
    id: SessionIdPath,
    body: bodies.SpawnBody,
    encoding: Encoding,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Create a child session and send it a first message."""
    request = SpawnRequest(**{name: getattr(body, name) for name in body.model_fields_set})
    # The model would copy an encoded message.
    request = request.model_copy(update={"prompt": await encoding.one(caller, body.prompt)})
    child = await caller.db.broker.spawn(id, request, idempotency_key=idempotency_key)
    return answer(child, 201)


@router.get(f"/sessions/{{id}}/inbox/{{position:{NUMBER}}}", response_model=Outcome)
async def outcome(
    request: Request, caller: Reader, id: SessionIdPath, position: Position, wait: Wait = None
) -> Response:
    """Show the status of a message and the reply to it, now or when it is finished."""
    receipt = _receipt(id, position)
    if wait is not None:
        finished = await while_connected(request, caller.db.broker.wait(receipt, wait))
        return unheard() if finished is None else answer(finished)
    return answer(await caller.db.broker.outcome(receipt))


@router.delete(f"/sessions/{{id}}/inbox/{{position:{NUMBER}}}", response_model=Outcome)
async def cancel(
    caller: Writer, id: SessionIdPath, position: Position, keep_partial: bool = True
) -> Response:
    """Cancel one message. A message that is finished stays as it is."""
    cancelled = await caller.db.broker.cancel(_receipt(id, position), keep_partial=keep_partial)
    return answer(cancelled)


@router.post(f"/sessions/{{id}}/inbox/{{position:{NUMBER}}}/requeue", status_code=204)
async def requeue(caller: Writer, id: SessionIdPath, position: Position) -> Response:
    """Put a dead message back into the inbox."""
    await caller.db.broker.requeue(_receipt(id, position))
    return Response(status_code=204)


@router.post("/sessions/{id}/interrupt", response_model=results.Outcomes)
async def interrupt(
    caller: Writer,
    id: SessionIdPath,
    body: bodies.Interrupt = Body(default_factory=bodies.Interrupt),
) -> Response:
    """Stop the running turn. The session lives on."""
    stopped = await caller.db.broker.interrupt(
        id, subtree=body.subtree, keep_partial=body.keep_partial
    )
    return answer({"outcomes": stopped})


@router.get("/dead-letters", response_model=results.Outcomes)
async def dead_letters(caller: Reader, session: str | None = None, limit: Limit = 100) -> Response:
    """Show messages whose attempts all failed, newest last."""
    return answer({"outcomes": await caller.db.broker.dead_letters(session, limit=limit)})


@router.post("/dead-letters/requeue", response_model=results.Requeued)
async def requeue_all(
    caller: Admin, body: bodies.RequeueAll = Body(default_factory=bodies.RequeueAll)
) -> Response:
    """Put many dead messages back into their inboxes."""
    if body.since is not None and body.since.tzinfo is None:
        raise InvalidArgument("since must have a time zone, as in 2026-01-31T12:00:00Z")
    count = await caller.db.broker.requeue_all(body.session, since=body.since, error=body.error)
    return answer({"requeued": count})


@router.get("/questions", response_model=results.Questions)
async def questions(
    caller: Reader, session: str | None = None, limit: Limit = 100, after: str | None = None
) -> Response:
    """Show the open questions to people, the oldest first."""
    found = await caller.db.broker.questions(session, limit=limit + 1, after=question_at(after))
    page = found[:limit]
    body: dict[str, Any] = {"questions": page}
    if len(found) > limit and page:
        body["next"] = place_of_question(page[-1])
    return answer(body)


@router.post("/questions/{id}/answer", response_model=Receipt, status_code=202)
async def answer_question(
    caller: Writer,
    id: SessionIdPath,
    body: bodies.AnswerBody,
    encoding: Encoding,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Answer an open question."""
    message = await encoding.one(caller, body.message)
    receipt = await caller.db.broker.answer(
        id, message, author=body.author, idempotency_key=idempotency_key
    )
    return answer(receipt, 202)


@router.get("/search", response_model=results.Hits)
async def search(
    caller: Reader,
    query: str,
    channel: str | None = None,
    peer: str | None = None,
    root: str | None = None,
    limit: Limit = 20,
    after: str | None = None,
) -> Response:
    """Find messages by their words, the newest first."""
    found = await caller.db.broker.search(
        query, channel=channel, peer=peer, root=root, limit=limit, after=after
    )
    body: dict[str, Any] = {"hits": found}
    if found and len(found) == limit:
        body["next"] = found[-1].cursor
    return answer(body)


def _receipt(id: str, position: int) -> Receipt:
    return Receipt(session_id=SessionId(id), position=position)

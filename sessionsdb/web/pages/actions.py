"""The forms of the pages: each does one verb, and leads back to a page."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Form, Path, Response
from fastapi.responses import RedirectResponse

from sessionsdb.admin.dead_letters import requeue_kind as requeue_kind_of
from sessionsdb.errors import IdempotencyConflict, SessionsDBError
from sessionsdb.types import Receipt, SessionId
from sessionsdb.web.api.parameters import SessionIdPath
from sessionsdb.web.api.problems import status_and_detail
from sessionsdb.web.pages.access import AdminPage, WriterPage
from sessionsdb.web.pages.rendering import page, session_url

router = APIRouter()

PositionPath = Annotated[int, Path(ge=1, le=2**63 - 1)]
Text = Annotated[str, Form()]


def back_to(url: str) -> Response:
    return RedirectResponse(url, status_code=303)


def failed(caller: WriterPage, error: SessionsDBError, back: str) -> Response:
    """Return the page that says why a form was refused."""
    status, detail = status_and_detail(error)
    return page("refused.html", caller, status=status, detail=detail, back=back)


@router.post("/sessions/{id}/send")
async def send(
    caller: WriterPage,
    id: SessionIdPath,
    text: Text,
    author: Text = "",
    interrupt: Text = "",
    key: Text = "",
) -> Response:
    """Send a message, once for each ``key``. With ``interrupt`` the running turn is stopped first.

    A browser that goes back shows the form with its old key. So another message with a used key is
    sent without the key.
    """
    back = session_url(id)
    deliver = partial(
        caller.db.broker.send,
        id,
        text,
        author=author.strip() or None,
        when_busy="interrupt" if interrupt else "queue",
    )
    try:
        try:
            await deliver(idempotency_key=key or None)
        except IdempotencyConflict:
            await deliver()
    except SessionsDBError as error:
        return failed(caller, error, back)
    return back_to(back)


@router.post("/sessions/{id}/interrupt")
async def interrupt(caller: WriterPage, id: SessionIdPath, subtree: Text = "") -> Response:
    """Stop what runs. The session lives on."""
    back = session_url(id)
    try:
        await caller.db.broker.interrupt(id, subtree=bool(subtree))
    except SessionsDBError as error:
        return failed(caller, error, back)
    return back_to(back)


@router.post("/sessions/{id}/inbox/{position}/cancel")
async def cancel(caller: WriterPage, id: SessionIdPath, position: PositionPath) -> Response:
    back = session_url(id)
    try:
        await caller.db.broker.cancel(Receipt(session_id=SessionId(id), position=position))
    except SessionsDBError as error:
        return failed(caller, error, back)
    return back_to(back)


@router.post("/sessions/{id}/inbox/{position}/requeue")
async def requeue(
    caller: WriterPage, id: SessionIdPath, position: PositionPath, back: Text = ""
) -> Response:
    """Put a dead message back into the inbox."""
    place = "/dead-letters" if back == "dead-letters" else session_url(id)
    try:
        await caller.db.broker.requeue(Receipt(session_id=SessionId(id), position=position))
    except SessionsDBError as error:
        return failed(caller, error, place)
    return back_to(place)


@router.post("/dead-letters/requeue")
async def requeue_kind(caller: AdminPage, error: Text) -> Response:
    """Put all dead messages with one kind of error back into their inboxes."""
    try:
        await requeue_kind_of(caller.db, error)
    except SessionsDBError as problem:
        return failed(caller, problem, "/dead-letters")
    return back_to("/dead-letters")


@router.post("/questions/{id}/answer")
async def answer(
    caller: WriterPage, id: SessionIdPath, text: Text, author: Text = "", back: Text = ""
) -> Response:
    """Answer a question. The id of a question has the session's id in it."""
    place = "/questions" if back == "questions" else session_url(id.rpartition(":")[0])
    try:
        await caller.db.broker.answer(id, text, author=author.strip() or None)
    except SessionsDBError as error:
        return failed(caller, error, place)
    return back_to(place)


@router.post("/sessions/{id}/fork")
async def fork(caller: WriterPage, id: SessionIdPath, at: Annotated[int, Form(ge=0)]) -> Response:
    """Make a new session of the transcript up to a message, and show it."""
    try:
        made = await caller.db.broker.fork(id, at=at)
    except SessionsDBError as error:
        return failed(caller, error, session_url(id))
    return back_to(session_url(made.id))


@router.post("/sessions/{id}/end")
async def end(caller: WriterPage, id: SessionIdPath, subtree: Text = "") -> Response:
    back = session_url(id)
    try:
        await caller.db.broker.end(id, subtree=bool(subtree))
    except SessionsDBError as error:
        return failed(caller, error, back)
    return back_to(back)


@router.post("/sessions/{id}/reopen")
async def reopen(caller: WriterPage, id: SessionIdPath) -> Response:
    back = session_url(id)
    try:
        await caller.db.broker.reopen(id)
    except SessionsDBError as error:
        return failed(caller, error, back)
    return back_to(back)


@router.post("/schedules/{schedule}/delete")
async def unschedule(caller: WriterPage, schedule: str) -> Response:
    try:
        await caller.db.broker.unschedule(schedule)
    except SessionsDBError as error:
        return failed(caller, error, "/schedules")
    return back_to("/schedules")

"""The pages that are lists: sessions, questions, schedules, dead letters, and the search."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress

from fastapi import APIRouter, Response

from sessionsdb.database import SessionsDB
from sessionsdb.errors import SessionsDBError
from sessionsdb.operations.requeuing import kind_of_error
from sessionsdb.types import SessionSummary
from sessionsdb.web.api.parameters import (
    place_of,
    place_of_question,
    question_at,
    session_at,
)
from sessionsdb.web.api.problems import status_and_detail
from sessionsdb.web.pages.access import ReaderPage
from sessionsdb.web.pages.outcomes import with_messages
from sessionsdb.web.pages.rendering import page

router = APIRouter()

ROWS = 50

NAMED = 10
"""The sessions of one peer that a search shows."""


@router.get("/sessions")
async def sessions(
    caller: ReaderPage,
    channel: str = "",
    peer: str = "",
    ended: bool = False,
    after: str | None = None,
) -> Response:
    """Show the sessions, the one that was active last first."""
    found = await caller.db.broker.list(
        channel=channel or None,
        peer=peer or None,
        include_ended=ended,
        limit=ROWS + 1,
        after=session_at(after),
        details=True,
        newest_first=True,
    )
    rows = found[:ROWS]
    return page(
        "sessions.html",
        caller,
        sessions=rows,
        channel=channel,
        peer=peer,
        ended=ended,
        next=place_of(rows[-1]) if len(found) > ROWS else None,
    )


@router.get("/questions")
async def questions(caller: ReaderPage, after: str | None = None) -> Response:
    found = await caller.db.broker.questions(limit=ROWS + 1, after=question_at(after))
    rows = found[:ROWS]
    return page(
        "questions.html",
        caller,
        questions=rows,
        next=place_of_question(rows[-1]) if len(found) > ROWS else None,
    )


@router.get("/schedules")
async def schedules(caller: ReaderPage) -> Response:
    return page("schedules.html", caller, schedules=await caller.db.broker.schedules())


@router.get("/dead-letters")
async def dead_letters(caller: ReaderPage) -> Response:
    """Show the newest dead messages, and how many have the same kind of error."""
    newest = (await caller.db.broker.dead_letters(limit=ROWS))[::-1]
    dead = await with_messages(caller.db, newest)
    kinds = Counter(kind_of_error(outcome.error or "") for outcome in dead)
    return page(
        "dead_letters.html",
        caller,
        dead=dead,
        kinds=kinds.most_common(),
        is_cut=len(dead) == ROWS,
    )


@router.get("/search")
async def search(
    caller: ReaderPage, query: str = "", channel: str = "", peer: str = "", after: str | None = None
) -> Response:
    """Find messages by their words, and sessions whose id or peer is the query."""
    hits, problem = [], None
    sessions: list[SessionSummary] = []
    if query.strip():
        if after is None:
            sessions = await _sessions_named(caller.db, query.strip())
        try:
            hits = await caller.db.broker.search(
                query, channel=channel or None, peer=peer or None, limit=ROWS, after=after
            )
        except SessionsDBError as error:
            problem = status_and_detail(error)[1]
    return page(
        "search.html",
        caller,
        query=query,
        channel=channel,
        peer=peer,
        sessions=sessions,
        hits=hits,
        problem=problem,
        next=hits[-1].cursor if len(hits) == ROWS else None,
    )


async def _sessions_named(db: SessionsDB, name: str) -> list[SessionSummary]:
    """Return the session with this id, and the newest sessions of this peer."""
    found: dict[str, SessionSummary] = {}
    with suppress(SessionsDBError):  # No id, or no session.
        found[name] = await db.broker.get(name)
    with suppress(SessionsDBError):
        peers = await db.broker.list(
            peer=name, include_ended=True, limit=NAMED, details=True, newest_first=True
        )
        found |= {one.id: one for one in peers}
    return list(found.values())

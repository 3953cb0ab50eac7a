"""The first page: what runs, waits, is held and died, now."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Response

from sessionsdb.admin.status import read_status
from sessionsdb.web.pages.access import ReaderPage
from sessionsdb.web.pages.rendering import page

router = APIRouter()

SHOWN = 25
"""The rows of each list on the page."""


@router.get("/")
async def now(caller: ReaderPage) -> Response:
    """Show the work of this moment. A script asks for the page again every two seconds."""
    broker = caller.db.broker
    status, questions, dead, recent = await asyncio.gather(
        read_status(caller.db, limit=SHOWN),
        broker.questions(limit=SHOWN),
        broker.dead_letters(limit=5),
        broker.list(limit=SHOWN, newest_first=True, include_ended=True, details=True),
    )
    return page(
        "now.html",
        caller,
        status=200,
        now=status,
        questions=questions,
        dead=dead[::-1],
        recent=recent,
    )

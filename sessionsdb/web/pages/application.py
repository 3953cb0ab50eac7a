"""Add the pages to the application: their routes, their files and their errors."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import RedirectResponse
from starlette.staticfiles import StaticFiles

from sessionsdb.web.pages import actions, lists, login, now, reports, session, tree
from sessionsdb.web.pages.access import LoginNeeded

STATIC = Path(__file__).with_name("static")


def add_pages(app: FastAPI) -> None:
    """Add the pages to an application that has the API and its gate."""
    router = APIRouter(include_in_schema=False)
    for part in (login, now, session, tree, lists, reports, actions):
        router.include_router(part.router)
    app.include_router(router)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")

    @app.exception_handler(LoginNeeded)
    async def to_the_login(_: Request, error: LoginNeeded) -> Response:
        return RedirectResponse(error.location, status_code=303)

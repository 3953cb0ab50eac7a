"""Add the pages to the application: their routes, their files and their errors."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import RedirectResponse
from starlette.staticfiles import StaticFiles

from sessionsdb.web.pages import actions, lists, login, now, reports, session, tree
from sessionsdb.web.pages.access import LoginNeeded
from sessionsdb.web.pages.refusals import as_page

STATIC = Path(__file__).with_name("static")


def add_pages(app: FastAPI) -> None:
    """Add the pages to an application that has the API and its gate."""
    router = APIRouter(include_in_schema=False)
    for part in (login, now, session, tree, lists, reports, actions):
        router.include_router(part.router)
    app.include_router(router)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    for error, handler in list(app.exception_handlers.items()):
        app.exception_handlers[error] = _for_people(handler)

    @app.exception_handler(LoginNeeded)
    async def to_the_login(request: Request, error: LoginNeeded) -> Response:
        if "hx-request" in request.headers:  # htmx would look for its part in the login page
            return Response(status_code=401, headers={"HX-Redirect": error.location})
        return RedirectResponse(error.location, status_code=303)


def _for_people(
    handler: Callable[..., Any],
) -> Callable[[Request, Exception], Coroutine[Any, Any, Response]]:
    """Return a handler of errors that answers a browser which opens a page with a page."""

    async def answered(request: Request, error: Exception) -> Response:
        answer = handler(request, error)
        response: Response = await answer if inspect.isawaitable(answer) else answer
        return as_page(response, request.url.path, request.headers)

    return answered

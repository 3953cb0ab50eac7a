"""Log in with a token of ``sessionsdb token``, and log out."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import RedirectResponse

from sessionsdb.web.api.access import COOKIE, gate_of
from sessionsdb.web.api.problems import Refused
from sessionsdb.web.pages.access import refuse_foreign_form
from sessionsdb.web.pages.rendering import page

router = APIRouter()

SAME_SITE: Literal["lax"] = "lax"
"""The browser sends the cookie with a link of another site, but with no form, frame or script of
one. With ``strict`` a person who follows a link would have to log in again."""

DAYS = 7
"""A browser keeps the cookie for so long. The token itself may expire before."""


@router.get("/login")
async def show_login(back: str = "/") -> Response:
    """Show the form for a token."""
    return page("login.html", None, back=_own_path(back), problem=None)


@router.post("/login")
async def login(
    request: Request, token: Annotated[str, Form()], back: Annotated[str, Form()] = "/"
) -> Response:
    """Check the token, and keep it in a cookie that no script can read."""
    refuse_foreign_form(request)
    try:
        await gate_of(request).caller(request, f"Bearer {token.strip()}")
    except Refused as refused:
        response: Response = page(
            "login.html", None, status=refused.status, back=_own_path(back), problem=str(refused)
        )
        response.headers.update(refused.headers)
        return response
    response = RedirectResponse(_own_path(back), status_code=303)
    response.set_cookie(
        COOKIE,
        token.strip(),
        max_age=DAYS * 86_400,
        httponly=True,
        samesite=SAME_SITE,
        secure=_is_behind_tls(request),
    )
    return response


@router.post("/logout")
async def logout(request: Request) -> Response:
    refuse_foreign_form(request)
    response = RedirectResponse("/login", status_code=303)
    response.delete_cookie(COOKIE, httponly=True, samesite=SAME_SITE)
    return response


def _own_path(back: str) -> str:
    """Return a path on this server: a link to the login must not lead to another host."""
    is_own = back.startswith("/") and not back.startswith(("//", "/\\")) and back.isprintable()
    return back if is_own else "/"


def _is_behind_tls(request: Request) -> bool:
    """Whether the browser uses TLS: to this server, or to the proxy before it."""
    origin = request.headers.get("origin", "")
    return request.url.scheme == "https" or origin.startswith("https://")

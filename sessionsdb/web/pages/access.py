"""The person who looks at a page: a token in a cookie, or nobody on loopback."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote

from fastapi import Depends, Request

from sessionsdb.admin.tokens import RIGHTS, Rights
from sessionsdb.web.api.access import COOKIE, Caller, gate_of
from sessionsdb.web.api.problems import Refused

_SAFE_SITES = ("same-origin", "none")


class LoginNeeded(Exception):
    """The page needs a token that the browser does not have. ``location`` is the login page."""

    def __init__(self, request: Request) -> None:
        super().__init__("log in with a token")
        path = request.url.path
        query = f"?{request.url.query}" if request.url.query else ""
        # After a form the browser goes back to the start: a form is never sent again by a link.
        back = path + query if request.method == "GET" else "/"
        self.location = f"/login?back={quote(back, safe='')}"


async def caller_of(request: Request) -> Caller:
    """Return the caller of a page. Raises ``LoginNeeded``.

    Raises ``Refused`` for an address that tried too many tokens.
    """
    secret = request.cookies.get(COOKIE)
    authorization = None if secret is None else f"Bearer {secret}"
    try:
        return await gate_of(request).caller(request, authorization)
    except Refused as refused:
        if refused.status != 401:
            raise
        raise LoginNeeded(request) from refused


class _Requires:
    """The dependency of a page that needs certain rights. It gives the caller."""

    def __init__(self, rights: Rights) -> None:
        self._rights = rights

    async def __call__(self, request: Request) -> Caller:
        if request.method == "POST":
            refuse_foreign_form(request)
        caller = await caller_of(request)
        if RIGHTS.index(caller.rights) < RIGHTS.index(self._rights):
            raise Refused(403, "Forbidden", f"this needs a token with the right {self._rights}")
        return caller


def refuse_foreign_form(request: Request) -> None:
    """Refuse a form that a page of another site sent.

    Every browser of today sends ``Sec-Fetch-Site`` or ``Origin`` with a form. The cookie is
    ``SameSite=Lax`` as well. See the cheat sheet of OWASP about cross-site request forgery.
    """
    site = request.headers.get("sec-fetch-site")
    origin = request.headers.get("origin")
    if site is None and origin is None:
        raise Refused(403, "ForeignOrigin", "a form must be sent by a browser from its own page")
    if site is not None and site not in _SAFE_SITES:
        raise Refused(403, "ForeignOrigin", "a page of another origin may not send this form")


ReaderPage = Annotated[Caller, Depends(_Requires("read"))]
WriterPage = Annotated[Caller, Depends(_Requires("write"))]
AdminPage = Annotated[Caller, Depends(_Requires("admin"))]

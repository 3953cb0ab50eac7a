"""The bounds of a request, before any route sees it: its host, its origin, its rate, its place,
its size, its time."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection
from urllib.parse import unquote

from fastapi.security.utils import get_authorization_scheme_param
from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sessionsdb.http.connections import max_connections
from sessionsdb.http.health import HEALTH_PATH
from sessionsdb.web.api.access import COOKIE
from sessionsdb.web.api.app import PREFIX
from sessionsdb.web.api.problems import problem, retry_after
from sessionsdb.web.body_size import BodyTooLarge, bounded, is_too_large
from sessionsdb.web.pages.refusals import as_page
from sessionsdb.web.places import Places
from sessionsdb.web.rates import Rates, address_of

REQUEST_SECONDS = 90.0
"""A request has its answer after this time. A wait takes 60 s of it at most."""

MAX_REQUESTS = 1_000
"""Requests that run at once. Streams have places of their own."""

MAX_STREAMS = 10_000
"""Streams at once, and connections, as far as the process may have so many descriptors."""

HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"cache-control": b"no-store",
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
    b"referrer-policy": b"no-referrer",
}
"""Headers that every answer has, if the route set no other value."""

_STREAMS = re.compile(r"/api/v1/(?:sessions/[^/]*/events|export|import)|/sessions/[^/]*/live|/mcp")
"""Paths whose requests last, or have bounds of their own on bodies and numbers."""

_LISTENERS = re.compile(r"/api/v1/sessions/[^/]*/events|/sessions/[^/]*/live|/mcp")
"""Paths of streams that go on until their client leaves."""

_KEPT = re.compile(rb"%2[Ff5]")


class Bounds:
    """An ASGI application that refuses requests outside the bounds.

    ``hosts``: the names of the server in the header ``Host``, without a port. ``None``: any. A
    request that a page of another origin makes is refused: no page but the server's own may use it.
    A link to a page is followed from everywhere. ``rates``: how many requests each caller may make.
    """

    def __init__(self, app: ASGIApp, *, hosts: Collection[str] | None, rates: Rates) -> None:
        self._app = app
        self._hosts = None if hosts is None else frozenset(name.lower() for name in hosts)
        self._rates = rates
        self._requests = Places(MAX_REQUESTS)
        self._streams = Places(max_connections(MAX_STREAMS))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        scope = {**scope, "path": readable_path(scope)}
        is_stream = _STREAMS.fullmatch(scope["path"]) is not None
        refusal = self._refusal(scope, is_stream=is_stream) or self._refusal_by_rate(scope)
        places = self._streams if is_stream else self._requests
        caller = self._rates.caller_of(address_of(scope), _secret(scope))
        takes_place = scope["path"] != HEALTH_PATH  # which has to answer while the server is full
        if refusal is None and takes_place and not places.take(caller):
            refusal = _no_place(places, "streams" if is_stream else "requests")
        if refusal is not None:
            await as_page(refusal, scope["path"], headers)(scope, receive, _with_headers(send))
            return
        try:
            if is_stream:
                await self._app(scope, receive, _with_headers(send))
            else:
                await self._answer(scope, receive, send)
        finally:
            if takes_place:
                places.give_back(caller)

    def _refusal(self, scope: Scope, *, is_stream: bool) -> Response | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        name = re.sub(r":\d+$", "", host).lower()
        if self._hosts is not None and name not in self._hosts:
            detail = f"this server has no name {name!r}; see --allowed-host"
            return problem(421, "UnknownHost", detail)
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2].lower() != host.lower():
            return _foreign_origin()
        is_foreign = headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
        if is_foreign and (is_stream or not _opens_a_page(scope, headers)):
            return _foreign_origin()
        if not is_stream and is_too_large(headers):
            return problem(413, "BodyTooLarge", BodyTooLarge().detail)
        return None

    def _refusal_by_rate(self, scope: Scope) -> Response | None:
        """Count a request. Return the refusal of one that is one too many."""
        if scope["path"] == HEALTH_PATH:  # it asks the database once a second, for all
            return None
        seconds = self._rates.count_request(address_of(scope), _secret(scope))
        if not seconds:
            return None
        return problem(
            429,
            "RateExceeded",
            "this caller sends too many requests; send fewer a second, see --rate",
            headers={"Retry-After": retry_after(seconds)},
        )

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                await self._app(scope, bounded(receive), _with_headers(watched))
        except TimeoutError:
            if started:  # the connection is closed, so that the client sees no whole answer
                raise
            response = problem(504, "Timeout", f"no answer within {REQUEST_SECONDS:.0f} s")
            shown = as_page(response, scope["path"], Headers(scope=scope))
            await shown(scope, receive, _with_headers(send))


def _opens_a_page(scope: Scope, headers: Headers) -> bool:
    """Return whether a browser shows the answer as a page of its own, as for a link in a mail.

    The site with the link can't read such an answer, and a ``GET`` changes nothing. A frame, a
    picture or a script of another site is no page of its own.
    """
    return (
        scope["method"] == "GET"
        and headers.get("sec-fetch-mode") == "navigate"
        and headers.get("sec-fetch-dest") == "document"
        and not scope["path"].startswith(f"{PREFIX}/")
    )


def _no_place(places: Places, noun: str) -> Response:
    if places.is_full:
        return problem(503, "TooManyRequests", f"the server has no room for more {noun}; try again")
    detail = f"this caller has more {noun} open than the server has room for; end some of them"
    return problem(429, "TooManyAtOnce", detail)


def _foreign_origin() -> Response:
    return problem(403, "ForeignOrigin", "a page of another origin may not use this server")


def is_listener(scope: Scope) -> bool:
    """Return whether a request is for a stream of events, which goes on until its client leaves."""
    return scope["method"] == "GET" and _LISTENERS.fullmatch(readable_path(scope)) is not None


def is_import(scope: Scope) -> bool:
    """Return whether a request is an import, whose body is read as fast as its lines are saved."""
    return scope["method"] == "POST" and readable_path(scope) == f"{PREFIX}/import"


def readable_path(scope: Scope) -> str:
    """Return the decoded path, in which an encoded slash of an id is no slash.

    ``%2F`` and ``%25`` stay encoded. The routes decode the rest of an id.
    """
    raw = scope.get("raw_path")
    if not raw or not _KEPT.search(raw):
        return str(scope["path"])
    kept = _KEPT.sub(lambda found: b"%25" + found[0][1:], raw)
    return unquote(kept.decode("ascii", "replace"))


def _secret(scope: Scope) -> str | None:
    """Return the token of a request: of its header, or of the cookie of the pages."""
    connection = HTTPConnection(scope)
    authorization = connection.headers.get("authorization")
    if authorization is not None:
        return get_authorization_scheme_param(authorization)[1]
    return connection.cookies.get(COOKIE)


def _with_headers(send: Send) -> Send:
    async def completed(message: Message) -> None:
        if message["type"] == "http.response.start":
            given = {name.lower() for name, _ in message.get("headers", ())}
            more = [(name, value) for name, value in HEADERS.items() if name not in given]
            message = {**message, "headers": [*message.get("headers", ()), *more]}
        await send(message)

    return completed

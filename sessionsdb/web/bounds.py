"""The bounds of a request, before any route sees it: its host, its origin, its rate, its size, its
time."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection
from urllib.parse import unquote

from fastapi.security.utils import get_authorization_scheme_param
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sessionsdb.http.health import HEALTH_PATH
from sessionsdb.web.api.access import COOKIE
from sessionsdb.web.api.problems import problem, retry_after
from sessionsdb.web.rates import Rates, address_of

MAX_BODY_BYTES = 32 * 1024 * 1024
"""The bytes of a body, and of a line of an import."""

REQUEST_SECONDS = 90.0
"""A request has its answer after this time. A wait takes 60 s of it at most."""

MAX_REQUESTS = 500
"""Requests that run at once. Listeners of events are not counted."""

HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"cache-control": b"no-store",
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
    b"referrer-policy": b"no-referrer",
}
"""Headers that every answer has, if the route set no other value."""

_STREAMS = re.compile(r"/api/v1/(?:sessions/[^/]*/events|export|import)|/sessions/[^/]*/live|/mcp")
"""Paths whose requests last, or have bounds of their own on bodies and numbers."""

_KEPT = re.compile(rb"%2[Ff5]")


class BodyTooLarge(HTTPException):
    """The body of a request has more than ``MAX_BODY_BYTES``."""

    def __init__(self) -> None:
        super().__init__(413, f"the body has more than {MAX_BODY_BYTES} bytes")


class Bounds:
    """An ASGI application that refuses requests outside the bounds.

    ``hosts``: the names of the server in the header ``Host``, without a port. ``None``: any. A
    request that a page of another origin makes is refused: no page but the server's own may use it.
    ``rates``: how many requests each caller may make.
    """

    def __init__(self, app: ASGIApp, *, hosts: Collection[str] | None, rates: Rates) -> None:
        self._app = app
        self._hosts = None if hosts is None else frozenset(name.lower() for name in hosts)
        self._rates = rates
        self._running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        scope = {**scope, "path": readable_path(scope)}
        is_stream = _STREAMS.fullmatch(scope["path"]) is not None
        refusal = self._refusal(headers, is_stream=is_stream)
        if refusal is not None:
            status, name, detail = refusal
            await problem(status, name, detail)(scope, receive, send)
            return
        if seconds := self._count(scope):
            response = problem(
                429,
                "RateExceeded",
                "this caller sends too many requests; send fewer a second, see --rate",
                headers={"Retry-After": retry_after(seconds)},
            )
            await response(scope, receive, send)
            return
        if is_stream:
            await self._app(scope, receive, _with_headers(send))
            return
        self._running += 1
        try:
            await self._answer(scope, receive, send)
        finally:
            self._running -= 1

    def _refusal(self, headers: Headers, *, is_stream: bool) -> tuple[int, str, str] | None:
        host = headers.get("host", "")
        name = re.sub(r":\d+$", "", host).lower()
        if self._hosts is not None and name not in self._hosts:
            return 421, "UnknownHost", f"this server has no name {name!r}; see --allowed-host"
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2].lower() != host.lower():
            return 403, "ForeignOrigin", "a page of another origin may not use this server"
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return 403, "ForeignOrigin", "a page of another origin may not use this server"
        length = headers.get("content-length", "0")
        if not is_stream and (not length.isdigit() or int(length) > MAX_BODY_BYTES):
            return 413, "BodyTooLarge", f"the body has more than {MAX_BODY_BYTES} bytes"
        if not is_stream and self._running >= MAX_REQUESTS:
            return 503, "TooManyRequests", f"{MAX_REQUESTS} requests run already; try again"
        return None

    def _count(self, scope: Scope) -> float:
        """Count a request. Return 0, or the seconds to wait where it is one too many."""
        if scope["path"] == HEALTH_PATH:  # it asks the database once a second, for all
            return 0.0
        return self._rates.count_request(address_of(scope), _secret(scope))

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                await self._app(scope, _bounded(receive), _with_headers(watched))
        except TimeoutError:
            if started:  # the connection is closed, so that the client sees no whole answer
                raise
            response = problem(504, "Timeout", f"no answer within {REQUEST_SECONDS:.0f} s")
            await response(scope, receive, send)


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


def _bounded(receive: Receive) -> Receive:
    size = 0

    async def counted() -> Message:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > MAX_BODY_BYTES:
            raise BodyTooLarge
        return message

    return counted


def _with_headers(send: Send) -> Send:
    async def completed(message: Message) -> None:
        if message["type"] == "http.response.start":
            given = {name.lower() for name, _ in message.get("headers", ())}
            more = [(name, value) for name, value in HEADERS.items() if name not in given]
            message = {**message, "headers": [*message.get("headers", ()), *more]}
        await send(message)

    return completed

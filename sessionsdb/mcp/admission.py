"""The shares of one token in the HTTP server: sessions of the protocol, and requests."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from dataclasses import dataclass, field

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_SESSIONS = 100
"""Sessions of the protocol that one token has open. A new one ends the one that is idle longest."""

MAX_REQUESTS = 200
"""Requests of one token that run at the same time. Calls that wait are among them."""

SESSION_HEADER = b"mcp-session-id"


@dataclass
class _Usage:
    requests: int = 0
    opening: int = 0
    sessions: OrderedDict[bytes, int] = field(default_factory=OrderedDict)
    """The requests in flight of each session, the session used last at the end."""


class Admission:
    """An ASGI application that keeps each token within its bounds. Without tokens all share one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._usage: defaultdict[str, _Usage] = defaultdict(_Usage)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        owner = getattr(getattr(scope.get("user"), "access_token", None), "client_id", "")
        usage = self._usage[owner]
        if usage.requests >= MAX_REQUESTS:
            told = f"this token has {MAX_REQUESTS} requests open already; wait for some of them"
            await _refuse(told)(scope, receive, send)
            return
        usage.requests += 1
        try:
            session = _header(scope["headers"])
            if session is not None and session in usage.sessions:
                await self._use(usage, session, scope, receive, send)
            elif session is None and scope["method"] == "POST":
                await self._open(usage, scope, receive, send)
            else:
                await self._app(scope, receive, send)
        finally:
            usage.requests -= 1

    async def _use(
        self, usage: _Usage, session: bytes, scope: Scope, receive: Receive, send: Send
    ) -> None:
        usage.sessions[session] += 1
        usage.sessions.move_to_end(session)
        gone = False

        async def watch(message: Message) -> None:
            nonlocal gone
            if message["type"] == "http.response.start":
                ended = scope["method"] == "DELETE" and message["status"] < 300
                gone = ended or message["status"] == 404
            await send(message)

        try:
            await self._app(scope, receive, watch)
        finally:
            if session in usage.sessions:
                usage.sessions[session] -= 1
                usage.sessions.move_to_end(session)
                if gone:
                    del usage.sessions[session]

    async def _open(self, usage: _Usage, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request that may open a session, and make room for that one first."""
        while len(usage.sessions) + usage.opening >= MAX_SESSIONS:
            idle = next((one for one, requests in usage.sessions.items() if not requests), None)
            if idle is None:
                told = f"this token has {MAX_SESSIONS} sessions in use; close some of them"
                await _refuse(told)(scope, receive, send)
                return
            del usage.sessions[idle]
            await self._end(idle, scope)
        opened: bytes | None = None

        async def watch(message: Message) -> None:
            nonlocal opened
            if message["type"] == "http.response.start" and message["status"] < 400:
                opened = _header(message.get("headers", ()))
                if opened is not None:
                    usage.sessions[opened] = 1
            await send(message)

        usage.opening += 1
        try:
            await self._app(scope, receive, watch)
        finally:
            usage.opening -= 1
            if opened is not None and opened in usage.sessions:
                usage.sessions[opened] -= 1

    async def _end(self, session: bytes, scope: Scope) -> None:
        """End a session in the way of a client: by DELETE, with the credentials of the request."""
        kept = [
            (name, value)
            for name, value in scope["headers"]
            if name
            not in (SESSION_HEADER, b"content-length", b"content-type", b"mcp-protocol-version")
        ]

        async def receive() -> Message:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(_message: Message) -> None:
            pass

        ending = {**scope, "method": "DELETE", "headers": [*kept, (SESSION_HEADER, session)]}
        await self._app(ending, receive, send)


def _header(headers: list[tuple[bytes, bytes]]) -> bytes | None:
    return next((bytes(value) for name, value in headers if name.lower() == SESSION_HEADER), None)


def _refuse(told: str) -> JSONResponse:
    error = {"jsonrpc": "2.0", "id": None, "error": {"code": -32000, "message": told}}
    return JSONResponse(error, status_code=429, headers={"Retry-After": "5"})

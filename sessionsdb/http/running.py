"""Run an application on a socket until a signal, and end its requests then."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Literal

import uvicorn
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sessionsdb.http.connections import BACKLOG, BoundedProtocol

SHUTDOWN_SECONDS = 3.0
"""After a signal the server runs for this time at most."""

FINISH_SECONDS = 2.0
"""Running requests have this time to finish. The rest is for the end of those that have not."""

RETRY_SECONDS = "5"


async def run(
    app: ASGIApp,
    listener: socket.socket,
    *,
    protocol: type[BoundedProtocol],
    lifespan: Literal["on", "off"],
    is_listener: Callable[[Scope], bool],
) -> None:
    """Serve until SIGTERM or SIGINT.

    ``is_listener``: whether the answer to a request is a stream of events that goes on until the
    client leaves. Such an answer ends at once after a signal. Its client connects again.
    """
    requests = Requests(app, is_listener)
    config = uvicorn.Config(
        requests,
        http=protocol,
        ws="none",
        backlog=BACKLOG,
        log_level="warning",
        access_log=False,
        lifespan=lifespan,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=int(SHUTDOWN_SECONDS),
    )
    await _Server(config, requests).serve(sockets=[listener])


class Requests:
    """An ASGI application whose requests the server can end.

    Without that, uvicorn cancels their tasks, and logs a traceback for each.
    """

    def __init__(self, app: ASGIApp, is_listener: Callable[[Scope], bool]) -> None:
        self._app = app
        self._is_listener = is_listener
        self._listeners: set[asyncio.Task[object]] = set()
        self._others: set[asyncio.Task[object]] = set()
        self._ended: set[asyncio.Task[object]] = set()
        """The tasks that were cancelled by ``stop``."""
        self._is_stopping = False

    def stop(self) -> None:
        """End all streams of events now, and other requests after ``FINISH_SECONDS``."""
        self._is_stopping = True
        self._end(self._listeners)
        asyncio.get_running_loop().call_later(FINISH_SECONDS, self._end, self._others)

    def _end(self, tasks: set[asyncio.Task[object]]) -> None:
        for task in tasks:
            self._ended.add(task)
            task.cancel("the server stops")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_listener = self._is_listener(scope)
        if is_listener and self._is_stopping:
            await _refusal(scope)(scope, receive, send)
            return
        task = asyncio.current_task()
        assert task is not None
        running = self._listeners if is_listener else self._others
        running.add(task)
        answer = _Answer(send)
        try:
            await self._app(scope, receive, answer.send)
        except asyncio.CancelledError:
            if task not in self._ended:
                raise
            task.uncancel()
            if not answer.has_begun:
                await _refusal(scope)(scope, receive, send)
            elif is_listener and not answer.is_complete:
                await send({"type": "http.response.body", "body": b"", "more_body": False})
            # Any other answer stays incomplete: its client must not take it for a whole one.
        finally:
            running.discard(task)
            self._ended.discard(task)


class _Answer:
    """The answer to a request, as far as it was sent."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.has_begun = False
        self.is_complete = False

    async def send(self, message: Message) -> None:
        self.has_begun = True
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self.is_complete = True
        await self._send(message)


def _refusal(scope: Scope) -> JSONResponse:
    detail = "the server stops; try again"
    if scope["method"] not in ("GET", "HEAD"):
        detail = (
            "the server stops, and the call may have taken effect; read before you repeat it, or "
            "repeat it with its Idempotency-Key"
        )
    problem = {
        "type": "urn:sessionsdb:server-stops",
        "title": "Server stops",
        "status": 503,
        "detail": detail,
    }
    return JSONResponse(
        problem, 503, {"Retry-After": RETRY_SECONDS}, media_type="application/problem+json"
    )


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, requests: Requests) -> None:
        super().__init__(config)
        self._requests = requests

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._requests.stop()
        await super().shutdown(sockets)

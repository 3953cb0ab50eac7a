"""``GET /health``: whether the server and its database answer. It needs no token."""

from __future__ import annotations

import asyncio
import time

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from sessionsdb.database import SessionsDB
from sessionsdb.engine.loop_lock import LoopLock
from sessionsdb.errors import SessionsDBError

HEALTH_PATH = "/health"

DATABASE_SECONDS = 3.0
"""A database that does not answer in this time counts as failed."""

KEPT_SECONDS = 1.0
"""An answer serves all requests of this time, so that no one loads the database without a token."""


class Health:
    """An ASGI application that answers ``/health`` and gives all other requests to ``app``.

    The status is 200, or 503 while the database fails.
    """

    def __init__(self, app: ASGIApp, db: SessionsDB) -> None:
        self._app = app
        self._db = db
        self._lock = LoopLock()
        self._answer: tuple[float, bool] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != HEALTH_PATH:
            await self._app(scope, receive, send)
            return
        if scope["method"] not in ("GET", "HEAD"):
            await JSONResponse({"status": "method not allowed"}, 405)(scope, receive, send)
            return
        healthy = await self._is_healthy()
        answer = {"status": "ok" if healthy else "the database does not answer"}
        await JSONResponse(answer, 200 if healthy else 503)(scope, receive, send)

    async def _is_healthy(self) -> bool:
        async with self._lock.here():
            if self._answer is None or time.monotonic() - self._answer[0] > KEPT_SECONDS:
                healthy = await self._ask()
                # Its age begins now: a question may take longer than the answer is kept.
                self._answer = (time.monotonic(), healthy)
            return self._answer[1]

    async def _ask(self) -> bool:
        try:
            async with asyncio.timeout(DATABASE_SECONDS):
                await self._db.store.version("health")
        except (SessionsDBError, TimeoutError):
            return False
        return True

"""Serve the API: the application, its socket and its bounds."""

from __future__ import annotations

from collections.abc import Callable, Collection

import uvicorn
from starlette.types import ASGIApp

from sessionsdb.database import SessionsDB
from sessionsdb.errors import InvalidArgument
from sessionsdb.http.connections import BACKLOG, BoundedProtocol
from sessionsdb.http.health import Health
from sessionsdb.http.listening import in_url, is_loopback, listen, loopback_names
from sessionsdb.web.api.access import Gate
from sessionsdb.web.api.app import api_application
from sessionsdb.web.bounds import Bounds
from sessionsdb.web.pages import add_pages

SHUTDOWN_SECONDS = 3
"""The time for running requests to finish after a signal."""

MAX_LISTENERS = 10_000
"""Connections at once, as far as the process may have so many descriptors."""


class _Protocol(BoundedProtocol):
    wanted_connections = MAX_LISTENERS


async def serve(
    db: SessionsDB,
    *,
    host: str = "127.0.0.1",
    port: int = 8700,
    require_token: bool = False,
    allowed_hosts: Collection[str] = (),
    ready: Callable[[str], None] = lambda _url: None,
) -> None:
    """Serve until SIGTERM or SIGINT.

    On a loopback address callers without a token have all rights in the namespace of ``db``, unless
    ``require_token`` is set. On all other addresses every request needs a token. ``allowed_hosts``:
    more names of the server, as a proxy passes them in the header ``Host``. ``port=0`` takes a free
    port. ``ready`` is called with the URL when clients can connect. Raises ``InvalidArgument`` if
    the address can't be used.
    """
    listener = listen(host, port)
    try:
        app = application(db, host=host, require_token=require_token, allowed_hosts=allowed_hosts)
        config = uvicorn.Config(
            app,
            http=_Protocol,
            ws="none",
            backlog=BACKLOG,
            log_level="warning",
            access_log=False,
            lifespan="off",
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        )
        ready(f"http://{in_url(host)}:{listener.getsockname()[1]}")
        await uvicorn.Server(config).serve(sockets=[listener])
    finally:
        listener.close()


def application(
    db: SessionsDB,
    *,
    host: str = "127.0.0.1",
    require_token: bool = False,
    allowed_hosts: Collection[str] = (),
) -> ASGIApp:
    """Return the server as an ASGI application, for a host with its own web server.

    ``db`` must be open. The web server has to bound the number of connections. ``GET /health``
    needs no token.
    """
    for name in allowed_hosts:
        if not name or (":" in name.strip("[]") and not name.startswith("[")):
            raise InvalidArgument(f"{name!r} is no name of a host; give it without a port")
    open_access = is_loopback(host) and not require_token
    names = {*loopback_names(host), *allowed_hosts} if is_loopback(host) or allowed_hosts else None
    app = api_application(Gate(db, open_access=open_access))
    add_pages(app)
    return Bounds(Health(app, db), hosts=names)

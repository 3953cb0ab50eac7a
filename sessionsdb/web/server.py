"""Serve the API, the pages and MCP: the application, its socket and its bounds."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from starlette.types import ASGIApp

from sessionsdb.database import SessionsDB
from sessionsdb.errors import InvalidArgument
from sessionsdb.http.connections import BoundedProtocol
from sessionsdb.http.health import Health
from sessionsdb.http.listening import in_url, is_loopback, listen, loopback_names
from sessionsdb.http.running import run
from sessionsdb.web.api.access import Gate
from sessionsdb.web.api.app import api_application
from sessionsdb.web.bounds import MAX_STREAMS, Bounds, is_import, is_listener
from sessionsdb.web.pages import add_pages
from sessionsdb.web.proxies import behind_proxies
from sessionsdb.web.rates import Rates

if TYPE_CHECKING:
    from sessionsdb.mcp import Caller, Tokens


class Protocol(BoundedProtocol):
    """The connections of the API, of the pages and of MCP."""

    wanted_connections = MAX_STREAMS
    streams_body = staticmethod(is_import)


async def serve(
    db: SessionsDB,
    *,
    host: str = "127.0.0.1",
    port: int = 8700,
    require_token: bool = False,
    allowed_hosts: Collection[str] = (),
    proxies: Collection[str] = (),
    rates: Rates | None = None,
    mcp: Caller | Tokens | None = None,
    ready: Callable[[str], None] = lambda _url: None,
) -> None:
    """Serve until SIGTERM or SIGINT.

    Streams of events end at once then. Other requests have two seconds to finish.

    On a loopback address callers without a token have all rights in the namespace of ``db``, unless
    ``require_token`` is set. On all other addresses every request needs a token. ``allowed_hosts``:
    more names of the server, as a proxy passes them in the header ``Host``. ``port=0`` takes a free
    port. ``ready`` is called with the URL when clients can connect. Raises ``InvalidArgument`` if
    the address can't be used.

    ``proxies``: the addresses of proxies before the server. Their ``X-Forwarded-For`` names the
    caller. ``rates``: how many requests a caller may send, by default 200 a second. ``mcp``: serve
    MCP at ``/mcp`` for this caller, or for these tokens. Where requests need a token it must be
    ``Tokens``.
    """
    listener = listen(host, port)
    try:
        app = application(
            db,
            host=host,
            require_token=require_token,
            allowed_hosts=allowed_hosts,
            proxies=proxies,
            rates=rates,
            mcp=mcp,
        )
        if mcp is not None:
            from sessionsdb.mcp.http import register_callers

            await register_callers(db, mcp)
        ready(f"http://{in_url(host)}:{listener.getsockname()[1]}")
        await run(
            app,
            listener,
            protocol=Protocol,
            lifespan="off" if mcp is None else "on",
            is_listener=is_listener,
        )
    finally:
        listener.close()


def application(
    db: SessionsDB,
    *,
    host: str = "127.0.0.1",
    require_token: bool = False,
    allowed_hosts: Collection[str] = (),
    proxies: Collection[str] = (),
    rates: Rates | None = None,
    mcp: Caller | Tokens | None = None,
) -> ASGIApp:
    """Return the server as an ASGI application, for a host with its own web server.

    ``db`` opens itself at the first request, if it is not open. The application does not close it.
    The web server has to bound the number of connections. ``GET /health`` needs no token. With
    ``mcp`` the web server has to run the lifespan of the application.
    """
    for name in allowed_hosts:
        if not name or (":" in name.strip("[]") and not name.startswith("[")):
            raise InvalidArgument(
                f"allowed_hosts has {name!r}, which is no name of a host; give it without a port"
            )
    open_access = is_loopback(host) and not require_token
    names = {*loopback_names(host), *allowed_hosts} if is_loopback(host) or allowed_hosts else None
    rates = rates or Rates()
    api = api_application(Gate(db, open_access=open_access, rates=rates))
    add_pages(api)
    app: ASGIApp = api
    if mcp is not None:
        from sessionsdb.web.mcp_mount import McpMount

        app = McpMount(api, db, mcp, open_access=open_access, rates=rates)
    return behind_proxies(Bounds(Health(app, db), hosts=names, rates=rates), proxies)

"""The transport over streamable HTTP: many clients, each with the caller of its token."""

from __future__ import annotations

import logging
from collections.abc import Callable

from mcp.server.auth.middleware.bearer_auth import BearerAuthBackend, RequireAuthMiddleware
from mcp.server.transport_security import TransportSecuritySettings
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from sessionsdb.database import SessionsDB
from sessionsdb.errors import InvalidArgument, SessionEnded
from sessionsdb.http.connections import BoundedProtocol
from sessionsdb.http.health import Health
from sessionsdb.http.listening import in_url, is_loopback, listen, loopback_names
from sessionsdb.http.running import run
from sessionsdb.mcp.admission import Admission
from sessionsdb.mcp.callers import Caller, Tokens
from sessionsdb.mcp.server import MAX_WAIT_SECS, Context, SessionsServer, register_caller

log = logging.getLogger("sessionsdb.mcp")

PATH = "/mcp"


async def serve_http(
    db: SessionsDB,
    caller: Caller | Tokens,
    *,
    host: str = "127.0.0.1",
    port: int = 8765,
    max_wait_secs: float = MAX_WAIT_SECS,
    ready: Callable[[str], None] = lambda _url: None,
) -> None:
    """Serve until SIGTERM or SIGINT.

    With ``Tokens`` every request needs a token, which decides the caller. Without tokens all
    requests have the one caller, and ``host`` must be a loopback address, otherwise
    ``InvalidArgument`` is raised. ``port=0`` takes a free port. ``ready`` is called with the URL
    when clients can connect.
    """
    if not isinstance(caller, Tokens) and not is_loopback(host):
        raise InvalidArgument(
            f"host {host} can be reached from other machines: serving there needs a bearer token, "
            "in SESSIONSDB_MCP_TOKEN or a file of --tokens; or serve on 127.0.0.1"
        )
    await register_callers(db, caller)
    listener = listen(host, port)
    try:
        ready(f"http://{in_url(host)}:{listener.getsockname()[1]}{PATH}")
        await run(
            application(db, caller, host=host, max_wait_secs=max_wait_secs),
            listener,
            protocol=BoundedProtocol,
            lifespan="on",
            is_listener=lambda scope: bool(scope["method"] == "GET" and scope["path"] == PATH),
        )
    finally:
        listener.close()


async def register_callers(db: SessionsDB, caller: Caller | Tokens) -> None:
    """Create the sessions of all callers that do not exist.

    Raises ``SessionEnded`` if the session of the only caller has ended. With ``Tokens`` such a
    caller can read, and the log says so.
    """
    for one in caller.callers if isinstance(caller, Tokens) else [caller]:
        try:
            await register_caller(db, one)
        except SessionEnded as error:
            if not isinstance(caller, Tokens):
                raise
            log.warning("a token's client can read, but not send: %s", error)


def application(
    db: SessionsDB,
    caller: Caller | Tokens,
    *,
    host: str = "127.0.0.1",
    max_wait_secs: float = MAX_WAIT_SECS,
) -> ASGIApp:
    """Return the server as an ASGI application, for a host with its own web server.

    Without tokens it must not be reachable from other machines. ``GET /health`` needs no token. The
    web server has to bound the time of a request and the number of connections.
    """
    return Health(endpoint(db, caller, security=_security(host), max_wait_secs=max_wait_secs), db)


def endpoint(
    db: SessionsDB,
    caller: Caller | Tokens,
    *,
    security: TransportSecuritySettings,
    max_wait_secs: float = MAX_WAIT_SECS,
) -> ASGIApp:
    """Return the server for ``PATH`` alone, with its tokens and its bounds.

    ``security``: the checks of the headers ``Host`` and ``Origin``. The web server has to run the
    lifespan of the application.
    """

    def caller_of(context: Context) -> Caller:
        if isinstance(caller, Tokens):
            return caller.caller(context.request)
        return caller

    server = SessionsServer(db, caller_of, max_wait_secs=max_wait_secs).build()
    app = server.streamable_http_app(streamable_http_path=PATH, transport_security=security)
    bounded: ASGIApp = Admission(app)
    if isinstance(caller, Tokens):
        bounded = _require_token(bounded, caller)
    return bounded


UNCHECKED = TransportSecuritySettings(enable_dns_rebinding_protection=False)
"""No checks of the headers: the token protects the server, or the application around it checks."""


def _security(host: str) -> TransportSecuritySettings:
    """Return the checks of the headers ``Host`` and ``Origin`` for a loopback address.

    They refuse a web page that reaches the server through a domain name of its own (DNS
    rebinding).
    """
    if not is_loopback(host):
        return UNCHECKED
    names = loopback_names(host)
    return TransportSecuritySettings(
        enable_dns_rebinding_protection=True,
        allowed_hosts=[f"{name}:*" for name in sorted(names)],
        allowed_origins=[f"http://{name}:*" for name in sorted(names)],
    )


def _require_token(app: ASGIApp, tokens: Tokens) -> ASGIApp:
    protected = AuthenticationMiddleware(
        RequireAuthMiddleware(app, required_scopes=[]), backend=BearerAuthBackend(tokens)
    )

    async def route(scope: Scope, receive: Receive, send: Send) -> None:
        await (protected if scope["type"] == "http" else app)(scope, receive, send)

    return route

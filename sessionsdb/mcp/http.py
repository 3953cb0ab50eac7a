"""Over streamable HTTP: many clients, each the caller its token names."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable

import uvicorn
from mcp.server.auth.middleware.bearer_auth import BearerAuthBackend, RequireAuthMiddleware
from mcp.server.transport_security import TransportSecuritySettings
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from sessionsdb.database import SessionsDB
from sessionsdb.errors import InvalidArgument
from sessionsdb.mcp.callers import Caller, Tokens
from sessionsdb.mcp.server import MAX_WAIT_SECS, Context, SessionsServer, register

PATH = "/mcp"

SHUTDOWN_SECONDS = 3
"""What calls that run get to finish after a signal."""


async def serve_http(
    db: SessionsDB,
    caller: Caller | Tokens,
    *,
    host: str = "127.0.0.1",
    port: int = 8765,
    max_wait_secs: float = MAX_WAIT_SECS,
    ready: Callable[[str], None] = lambda _url: None,
) -> None:
    """Serve until SIGTERM or SIGINT. With ``Tokens`` every request needs one of them, and its
    caller is the token's; a single caller is only for a loopback address. ``ready`` is told the
    address when clients can connect; ``port=0`` takes a free one.

    Raises ``InvalidArgument`` for a single caller on any other address.
    """
    if not isinstance(caller, Tokens) and not is_loopback(host):
        raise InvalidArgument(
            f"{host} can be reached from other machines: serving there needs a bearer token, "
            "in SESSIONSDB_MCP_TOKEN or a file of --tokens; or serve on 127.0.0.1"
        )
    for one in caller.callers if isinstance(caller, Tokens) else [caller]:
        await register(db, one)
    listening = _listen(host, port)
    try:
        config = uvicorn.Config(
            application(db, caller, host=host, max_wait_secs=max_wait_secs),
            log_level="warning",
            access_log=False,
            lifespan="on",
            timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        )
        shown = f"[{host}]" if ":" in host else host
        ready(f"http://{shown}:{listening.getsockname()[1]}{PATH}")
        await uvicorn.Server(config).serve(sockets=[listening])
    finally:
        listening.close()


def application(
    db: SessionsDB,
    caller: Caller | Tokens,
    *,
    host: str = "127.0.0.1",
    max_wait_secs: float = MAX_WAIT_SECS,
) -> ASGIApp:
    """The server as an ASGI application, for a host that has its own web server. With a single
    caller it must not be reachable from other machines."""

    def caller_of(context: Context) -> Caller:
        if isinstance(caller, Tokens):
            return caller.caller(context.request)
        return caller

    server = SessionsServer(db, caller_of, max_wait_secs=max_wait_secs).build()
    app = server.streamable_http_app(
        streamable_http_path=PATH, host=host, transport_security=_security(host)
    )
    return _guarded(app, caller) if isinstance(caller, Tokens) else app


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _security(host: str) -> TransportSecuritySettings | None:
    """On loopback only requests that name it: a web page can't reach it through a name of its own
    that leads here (DNS rebinding)."""
    if not is_loopback(host):
        return None  # the token is what protects it
    names = {"127.0.0.1", "localhost", "[::1]", f"[{host}]" if ":" in host else host}
    return TransportSecuritySettings(
        enable_dns_rebinding_protection=True,
        allowed_hosts=[f"{name}:*" for name in sorted(names)],
        allowed_origins=[f"http://{name}:*" for name in sorted(names)],
    )


def _guarded(app: ASGIApp, tokens: Tokens) -> ASGIApp:
    """``app`` for those who have a token."""
    inner = AuthenticationMiddleware(
        RequireAuthMiddleware(app, required_scopes=[]), backend=BearerAuthBackend(tokens)
    )

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        await (inner if scope["type"] == "http" else app)(scope, receive, send)

    return guarded


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2_048)
    except (OSError, UnicodeError) as error:  # the latter for what can be no name of a host
        reason = getattr(error, "strerror", None) or error
        raise InvalidArgument(f"can't listen on {host} port {port}: {reason}") from error

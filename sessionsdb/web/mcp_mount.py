"""MCP in the server of the API: its path, its lifespan, and its failed logins."""

from __future__ import annotations

from fastapi.security.utils import get_authorization_scheme_param
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sessionsdb.database import SessionsDB
from sessionsdb.errors import InvalidArgument
from sessionsdb.mcp import Caller, Tokens
from sessionsdb.mcp.http import PATH, UNCHECKED, endpoint
from sessionsdb.web.api.access import too_many_failed_logins
from sessionsdb.web.api.problems import problem
from sessionsdb.web.rates import Rates, address_of


class McpMount:
    """An ASGI application that gives ``/mcp`` to the MCP server, and all other paths to ``app``.

    ``open_access``: clients without a token are allowed. Raises ``InvalidArgument`` if they are
    not, and ``caller`` has no tokens. ``app`` has no lifespan. That of the MCP server is used.
    """

    def __init__(
        self,
        app: ASGIApp,
        db: SessionsDB,
        caller: Caller | Tokens,
        *,
        open_access: bool,
        rates: Rates,
    ) -> None:
        if not open_access and not isinstance(caller, Tokens):
            raise InvalidArgument(
                "mcp needs bearer tokens on this server: give --mcp-tokens FILE, or one token in "
                "SESSIONSDB_MCP_TOKEN"
            )
        self._app = app
        # The application around this one checks the headers Host and Origin of all paths.
        self._mcp = endpoint(db, caller, security=UNCHECKED)
        self._has_tokens = isinstance(caller, Tokens)
        self._rates = rates

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._mcp(scope, receive, send)
        elif scope["type"] != "http" or scope["path"] != PATH:
            await self._app(scope, receive, send)
        elif not self._has_tokens:
            await self._mcp(scope, receive, send)
        else:
            await self._log_in(scope, receive, send)

    async def _log_in(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request whose token is checked, unless its address tried too many."""
        _, secret = get_authorization_scheme_param(Headers(scope=scope).get("authorization"))
        if not secret:
            await self._mcp(scope, receive, send)
            return
        address = address_of(scope)
        if seconds := self._rates.login_wait(address, secret):
            refused = too_many_failed_logins(seconds)
            response = problem(refused.status, refused.name, str(refused), headers=refused.headers)
            await response(scope, receive, send)
            return

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._rates.count_login(address, secret, accepted=message["status"] != 401)
            await send(message)

        await self._mcp(scope, receive, watched)

"""The caller of a request: the namespace that it may use, and its rights there."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Annotated, Any, NamedTuple

from fastapi import Depends, Request, Response
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from fastapi.security.utils import get_authorization_scheme_param

from sessionsdb.admin import tokens
from sessionsdb.admin.tokens import RIGHTS, Rights
from sessionsdb.database import SessionsDB
from sessionsdb.operations.tokens import StoredToken
from sessionsdb.web.api.problems import Refused, retry_after
from sessionsdb.web.api.relied_headers import headers_of, refuse_others
from sessionsdb.web.rates import Rates, address_of

COOKIE = "sessionsdb_token"
"""The cookie in which a browser keeps its token for the pages. The API does not read it."""

SCHEME = HTTPBearer(
    auto_error=False, description="A token of `sessionsdb token`. Without one on loopback."
)


class Caller(NamedTuple):
    """Who asks: a handle on its namespace, and its rights."""

    db: SessionsDB
    rights: Rights
    secret: str | None
    """Its token, ``None`` on loopback without one."""


class Gate:
    """Lets callers in. ``open_access``: those without a token have all rights in the namespace of
    the server. ``rates`` bounds how often an address tries tokens that are refused."""

    def __init__(self, db: SessionsDB, *, open_access: bool, rates: Rates) -> None:
        self._db = db
        self._rates = rates
        self.open_access = open_access

    async def caller(self, request: Request, authorization: str | None) -> Caller:
        """Return the caller. Raises ``Refused`` for a missing, unknown or expired token (401), and
        for an address that tried too many (429)."""
        if authorization is None:
            if self.open_access:
                return Caller(self._db, "admin", None)
            raise _unauthorized("a token is missing; send Authorization: Bearer TOKEN")
        scheme, secret = get_authorization_scheme_param(authorization)
        found = await self._find(request, secret) if scheme.lower() == "bearer" else None
        if found is None:
            raise _unauthorized("the token is unknown, revoked or expired")
        return Caller(self._db.in_namespace(found.namespace), _rights(found.rights), secret)

    async def _find(self, request: Request, secret: str) -> StoredToken | None:
        address = address_of(request.scope)
        if seconds := self._rates.login_wait(address, secret):
            raise too_many_failed_logins(seconds)
        found = await tokens.find(self._db, secret)
        self._rates.count_login(address, secret, accepted=found is not None)
        return found

    async def still_lets_in(self, caller: Caller) -> bool:
        """Return whether the token of a caller is still valid."""
        return caller.secret is None or await tokens.find(self._db, caller.secret) is not None


def _rights(text: str) -> Rights:
    return next(rights for rights in RIGHTS if rights == text)


def _unauthorized(detail: str) -> Refused:
    return Refused(401, "Unauthorized", detail, WWW_Authenticate='Bearer realm="sessionsdb"')


def too_many_failed_logins(seconds: float) -> Refused:
    return Refused(
        429,
        "TooManyFailedLogins",
        "too many tokens of this address were refused; try again later",
        Retry_After=retry_after(seconds),
    )


def gate_of(request: Request) -> Gate:
    gate = request.app.state.gate
    assert isinstance(gate, Gate)
    return gate


class _Requires:
    """The dependency of a route that needs certain rights. It gives the caller."""

    def __init__(self, rights: Rights) -> None:
        self._rights = rights

    async def __call__(self, request: Request) -> Caller:
        """Return the caller that ``GuardedRoute`` has let in."""
        caller = request.state.caller
        assert isinstance(caller, Caller)
        return caller

    async def let_in(self, request: Request) -> Caller:
        """Return the caller. Raises ``Refused``."""
        caller = await gate_of(request).caller(request, request.headers.get("authorization"))
        if RIGHTS.index(caller.rights) < RIGHTS.index(self._rights):
            raise Refused(
                403,
                "Forbidden",
                f"the token may {caller.rights} only, and this needs the right to {self._rights}"
                if self._rights != "admin"
                else "this needs a token with the right admin",
            )
        return caller


class GuardedRoute(APIRoute):
    """A route that lets its caller in, and looks at the headers, before it reads the body.

    FastAPI parses a body before it asks the dependencies. 32 MiB of JSON take seconds, and are not
    for callers without a token.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        guards = [
            one.call for one in self.dependant.dependencies if isinstance(one.call, _Requires)
        ]
        taken = frozenset(headers_of(self.dependant))

        async def guarded(request: Request) -> Response:
            for guard in guards:
                request.state.caller = await guard.let_in(request)
            refuse_others(request, taken)
            return await handle(request)

        return guarded


Reader = Annotated[Caller, Depends(_Requires("read"))]
Writer = Annotated[Caller, Depends(_Requires("write"))]
Admin = Annotated[Caller, Depends(_Requires("admin"))]

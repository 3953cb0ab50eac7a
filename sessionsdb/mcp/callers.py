"""Who calls: a session, its namespace and what it can see. A caller is told by the command line
or by its bearer token, never by the arguments of a tool."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from mcp.server.auth.provider import AccessToken
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from sessionsdb.errors import InvalidArgument
from sessionsdb.tools import Visibility

CHANNEL = "mcp"
"""The channel of a session that is registered because a caller has it."""

TOKEN_CHARACTERS = 16
"""A shorter token could be guessed."""


class Caller(BaseModel):
    """One caller of the server. ``namespace`` is the server's unless given."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    session: str | None = None
    namespace: str | None = None
    visibility: Visibility = "tree"


class Tokens:
    """The bearer tokens a server accepts, and whose they are. It keeps digests, so that a look-up
    tells nothing of a token by the time it takes.

    Raises ``InvalidArgument`` for a token that is too short.
    """

    def __init__(self, callers: Mapping[str, Caller]) -> None:
        for token in callers:
            if len(token) < TOKEN_CHARACTERS or not token.isascii() or not token.isprintable():
                raise InvalidArgument(
                    f"a bearer token must be {TOKEN_CHARACTERS} or more printable ASCII "
                    "characters; make one with: python -c 'import secrets; "
                    "print(secrets.token_urlsafe())'"
                )
        self._callers = {_digest(token): caller for token, caller in callers.items()}

    @classmethod
    def read(cls, text: str) -> Tokens:
        """Tokens from a file: a JSON object from each token to ``{"session": …, "namespace": …,
        "visibility": …}``. Raises ``InvalidArgument``."""
        try:
            return cls(TypeAdapter(dict[str, Caller]).validate_json(text))
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            # Not where it went wrong: that names the token.
            raise InvalidArgument(
                'the tokens must be a JSON object {"TOKEN": {"session": "ID", '
                f'"namespace": "NAME", "visibility": "tree"}}}}: {first["msg"]}'
            ) from None

    @property
    def callers(self) -> list[Caller]:
        return list(self._callers.values())

    async def verify_token(self, token: str) -> AccessToken | None:
        """Part of the SDK's ``TokenVerifier``."""
        digest = _digest(token)
        if digest not in self._callers:
            return None
        return AccessToken(token="", client_id=digest, scopes=[])

    def caller(self, request: Any) -> Caller:
        """Whose request it is; the token was verified before it came this far."""
        return self._callers[request.user.access_token.client_id]


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()

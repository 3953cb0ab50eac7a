"""The callers of the server and their bearer tokens.

The command line or the bearer token decides the caller, never an argument of a tool.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from mcp.server.auth.provider import AccessToken
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from sessionsdb.errors import InvalidArgument
from sessionsdb.tools import Visibility

CHANNEL = "mcp"
"""The channel of a session that the server registers for its caller."""

MIN_TOKEN_CHARACTERS = 16
"""A shorter token could be guessed."""


class Caller(BaseModel):
    """One caller of the server: its session, its namespace and its scope.

    ``namespace=None`` is the namespace of the server.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    session: str | None = None
    namespace: str | None = None
    visibility: Visibility = "tree"


class Tokens:
    """The bearer tokens that a server accepts, each with its caller.

    Only digests are kept, so the time of a look-up reveals nothing about a token. Raises
    ``InvalidArgument`` for a token that is too short.
    """

    def __init__(self, callers: Mapping[str, Caller]) -> None:
        for token in callers:
            if len(token) < MIN_TOKEN_CHARACTERS or not token.isascii() or not token.isprintable():
                raise InvalidArgument(
                    f"a bearer token must be {MIN_TOKEN_CHARACTERS} or more printable ASCII "
                    "characters; make one with: python -c 'import secrets; "
                    "print(secrets.token_urlsafe())'"
                )
        self._callers = {_digest(token): caller for token, caller in callers.items()}

    @classmethod
    def read(cls, text: str) -> Tokens:
        """Return the tokens of a JSON text. Raises ``InvalidArgument``.

        The text is an object that maps each token to an object like ``{"session": …,
        "namespace": …, "visibility": …}``.
        """
        try:
            return cls(TypeAdapter(dict[str, Caller]).validate_json(text))
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            # Without the location of the error, which holds the token.
            raise InvalidArgument(
                'the tokens must be a JSON object {"TOKEN": {"session": "ID", '
                f'"namespace": "NAME", "visibility": "tree"}}}}: {first["msg"]}'
            ) from None

    @property
    def callers(self) -> list[Caller]:
        return list(self._callers.values())

    async def verify_token(self, token: str) -> AccessToken | None:
        """Implement the ``TokenVerifier`` of the SDK."""
        digest = _digest(token)
        if digest not in self._callers:
            return None
        return AccessToken(token="", client_id=digest, scopes=[])

    def caller(self, request: Any) -> Caller:
        """Return the caller of a request whose token was verified."""
        return self._callers[request.user.access_token.client_id]


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()

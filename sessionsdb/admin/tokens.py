"""The tokens by which HTTP clients reach a namespace, for ``sessionsdb token`` and the server."""

from __future__ import annotations

import hashlib
import secrets
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Literal, NamedTuple, get_args

from sessionsdb import validation
from sessionsdb.database import SessionsDB, open_database_of
from sessionsdb.errors import InvalidArgument
from sessionsdb.operations import tokens
from sessionsdb.operations.tokens import StoredToken

Rights = Literal["read", "write", "admin"]
"""The rights of a token, each with those before it. ``read``: all that only reads. ``write``: send,
spawn, append and all other changes of sessions. ``admin``: deletes and imports too."""

RIGHTS: tuple[Rights, ...] = get_args(Rights)

PREFIX = "sdb_"
"""The beginning of each token, by which scanners for secrets find one in a file."""

MAX_CHARACTERS = 200
"""A longer text is no token."""


class NewToken(NamedTuple):
    """A token that was just made. Its secret is shown once, and stored nowhere."""

    secret: str
    token: StoredToken


async def create(
    db: SessionsDB, name: str, *, rights: Rights = "read", expires_in: float | None = None
) -> NewToken:
    """Make a token for the namespace of ``db``.

    ``name`` says who uses it, for people. ``expires_in``: seconds, ``None`` for never. Raises
    ``InvalidArgument``.
    """
    given = validation.name(name, "name")
    allowed = validation.one_of(rights, RIGHTS, "rights")
    until = None
    if expires_in is not None:
        seconds = validation.positive_seconds(expires_in, "expires_in")
        try:
            until = datetime.now(UTC) + timedelta(seconds=seconds)
        except OverflowError:
            raise InvalidArgument("expires_in is too far away; leave it out for never") from None
    secret = PREFIX + secrets.token_urlsafe(32)
    operation = partial(
        tokens.create,
        digest=digest_of(secret),
        token_id=secrets.token_hex(6),
        namespace=db.namespace,
        name=given,
        rights=allowed,
        expires_at=until,
    )
    return NewToken(secret, await open_database_of(db).write(operation, wakes=()))


async def find(db: SessionsDB, secret: str) -> StoredToken | None:
    """Return the token of a client, of whatever namespace. ``None``: unknown, or expired.

    The database compares digests, so the time of a look-up reveals nothing about a token.
    """
    if len(secret) > MAX_CHARACTERS or not secret.isascii():
        return None
    return await open_database_of(db).read(partial(tokens.find, digest=digest_of(secret)))


async def list_all(db: SessionsDB) -> list[StoredToken]:
    """Return the tokens of the namespace of ``db``, the oldest first."""
    return await open_database_of(db).read(partial(tokens.list_all, namespace=db.namespace))


async def revoke(db: SessionsDB, token_id: str) -> bool:
    """Delete a token of the namespace. It opens nothing from now on. False: there is none."""
    operation = partial(tokens.revoke, namespace=db.namespace, token_id=token_id)
    return await open_database_of(db).write(operation, wakes=())


def digest_of(secret: str) -> str:
    """Return the digest that is stored. A token has 256 random bits, so it needs no salt."""
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()

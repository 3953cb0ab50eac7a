"""The tokens of HTTP clients: make one, look one up, list and revoke them."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Connection, delete, insert, select

from sessionsdb.engine import clock
from sessionsdb.engine.statement import Statement
from sessionsdb.schema import tokens

_FIND = Statement("""
SELECT id, namespace, name, rights, created_at, expires_at FROM tokens WHERE digest = :digest
""")


class StoredToken(NamedTuple):
    """The row of a token, without its digest."""

    id: str
    namespace: str
    name: str
    rights: str
    created_at: datetime
    expires_at: datetime | None


def create(
    connection: Connection,
    digest: str,
    token_id: str,
    namespace: str,
    name: str,
    rights: str,
    expires_at: datetime | None,
) -> StoredToken:
    created_at = clock.read_now(connection)
    made = StoredToken(token_id, namespace, name, rights, created_at, expires_at)
    connection.execute(insert(tokens).values(digest=digest, **made._asdict()))
    return made


def find(connection: Connection, digest: str) -> StoredToken | None:
    """Return the token with this digest if it has not expired."""
    row = _FIND.row(connection, {"digest": digest})
    if row is None:
        return None
    token_id, namespace, name, rights, created_at, expires_at = row
    until = clock.as_utc_or_none(expires_at)
    found = StoredToken(token_id, namespace, name, rights, clock.as_utc(created_at), until)
    expired = found.expires_at is not None and found.expires_at <= clock.read_now(connection)
    return None if expired else found


def list_all(connection: Connection, namespace: str) -> list[StoredToken]:
    """Return the tokens of a namespace, the oldest first. Expired ones are among them."""
    columns = [tokens.c[name] for name in StoredToken._fields]
    rows = connection.execute(
        select(*columns)
        .where(tokens.c.namespace == namespace)
        .order_by(tokens.c.created_at, tokens.c.id)
    )
    return [StoredToken(*row) for row in rows]


def revoke(connection: Connection, namespace: str, token_id: str) -> bool:
    """Delete a token. Return false if the namespace has none with this id."""
    gone = connection.execute(
        delete(tokens).where(tokens.c.namespace == namespace, tokens.c.id == token_id)
    )
    return gone.rowcount > 0

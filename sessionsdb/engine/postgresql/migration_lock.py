"""The lock that keeps two migrations of one installation on PostgreSQL apart."""

from __future__ import annotations

import hashlib

from sqlalchemy import Connection, text

from sessionsdb.engine.postgresql.search_path import schema_of

# Advisory locks have a number for a name. This one is arbitrary.
_KEY = 7305811234561

_LOCK = text("SELECT pg_catalog.pg_advisory_xact_lock(:key)")


def lock_migrations(connection: Connection) -> None:
    """Wait until no other migration of the schema runs, and hold the lock until the transaction
    ends."""
    connection.execute(_LOCK, {"key": _key_of(schema_of(connection))})


def _key_of(schema: str | None) -> int:
    if schema is None:
        return _KEY
    return int.from_bytes(hashlib.sha256(schema.encode()).digest()[:8], signed=True)

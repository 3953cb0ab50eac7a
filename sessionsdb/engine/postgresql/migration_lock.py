"""The revision of an installation on PostgreSQL, and the lock that keeps two migrations apart."""

from __future__ import annotations

import hashlib

from sqlalchemy import Connection, text

from sessionsdb.engine.postgresql.search_path import schema_of
from sessionsdb.schema import VERSION_TABLE, metadata

# Advisory locks have a number for a name. This one is arbitrary.
_KEY = 7305811234561

_LOCK = text("SELECT pg_catalog.pg_advisory_xact_lock(CAST(:key AS bigint))")


_HAS_REVISION = text(f"SELECT pg_catalog.to_regclass('{VERSION_TABLE}') IS NOT NULL")
_REVISION = text(f"SELECT version_num FROM {VERSION_TABLE}")


def current_revision(connection: Connection) -> str | None:
    """Return the revision of the database, or ``None`` without our tables."""
    if not connection.execute(_HAS_REVISION).scalar_one():
        return None
    revision: str | None = connection.execute(_REVISION).scalar()
    return revision


_TAKEN = text("""
    SELECT CAST(c.relname AS text)
    FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname = pg_catalog.current_schema()
      AND c.relname = ANY (CAST(:names AS text[])) AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
    ORDER BY 1
""")


def taken_names(connection: Connection) -> list[str]:
    """Return the names of our tables that tables or views of the schema have."""
    return list(connection.execute(_TAKEN, {"names": list(metadata.tables)}).scalars())


def lock_migrations(connection: Connection) -> None:
    """Wait until no other migration of the schema runs, and hold the lock until the transaction
    ends."""
    connection.execute(_LOCK, {"key": _key_of(schema_of(connection))})


def _key_of(schema: str | None) -> int:
    if schema is None:
        return _KEY
    return int.from_bytes(hashlib.sha256(schema.encode()).digest()[:8], signed=True)

"""The lock that keeps two migrations of one PostgreSQL database apart."""

from __future__ import annotations

from sqlalchemy import Connection, text

# Advisory locks have a number for a name. This one is arbitrary.
_LOCK = text("SELECT pg_catalog.pg_advisory_xact_lock(7305811234561)")


def lock_migrations(connection: Connection) -> None:
    """Wait until no other migration runs, and hold the lock until the transaction ends."""
    connection.execute(_LOCK)

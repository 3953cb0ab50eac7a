"""Citus: PostgreSQL whose tables are kept on several servers.

Tables that are kept by schema work: all tables of a schema are on one server. Tables that are
distributed by rows do not, because a statement there must name one namespace for each table.
"""

from __future__ import annotations

from sqlalchemy import Connection, text

from sessionsdb import schema
from sessionsdb.errors import StorageError

_HAS_CITUS = text("""
    SELECT EXISTS (SELECT 1 FROM pg_catalog.pg_extension WHERE extname = 'citus')
""")

# The method is `n` for tables that are kept by schema, or are copied to all servers.
_BY_ROWS = text("""
    SELECT CAST(c.relname AS text)
    FROM pg_catalog.pg_dist_partition AS d
    JOIN pg_catalog.pg_class AS c ON c.oid = CAST(d.logicalrelid AS oid)
    JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname = pg_catalog.current_schema() AND d.partmethod <> 'n'
      AND c.relname = ANY (CAST(:names AS text[]))
    ORDER BY 1
""")


def has_citus(connection: Connection) -> bool:
    """Return whether the database has the extension."""
    return bool(connection.execute(_HAS_CITUS).scalar_one())


def refuse_rows(connection: Connection) -> None:
    """Raise ``StorageError`` if Citus distributes one of our tables by rows."""
    names = list(connection.execute(_BY_ROWS, {"names": list(schema.metadata.tables)}).scalars())
    if names:
        raise StorageError(
            f"Citus distributes the table {names[0]} by rows, where most calls fail: give each "
            "group of tenants a schema of its own instead, made with "
            "citus.enable_schema_based_sharding on, and name it with ?schema= in the URL"
        )

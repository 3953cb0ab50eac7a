"""The revision of an installation on PostgreSQL, read by statements that name all schemas.

The inspector of SQLAlchemy compares names with operators of the search path.
"""

from __future__ import annotations

from sqlalchemy import Connection, text

from sessionsdb import schema
from sessionsdb.engine.postgresql import citus
from sessionsdb.schema import VERSION_TABLE

_HAS_TABLE = text(f"""
    SELECT pg_catalog.to_regclass('{VERSION_TABLE}') IS NOT NULL AS has_table,
           EXISTS (SELECT 1 FROM pg_catalog.pg_extension WHERE extname = 'citus') AS has_citus
""")
_REVISION = text(f"SELECT version_num FROM {VERSION_TABLE}")
_TAKEN = text("""
    SELECT CAST(c.relname AS text)
    FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname = pg_catalog.current_schema()
      AND c.relname = ANY (CAST(:names AS text[])) AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
    ORDER BY 1
""")


def has_version_table(connection: Connection) -> bool:
    return bool(connection.execute(_HAS_TABLE).one().has_table)


def current_revision(connection: Connection) -> str | None:
    """Return the revision of the database, or ``None`` without our tables.

    Raises ``StorageError`` if Citus distributes our tables by rows.
    """
    found = connection.execute(_HAS_TABLE).one()
    if not found.has_table:
        return None
    if found.has_citus:
        citus.refuse_rows(connection)
    revision: str | None = connection.execute(_REVISION).scalar_one_or_none()
    return revision


def taken_names(connection: Connection) -> list[str]:
    """Return the names of our tables that tables or views of the schema have."""
    return list(connection.execute(_TAKEN, {"names": list(schema.metadata.tables)}).scalars())

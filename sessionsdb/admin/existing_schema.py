"""The columns, indices and constraints that our tables have in a database."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from sqlalchemy import Connection, inspect, text

from sessionsdb.engine.dialect import Kind, kind_of
from sessionsdb.schema import metadata


@dataclass
class ExistingTable:
    """The parts of one table."""

    columns: set[str] = field(default_factory=set)
    indices: set[str] = field(default_factory=set)
    checks: set[str] = field(default_factory=set)
    references: set[tuple[str, ...]] = field(default_factory=set)
    """The columns of each foreign key."""
    has_primary_key: bool = False


def read_schema(connection: Connection) -> dict[str, ExistingTable]:
    """Return those of our tables that exist, by name."""
    return _READERS[kind_of(connection)](connection)


def _read_sqlite(connection: Connection) -> dict[str, ExistingTable]:
    inspector = inspect(connection)
    # SQLAlchemy's inspector leaves out indices over expressions.
    indices = connection.execute(_SQLITE_INDICES).all()
    return {
        name: ExistingTable(
            {column["name"] for column in inspector.get_columns(name)},
            {index for table, index in indices if table == name},
            {str(check["name"]) for check in inspector.get_check_constraints(name)},
            {tuple(key["constrained_columns"]) for key in inspector.get_foreign_keys(name)},
            bool(inspector.get_pk_constraint(name)["constrained_columns"]),
        )
        for name in set(metadata.tables) & set(inspector.get_table_names())
    }


_SQLITE_INDICES = text("SELECT tbl_name, name FROM sqlite_master WHERE type = 'index'")

# The queries of SQLAlchemy's inspector name no schemas of functions.
_PARTS = text("""
WITH ours AS (
    SELECT c.oid, CAST(c.relname AS text) AS name FROM pg_catalog.pg_class AS c
    JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname = pg_catalog.current_schema() AND c.relkind IN ('r', 'p')
      AND c.relname = ANY(CAST(:tables AS text[]))
)
SELECT o.name AS table, 'column' AS kind, CAST(a.attname AS text) AS name,
       CAST(NULL AS text[]) AS columns
FROM ours AS o JOIN pg_catalog.pg_attribute AS a ON a.attrelid = o.oid
WHERE a.attnum > 0 AND NOT a.attisdropped
UNION ALL
SELECT o.name, 'index', CAST(c.relname AS text), NULL
FROM ours AS o
JOIN pg_catalog.pg_index AS i ON i.indrelid = o.oid
JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid
UNION ALL
SELECT o.name, CAST(k.contype AS text), CAST(k.conname AS text), ARRAY(
    SELECT CAST(a.attname AS text)
    FROM pg_catalog.unnest(k.conkey) WITH ORDINALITY AS u(number, place)
    JOIN pg_catalog.pg_attribute AS a ON a.attrelid = k.conrelid AND a.attnum = u.number
    ORDER BY u.place
)
FROM ours AS o JOIN pg_catalog.pg_constraint AS k ON k.conrelid = o.oid
""")


def _read_postgresql(connection: Connection) -> dict[str, ExistingTable]:
    found: dict[str, ExistingTable] = {}
    for table, kind, name, columns in connection.execute(_PARTS, {"tables": list(metadata.tables)}):
        parts = found.setdefault(table, ExistingTable())
        if kind == "column":
            parts.columns.add(name)
        elif kind == "index":
            parts.indices.add(name)
        elif kind == "c":
            parts.checks.add(name)
        elif kind == "f":
            parts.references.add(tuple(columns))
        elif kind == "p":
            parts.has_primary_key = True
    return found


_READERS: dict[Kind, Callable[[Connection], dict[str, ExistingTable]]] = {
    "sqlite": _read_sqlite,
    "postgresql": _read_postgresql,
}

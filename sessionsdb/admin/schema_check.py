"""Check that the tables have the columns, indices and constraints of the schema."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, Connection

from sessionsdb.admin.existing_schema import read_schema
from sessionsdb.admin.findings import Finding, make_finding
from sessionsdb.schema import metadata


def check(connection: Connection) -> list[Finding]:
    """Find parts of the schema that are missing in the database. Additional objects are allowed."""
    existing = read_schema(connection)
    missing: dict[str, list[str]] = {"table": [], "column": [], "index": [], "constraint": []}
    for name, table in metadata.tables.items():
        found = existing.get(name)
        if found is None:
            missing["table"].append(name)
            continue
        missing["column"] += [
            f"{name}.{c.name}" for c in table.columns if c.name not in found.columns
        ]
        missing["index"] += sorted(
            str(i.name) for i in table.indexes if i.name not in found.indices
        )
        for constraint in table.constraints:
            if isinstance(constraint, CheckConstraint) and constraint.name not in found.checks:
                missing["constraint"].append(str(constraint.name))
        missing["constraint"] += [
            str(key.name)
            for key in table.foreign_key_constraints
            if tuple(key.column_keys) not in found.references
        ]
        if not found.has_primary_key:
            missing["constraint"].append(str(table.primary_key.name))
    return [
        *make_finding(
            "missing-tables",
            missing["table"] + missing["column"],
            meaning="tables or columns of the schema are missing: some calls fail",
            action="restore them from a backup, or from the SQL of `sessionsdb migrate --sql`",
        ),
        *make_finding(
            "missing-indices",
            missing["index"],
            meaning="calls that should read a few rows scan whole tables. A missing unique index "
            "lets a repeated send store a second message",
            action="create them again with the statements of `sessionsdb migrate --sql`",
        ),
        *make_finding(
            "missing-constraints",
            missing["constraint"],
            meaning="the database no longer refuses rows that contradict each other",
            action="add them again with the statements of `sessionsdb migrate --sql`",
        ),
    ]

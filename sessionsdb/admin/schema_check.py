"""Whether the tables are those that the schema says: columns, indices, constraints."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, Connection, inspect

from sessionsdb.admin.findings import Finding, make_finding
from sessionsdb.schema import metadata


def check(connection: Connection) -> list[Finding]:
    """What of the schema is missing in the database. More than it says is nobody's fault."""
    there = inspect(connection)
    existing = set(there.get_table_names())
    missing: dict[str, list[str]] = {"table": [], "column": [], "index": [], "constraint": []}
    for name, table in metadata.tables.items():
        if name not in existing:
            missing["table"].append(name)
            continue
        columns = {column["name"] for column in there.get_columns(name)}
        missing["column"] += [f"{name}.{c.name}" for c in table.columns if c.name not in columns]
        indices = {index["name"] for index in there.get_indexes(name)}
        missing["index"] += sorted(str(i.name) for i in table.indexes if i.name not in indices)
        checks = {one["name"] for one in there.get_check_constraints(name)}
        references = {tuple(one["constrained_columns"]) for one in there.get_foreign_keys(name)}
        for constraint in table.constraints:
            if isinstance(constraint, CheckConstraint) and constraint.name not in checks:
                missing["constraint"].append(str(constraint.name))
        missing["constraint"] += [
            str(key.name)
            for key in table.foreign_key_constraints
            if tuple(key.column_keys) not in references
        ]
        if not there.get_pk_constraint(name)["constrained_columns"]:
            missing["constraint"].append(str(table.primary_key.name))
    return [
        *make_finding(
            "missing-tables",
            missing["table"] + missing["column"],
            meaning="tables or columns of the schema are not there: some calls fail",
            action="restore them from a backup, or from the SQL of `sessionsdb migrate --sql`",
        ),
        *make_finding(
            "missing-indices",
            missing["index"],
            meaning="calls that should read a few rows walk over whole tables, and an index that "
            "is unique keeps repeated sends apart",
            action="create them again, as the SQL of `sessionsdb migrate --sql` says",
        ),
        *make_finding(
            "missing-constraints",
            missing["constraint"],
            meaning="the database no longer refuses rows that contradict each other",
            action="add them again, as the SQL of `sessionsdb migrate --sql` says",
        ),
    ]

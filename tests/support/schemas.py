"""The schema of a database, read from its own catalogue."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection

from devtools.databases import Database
from sessionsdb.engine import migrations
from sessionsdb.reports.catalogue import VIEWS
from sessionsdb.runtime import open_database
from sessionsdb.schema import VERSION_TABLE, metadata

T = TypeVar("T")

Described = dict[str, set[Any]]


async def in_transaction(database: Database, operation: Callable[[Connection], T]) -> T:
    """Run a function of a connection, committed, on an engine of its own."""
    engine = open_database.create_engine(database.url, "full")
    try:
        async with engine.begin() as connection:
            return await connection.run_sync(operation)
    finally:
        await engine.dispose()


async def upgrade(database: Database, target: str = "head") -> None:
    await in_transaction(database, lambda connection: migrations.upgrade(connection, target))


async def downgrade(database: Database, target: str) -> None:
    await in_transaction(database, lambda connection: migrations.downgrade(connection, target))


async def revision(database: Database) -> str | None:
    return await in_transaction(database, migrations.current)


async def differences(database: Database) -> list[Any]:
    """The changes of alembic's autogenerate that bring the database to ``sessionsdb.schema``."""

    def compare(connection: Connection) -> list[Any]:
        context = MigrationContext.configure(
            connection,
            opts={
                "version_table": VERSION_TABLE,
                "include_name": migrations.is_ours,
                "compare_type": True,
                "compare_server_default": True,
            },
        )
        return list(compare_metadata(context, metadata))

    return await in_transaction(database, compare)


async def described(database: Database) -> Described:
    """Tables with their columns, defaults, collations, constraints and options, indices with their
    columns and their WHERE, views with their SELECT. The order of columns is left out."""
    describe: dict[str, Callable[[Database], Awaitable[Described]]] = {
        "sqlite": _described_sqlite,
        "postgresql": _described_postgresql,
    }
    found = await describe[database.kind](database)
    return {name: lines for name, lines in found.items() if name != VERSION_TABLE}


async def drop_views(database: Database) -> None:
    """Drop the views, which block changes of the columns they read."""
    for view in reversed(VIEWS):
        await database.query(f"DROP VIEW {view.name}")


async def _described_sqlite(database: Database) -> Described:
    rows = await database.query(
        "SELECT type, name, tbl_name, sql FROM sqlite_master WHERE sql IS NOT NULL"
    )
    tables: Described = {name: _lines(sql) for kind, name, _, sql in rows if kind == "table"}
    tables |= {name: {" ".join(sql.split())} for kind, name, _, sql in rows if kind == "view"}
    for kind, _, table, sql in rows:
        if kind not in ("table", "view"):
            tables[table].add(" ".join(sql.split()))
    return tables


def _lines(sql: str) -> set[Any]:
    """The columns and constraints between the brackets of a CREATE TABLE, and its options."""
    start, end = sql.index("("), sql.rindex(")")
    lines, level, line = [], 0, ""
    for character in sql[start + 1 : end]:
        level += {"(": 1, ")": -1}.get(character, 0)
        if character == "," and level == 0:
            lines.append(line)
            line = ""
        else:
            line += character
    lines += [line, f"options: {sql[end + 1 :]}"]
    return {" ".join(line.split()) for line in lines}


async def _described_postgresql(database: Database) -> Described:
    rows = await database.query("""
        SELECT c.relname, concat_ws(' ', a.attname, format_type(a.atttypid, a.atttypmod), 'null:',
            NOT a.attnotnull, 'default:', pg_get_expr(d.adbin, d.adrelid),
            'collate:', (SELECT collname FROM pg_collation WHERE oid = a.attcollation))
        FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
        LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r'
          AND a.attnum > 0 AND NOT a.attisdropped
        UNION ALL
        SELECT c.relname, 'options: ' || coalesce(c.reloptions::text, '')
        FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r'
        UNION ALL
        SELECT tablename, indexdef FROM pg_indexes WHERE schemaname = 'public'
        UNION ALL
        SELECT c.relname, concat_ws(' ', o.conname, pg_get_constraintdef(o.oid))
        FROM pg_constraint o JOIN pg_class c ON c.oid = o.conrelid
        WHERE c.relnamespace = 'public'::regnamespace
        UNION ALL
        SELECT viewname, definition FROM pg_views WHERE schemaname = 'public'
    """)
    tables: Described = {}
    for table, line in rows:
        tables.setdefault(table, set()).add(line)
    return tables

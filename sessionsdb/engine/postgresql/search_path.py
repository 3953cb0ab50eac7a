"""Keep all tables of an installation in one schema of a PostgreSQL database.

The statements of this package name tables without a schema. The ``search_path`` says where they
are: in the schema, and nowhere else. ``pg_temp`` stands last, because PostgreSQL would search it
first if it were not named.

Our own engines set the path once for a connection. A transaction pooler and the engine of a caller
keep no setting of ours, so the path is set for each transaction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from sqlalchemy import Connection, Engine, TextClause, event, text
from sqlalchemy.exc import DBAPIError

from sessionsdb.engine.runner import Operation
from sessionsdb.errors import StorageError

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

T = TypeVar("T")

_SCHEMA_OPTION = "sessionsdb_schema"
"""The execution option of an engine that names its schema. Its connections have it, too."""

_SET_LOCAL = text("SELECT pg_catalog.set_config('search_path', :path, true)")

# The CTE is evaluated first, so it returns the path from before.
_REPLACE_LOCAL = text("""
    WITH before AS MATERIALIZED (SELECT pg_catalog.current_setting('search_path') AS path)
    SELECT path, pg_catalog.set_config('search_path', :path, true) FROM before
""")


def quote_identifier(name: str) -> str:
    """Return a name as SQL reads it: with its case, spaces and quotation marks."""
    return '"' + name.replace('"', '""') + '"'


def search_path(schema: str) -> str:
    """Return the ``search_path`` on which only this schema's tables are found."""
    return f"{quote_identifier(schema)}, pg_temp"


def schema_of(source: Connection | Engine | AsyncEngine) -> str | None:
    """Return the schema of an engine of ours or of its connection. ``None`` if none was given."""
    schema: str | None = source.get_execution_options().get(_SCHEMA_OPTION)
    return schema


def name_schema(engine: AsyncEngine, schema: str | None) -> AsyncEngine:
    """Return an engine on the same connections, whose connections have the path already."""
    return engine if schema is None else engine.execution_options(**{_SCHEMA_OPTION: schema})


def set_path_of_transactions(engine: AsyncEngine, schema: str | None) -> AsyncEngine:
    """Return an engine on the same connections, which sets the path for each of its transactions.

    Transactions of the given engine are left as they are. The isolation level is named because the
    path can't be set in a caller's AUTOCOMMIT: statements would find the tables of another schema.
    """
    if schema is None:
        return engine
    named = engine.execution_options(
        **{_SCHEMA_OPTION: schema, "isolation_level": "READ COMMITTED"}
    )
    event.listen(named.sync_engine, "begin", _set_path)
    return named


def _set_path(connection: Connection) -> None:
    schema = schema_of(connection)
    assert schema is not None
    connection.execute(_SET_LOCAL, {"path": search_path(schema)})


def run_in_schema(connection: Connection, operation: Operation[T], schema: str) -> T:
    """Run an operation in a schema, inside a savepoint of a caller's transaction.

    Afterwards the caller's path is as before. If the operation fails, the end of the savepoint
    brings it back.
    """
    caller_path = connection.execute(_REPLACE_LOCAL, {"path": search_path(schema)}).scalar_one()
    result = operation(connection)
    connection.execute(_SET_LOCAL, {"path": caller_path})
    return result


# The role of the connection may use a schema, or must be granted to.
_SCHEMA = text("""
    SELECT current_user AS role, pg_catalog.has_schema_privilege(oid, 'USAGE') AS usable
    FROM pg_catalog.pg_namespace WHERE nspname = :schema
""")

_ROLE = text("SELECT current_user")

# insufficient_privilege
_NOT_ALLOWED_SQLSTATE = "42501"


def has_schema(connection: Connection) -> bool:
    """Return whether the schema of a connection exists.

    Raises ``StorageError`` if the role may not use it: its tables would look missing.
    """
    schema = str(schema_of(connection))
    found = connection.execute(_SCHEMA, {"schema": schema}).first()
    if found is not None and not found.usable:
        name, role = quote_identifier(schema), quote_identifier(found.role)
        raise StorageError(
            f"the role {found.role} may not use the schema {name}; its owner can allow it: "
            f"GRANT USAGE ON SCHEMA {name} TO {role}"
        )
    return found is not None


def create_schema(connection: Connection) -> None:
    """Create the schema of a connection if it is missing. Raises ``StorageError``."""
    if has_schema(connection):
        return
    name = quote_identifier(str(schema_of(connection)))
    role = quote_identifier(connection.execute(_ROLE).scalar_one())
    try:
        with connection.begin_nested():
            # IF NOT EXISTS would need the right to create also where the schema exists.
            connection.exec_driver_sql(f"CREATE SCHEMA {name}")
    except DBAPIError as error:
        if has_schema(connection):  # another migration has created it meanwhile
            return
        if getattr(error.orig, "sqlstate", None) != _NOT_ALLOWED_SQLSTATE:
            raise
        raise StorageError(
            f"there is no schema {name}, and the role {role} may not create one; an administrator "
            f"can: CREATE SCHEMA {name} AUTHORIZATION {role}"
        ) from error.orig


def schema_ddl(schema: str) -> list[TextClause]:
    """Return the statements that stand before the DDL of the tables, for a DBA to run."""
    statements = (
        f"CREATE SCHEMA IF NOT EXISTS {quote_identifier(schema)}",
        f"SET LOCAL search_path = {search_path(schema)}",
    )
    # A colon in the name is no parameter.
    return [text(statement.replace(":", r"\:")) for statement in statements]

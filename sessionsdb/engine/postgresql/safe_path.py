"""The search path of PostgreSQL: the schemas in which names without a schema are looked up.

PostgreSQL takes the function or operator whose argument types fit best, from any schema of the
path. A role that may create one in such a schema can have it called in place of the server's, with
the rights of the caller. So all statements name ``pg_catalog`` before a function, and compare
values of one type. Statements with the rights of an administrator also leave the path.
"""

from __future__ import annotations

from sqlalchemy import Connection, text

_LEAVE = text("SET LOCAL search_path = pg_catalog, pg_temp")

_OPEN_TO_EVERYONE = text("""
    SELECT n.nspname
    FROM pg_catalog.unnest(pg_catalog.current_schemas(false)) AS s(name)
    JOIN pg_catalog.pg_namespace AS n ON n.nspname = s.name
    WHERE pg_catalog.has_schema_privilege('public', n.oid, 'CREATE')
    ORDER BY n.nspname
""")


def leave_search_path(connection: Connection) -> None:
    """Find PostgreSQL's own names only, until the transaction ends."""
    connection.execute(_LEAVE)


def schemas_open_to_everyone(connection: Connection) -> list[str]:
    """Return the schemas of the search path in which every role may create objects."""
    return list(connection.execute(_OPEN_TO_EVERYONE).scalars())

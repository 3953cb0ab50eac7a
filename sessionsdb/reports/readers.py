"""Readers on PostgreSQL: roles that may read the report views, and no other data of ours.

A reader of every namespace may SELECT from the views themselves, which run with the rights of their
owner. A reader of one namespace has views with the same names in a schema of the namespace. Each is
a security barrier: PostgreSQL filters the rows by namespace before it calls a function of the
reader. All rights are plain grants, so role memberships work as usual.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from sessionsdb import InvalidArgument, SessionsDB, SessionsDBError, StorageError, validation
from sessionsdb.engine.dialect import kind_of
from sessionsdb.engine.postgresql.retries import DATABASE_ERRORS
from sessionsdb.engine.postgresql.safe_path import (
    leave_search_path,
    schemas_open_to_everyone,
)
from sessionsdb.engine.postgresql.search_path import quote_identifier
from sessionsdb.reports.catalogue import VIEWS
from sessionsdb.schema import metadata

IDENTIFIER_BYTES = 63
"""PostgreSQL cuts a longer identifier."""

VIEW_NAMES = [view.name for view in VIEWS]


class GrantRefused(SessionsDBError):
    """A grant that would not limit the role. Nothing was changed."""


class ReaderGrant(NamedTuple):
    """The rights that a reader was given."""

    role: str
    schema: str
    """The schema with the reader's views."""
    may_connect: bool
    """Whether the role may connect to the database. Only an administrator can grant that."""


# The schema of the views, found on the search path like in our other statements.
_VIEWS_SCHEMA = text("""
    SELECT n.nspname
    FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.oid = CAST(pg_catalog.to_regclass('report_sessions') AS oid)
""")

_ROLE = text("SELECT 1 FROM pg_catalog.pg_roles WHERE rolname = :role")

# A relation that the role can read already. The grant is to the role, to PUBLIC, or to a role that
# it is a member of and could switch to.
_READABLE = text("""
    SELECT c.relname, r.rolname
    FROM pg_catalog.pg_roles AS r, pg_catalog.pg_class AS c
    JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname = :home AND c.relname = ANY (CAST(:names AS text[]))
      AND pg_catalog.pg_has_role(:role, r.oid, 'MEMBER')
      AND pg_catalog.has_any_column_privilege(r.oid, c.oid, 'SELECT')
    ORDER BY r.rolname <> :role, c.relname
    LIMIT 1
""")

_SCHEMA = text("""
    SELECT pg_catalog.obj_description(oid, 'pg_namespace') AS comment
    FROM pg_catalog.pg_namespace WHERE nspname = :schema
""")

# The schemas whose views read the report views of another schema, with their comments.
_READER_SCHEMAS = text("""
    SELECT DISTINCT home.nspname AS home, n.nspname,
      pg_catalog.obj_description(n.oid, 'pg_namespace') AS comment
    FROM pg_catalog.pg_class AS source
    JOIN pg_catalog.pg_namespace AS home ON home.oid = source.relnamespace
    JOIN pg_catalog.pg_depend AS d
      ON d.refclassid = source.tableoid AND d.refobjid = source.oid
    JOIN pg_catalog.pg_rewrite AS r ON d.classid = r.tableoid AND d.objid = r.oid
    JOIN pg_catalog.pg_class AS reader ON reader.oid = r.ev_class AND reader.oid <> source.oid
    JOIN pg_catalog.pg_namespace AS n ON n.oid = reader.relnamespace
    WHERE source.relname = 'report_sessions'
    ORDER BY n.nspname
""")

# Whether a role has a grant of its own on a relation of a schema.
_HAS_GRANTS = text("""
    SELECT 1
    FROM pg_catalog.pg_class AS c
    JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace,
    LATERAL pg_catalog.aclexplode(c.relacl) AS a
    WHERE n.nspname = :schema
      AND a.grantee = (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = :role)
    LIMIT 1
""")

_HAS_READERS = text("""
    SELECT 1 FROM pg_catalog.pg_namespace AS n, pg_catalog.aclexplode(n.nspacl) AS a
    WHERE n.nspname = :schema AND a.grantee <> n.nspowner LIMIT 1
""")

_MAY_CONNECT = text("""
    SELECT pg_catalog.has_database_privilege(:role, pg_catalog.current_database(), 'CONNECT')
""")


async def grant(db: SessionsDB, role: str, *, namespace: str | None = None) -> ReaderGrant:
    """Let an existing role read the report views of one namespace, or of all.

    A repeated call updates the views of the namespace to this version. Raises ``InvalidArgument``,
    and ``StorageError`` if our role may not grant. Raises ``GrantRefused`` if the role can already
    read more than the grant allows, or if every role may create functions on the search path.
    """
    role = validation.name(role, "the role")
    if namespace is not None:
        namespace = validation.namespace(namespace)
    require_postgresql(db)
    with _translate_errors():
        async with db.engine.begin() as connection:
            await _refuse_open_schemas(connection)
            home = await _enter(connection)
            await _require_role(connection, role)
            await _refuse_if_readable(connection, home, role, namespace)
            if namespace is None:
                schema = home
            else:
                schema = schema_of(namespace, db.schema)
                await _make_views(
                    connection, home, schema, namespace, comment=_comment(namespace, db.schema)
                )
            await _execute(connection, "GRANT USAGE ON SCHEMA %I TO %I", schema, role)
            for name in VIEW_NAMES:
                await _execute(connection, "GRANT SELECT ON %I.%I TO %I", schema, name, role)
            may_connect = await connection.scalar(
                _MAY_CONNECT,
                {"role": role},
            )
            return ReaderGrant(role, schema, bool(may_connect))


async def revoke(db: SessionsDB, role: str, *, namespace: str | None = None) -> list[str]:
    """Revoke the grant of one namespace, or all grants, of a role.

    Returns the schemas that the role could read. The views of a namespace are dropped with their
    last reader. Raises ``InvalidArgument``, and ``StorageError`` if our role may not revoke.
    """
    role = validation.name(role, "the role")
    if namespace is not None:
        namespace = validation.namespace(namespace)
    require_postgresql(db)
    revoked = []
    with _translate_errors():
        async with db.engine.begin() as connection:
            home = await _enter(connection)
            await _require_role(connection, role)
            schemas = [home] if namespace is None else []
            schemas += await _schemas_over(connection, home, namespace)
            for schema in schemas:
                if not await _exists(connection, _HAS_GRANTS, schema=schema, role=role):
                    continue
                revoked.append(schema)
                for name in VIEW_NAMES:
                    await _execute(connection, "REVOKE ALL ON %I.%I FROM %I", schema, name, role)
                # An administrator may have granted the role other relations in the same schema.
                if not await _exists(connection, _HAS_GRANTS, schema=schema, role=role):
                    await _execute(connection, "REVOKE USAGE ON SCHEMA %I FROM %I", schema, role)
                if schema != home and not await _exists(connection, _HAS_READERS, schema=schema):
                    await _drop_views(connection, schema)
    return revoked


def schema_of(namespace: str, home: str | None = None) -> str:
    """Return the name of the schema with a namespace's views.

    ``home`` is the schema that the database was opened with. A long name is replaced by its digest.
    """
    name = f"reports_{namespace}" if home is None else f"{home}_reports_{namespace}"
    if len(name.encode()) <= IDENTIFIER_BYTES:
        return name
    key = namespace if home is None else json.dumps([home, namespace])
    return f"reports_{hashlib.sha256(key.encode()).hexdigest()[:32]}"


def _comment(namespace: str, home: str | None) -> str:
    """The comment on a schema that was made here. It tells the installation and the namespace."""
    installation = "" if home is None else f"schema {quote_identifier(home)}, "
    return f"sessionsdb: the reports of {installation}namespace {namespace}"


async def _schemas_over(connection: AsyncConnection, home: str, namespace: str | None) -> list[str]:
    """The schemas made here for one namespace, or for all, of the views in ``home``.

    Some may be older than the argument ``schema``, and have the name and comment without one.
    """
    found = [row for row in await connection.execute(_READER_SCHEMAS) if row.home == home]
    if namespace is None:
        starts = (_comment("", None), _comment("", home))
        return [row.nspname for row in found if str(row.comment).startswith(starts)]
    comments = (_comment(namespace, None), _comment(namespace, home))
    return [row.nspname for row in found if row.comment in comments]


async def _make_views(
    connection: AsyncConnection, home: str, schema: str, namespace: str, *, comment: str
) -> None:
    found = (await connection.execute(_SCHEMA, {"schema": schema})).first()
    if found is None:
        await _execute(connection, "CREATE SCHEMA %I", schema)
        await _execute(connection, "COMMENT ON SCHEMA %I IS %L", schema, comment)
    elif found.comment != comment:
        raise GrantRefused(
            f"the schema {schema} exists and was not made by sessionsdb: rename it, because the "
            f"reports of namespace {namespace} need that name"
        )
    homes = {row.home for row in await connection.execute(_READER_SCHEMAS) if row.nspname == schema}
    if homes - {home}:
        raise GrantRefused(
            f"the views in the schema {schema} read another installation than the one in schema "
            f"{home}: open this one with schema={home}, which gives its readers a schema apart"
        )
    for view in VIEWS:
        columns = ", ".join(column.name for column in view.columns)
        await _execute(
            connection,
            f"CREATE OR REPLACE VIEW %I.%I WITH (security_barrier) AS SELECT {columns}"
            " FROM %I.%I WHERE namespace = %L",
            schema,
            view.name,
            home,
            view.name,
            namespace,
        )


async def _drop_views(connection: AsyncConnection, schema: str) -> None:
    for name in VIEW_NAMES:
        await _execute(connection, "DROP VIEW %I.%I", schema, name)
    await _execute(connection, "DROP SCHEMA %I", schema)


async def _refuse_if_readable(
    connection: AsyncConnection, home: str, role: str, namespace: str | None
) -> None:
    tables = list(metadata.tables)
    names = tables if namespace is None else tables + VIEW_NAMES
    found = (
        await connection.execute(_READABLE, {"home": home, "role": role, "names": names})
    ).first()
    if found is None:
        return
    through = "" if found.rolname == role else f", as a member of {found.rolname}"
    remedy = (
        f"revoke that with: sessionsdb grant-reader {role} --revoke"
        if found.relname in VIEW_NAMES and found.rolname == role
        else "revoke that first, or use another role"
    )
    raise GrantRefused(
        f"role {role} can read {found.relname} of every namespace already{through}: "
        f"granting it reports would limit nothing; {remedy}"
    )


async def _enter(connection: AsyncConnection) -> str:
    """Find the schema of the views, and leave the search path for the rest of the transaction."""
    home = await connection.scalar(_VIEWS_SCHEMA)
    if home is None:
        raise StorageError("the report views are missing; run: sessionsdb migrate")
    await connection.run_sync(leave_search_path)
    return str(home)


async def _refuse_open_schemas(connection: AsyncConnection) -> None:
    """A role that may create functions on the search path can read what our statements read."""
    found = await connection.run_sync(schemas_open_to_everyone)
    if found:
        raise GrantRefused(
            f"every role may create functions in the schema {found[0]}, which is on the search "
            "path, so a reader could have its own functions called by other roles; run: "
            f"REVOKE CREATE ON SCHEMA {quote_identifier(found[0])} FROM PUBLIC"
        )


async def _require_role(connection: AsyncConnection, role: str) -> None:
    if not await _exists(connection, _ROLE, role=role):
        raise InvalidArgument(
            f"there is no role {role!r:.80}: an administrator creates it with CREATE ROLE … LOGIN"
        )


def require_postgresql(db: SessionsDB) -> None:
    """Raise ``InvalidArgument`` on SQLite, which has no roles."""
    if kind_of(db.engine) != "postgresql":
        raise InvalidArgument(
            "a SQLite file has no roles: a user who may read the file may read all of it; "
            "hand out reports with: sessionsdb report NAME --format csv"
        )


async def _exists(connection: AsyncConnection, statement: Any, **values: str) -> bool:
    return (await connection.execute(statement, values)).first() is not None


async def _execute(connection: AsyncConnection, template: str, *names: str) -> None:
    """Run a statement with names, which can't be parameters.

    The server inserts and quotes them: ``%I`` is an identifier, ``%L`` a literal.
    """
    parameters = ", ".join(f"CAST(:n{index} AS text)" for index in range(len(names)))
    values = {f"n{index}": name for index, name in enumerate(names)}
    statement = await connection.scalar(
        text(f"SELECT pg_catalog.format(CAST(:template AS text), {parameters})"),
        {"template": template, **values},
    )
    await connection.exec_driver_sql(statement)


@contextmanager
def _translate_errors() -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        hint = (
            "; connect as the owner of the tables, or as a superuser"
            if getattr(error.orig, "sqlstate", None) == "42501"
            else ""
        )
        raise StorageError(f"the database refused: {error.orig}{hint}") from error.orig
    except DATABASE_ERRORS as error:
        raise StorageError(f"the database failed: {error}") from error

"""Readers on PostgreSQL: roles that may read the report views, and nothing else of ours.

A reader of every namespace may SELECT from the views themselves, which run with the rights of
their owner. A reader of one namespace may not: it has views of the same names in a schema of that
namespace, each a security barrier, so that PostgreSQL decides which rows are its before it calls
anything the reader wrote. All of it is plain grants, so memberships of roles work as ever.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from sessionsdb import InvalidArgument, SessionsDB, SessionsDBError, StorageError, validation
from sessionsdb.reports.catalogue import VIEWS
from sessionsdb.schema import metadata

IDENTIFIER_BYTES = 63
"""What PostgreSQL keeps of a name."""

NAMES = [view.name for view in VIEWS]


class GrantRefused(SessionsDBError):
    """A grant that would not do what it says; nothing was changed."""


class Granted(NamedTuple):
    """What a reader was given."""

    role: str
    schema: str
    """Where its views are."""
    may_connect: bool
    """Whether it may connect to the database; that is the administrator's to grant."""


# Where the views are, found as our own statements find them.
_HOME = text("""
    SELECT n.nspname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.oid = to_regclass('report_sessions')
""")

_ROLE = text("SELECT 1 FROM pg_roles WHERE rolname = :role")

# What the role can read anyway: by a grant to it, to PUBLIC, or to a role that it is a member of
# and could switch to.
_READABLE = text("""
    SELECT c.relname, r.rolname
    FROM pg_roles AS r, pg_class AS c
    WHERE c.relnamespace = to_regnamespace(quote_ident(:home)) AND c.relname = ANY (:names)
      AND pg_has_role(:role, r.oid, 'MEMBER')
      AND has_any_column_privilege(r.oid, c.oid, 'SELECT')
    ORDER BY r.rolname <> :role, c.relname
    LIMIT 1
""")

_SCHEMA = text("""
    SELECT obj_description(oid, 'pg_namespace') AS comment FROM pg_namespace WHERE nspname = :schema
""")

_OUR_SCHEMAS = text("""
    SELECT nspname FROM pg_namespace
    WHERE starts_with(obj_description(oid, 'pg_namespace'), :comment) ORDER BY nspname
""")

# Whether a role was given anything of its own on the relations of a schema.
_HAS_GRANTS = text("""
    SELECT 1
    FROM pg_class AS c, aclexplode(c.relacl) AS a
    WHERE c.relnamespace = to_regnamespace(quote_ident(:schema))
      AND a.grantee = (SELECT oid FROM pg_roles WHERE rolname = :role)
    LIMIT 1
""")

_HAS_READERS = text("""
    SELECT 1 FROM pg_namespace AS n, aclexplode(n.nspacl) AS a
    WHERE n.nspname = :schema AND a.grantee <> n.nspowner LIMIT 1
""")

_COMMENT = "sessionsdb: the reports of namespace "


async def grant(db: SessionsDB, role: str, *, namespace: str | None = None) -> Granted:
    """Let ``role`` read the report views: of every namespace, or of one alone.

    Repeating it does no harm, and brings the views of one namespace up to this version. The role
    must exist. Raises ``InvalidArgument``, ``GrantRefused`` if the role could read more than it is
    to be granted anyway, and ``StorageError`` if we may not grant.
    """
    role = validation.name(role, "the role")
    if namespace is not None:
        namespace = validation.namespace(namespace)
    require_postgresql(db)
    with _errors():
        async with db.engine.begin() as connection:
            home = await _home(connection)
            await _require_role(connection, role)
            await _refuse_if_readable(connection, home, role, namespace)
            if namespace is None:
                schema = home
            else:
                schema = schema_of(namespace)
                await _make_views(connection, home, schema, namespace)
            await _run(connection, "GRANT USAGE ON SCHEMA %I TO %I", schema, role)
            for name in NAMES:
                await _run(connection, "GRANT SELECT ON %I.%I TO %I", schema, name, role)
            may_connect = await connection.scalar(
                text("SELECT has_database_privilege(:role, current_database(), 'CONNECT')"),
                {"role": role},
            )
            return Granted(role, schema, bool(may_connect))


async def revoke(db: SessionsDB, role: str, *, namespace: str | None = None) -> list[str]:
    """Take back what ``grant`` gave: the reports of one namespace, or all of them; the schemas in
    which the role could read. A namespace's views go with their last reader.

    Raises ``InvalidArgument``, and ``StorageError`` if we may not revoke.
    """
    role = validation.name(role, "the role")
    if namespace is not None:
        namespace = validation.namespace(namespace)
    require_postgresql(db)
    revoked = []
    with _errors():
        async with db.engine.begin() as connection:
            await _require_role(connection, role)
            home = await _home(connection)
            found = await connection.scalars(_OUR_SCHEMAS, {"comment": _COMMENT})
            schemas = [home, *found] if namespace is None else [schema_of(namespace)]
            for schema in schemas:
                if not await _has(connection, _HAS_GRANTS, schema=schema, role=role):
                    continue
                revoked.append(schema)
                for name in NAMES:
                    await _run(connection, "REVOKE ALL ON %I.%I FROM %I", schema, name, role)
                # Somebody may have given the role more than reports in the schema we share.
                if not await _has(connection, _HAS_GRANTS, schema=schema, role=role):
                    await _run(connection, "REVOKE USAGE ON SCHEMA %I FROM %I", schema, role)
                if schema != home and not await _has(connection, _HAS_READERS, schema=schema):
                    await _drop_views(connection, schema)
    return revoked


def schema_of(namespace: str) -> str:
    """The schema of a namespace's views: its name, or a digest where it would be too long."""
    name = f"reports_{namespace}"
    if len(name.encode()) <= IDENTIFIER_BYTES:
        return name
    return f"reports_{hashlib.sha256(namespace.encode()).hexdigest()[:32]}"


async def _make_views(connection: AsyncConnection, home: str, schema: str, namespace: str) -> None:
    comment = _COMMENT + namespace
    found = (await connection.execute(_SCHEMA, {"schema": schema})).first()
    if found is None:
        await _run(connection, "CREATE SCHEMA %I", schema)
        await _run(connection, "COMMENT ON SCHEMA %I IS %L", schema, comment)
    elif found.comment != comment:
        raise GrantRefused(
            f"there is a schema {schema} already, which is not ours: rename it, since the "
            f"reports of namespace {namespace} go there"
        )
    for view in VIEWS:
        columns = ", ".join(column.name for column in view.columns)
        await _run(
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
    for name in NAMES:
        await _run(connection, "DROP VIEW %I.%I", schema, name)
    await _run(connection, "DROP SCHEMA %I", schema)


async def _refuse_if_readable(
    connection: AsyncConnection, home: str, role: str, namespace: str | None
) -> None:
    tables = list(metadata.tables)
    names = tables if namespace is None else tables + NAMES
    found = (
        await connection.execute(_READABLE, {"home": home, "role": role, "names": names})
    ).first()
    if found is None:
        return
    through = "" if found.rolname == role else f", as a member of {found.rolname}"
    mend = (
        f"take that back with: sessionsdb grant-reader {role} --revoke"
        if found.relname in NAMES and found.rolname == role
        else "take that away from it first, or use another role"
    )
    raise GrantRefused(
        f"role {role} can read {found.relname} of every namespace already{through}: "
        f"granting it reports would limit nothing; {mend}"
    )


async def _home(connection: AsyncConnection) -> str:
    home = await connection.scalar(_HOME)
    if home is None:
        raise StorageError("the report views are not there; run: sessionsdb migrate")
    return str(home)


async def _require_role(connection: AsyncConnection, role: str) -> None:
    if not await _has(connection, _ROLE, role=role):
        raise InvalidArgument(
            f"there is no role {role!r:.80}: an administrator makes it with CREATE ROLE … LOGIN"
        )


def require_postgresql(db: SessionsDB) -> None:
    """Raises ``InvalidArgument`` on SQLite, which has no roles."""
    if db.engine.dialect.name != "postgresql":
        raise InvalidArgument(
            "a SQLite file has no roles: whoever may read the file reads all of it; "
            "give out reports with: sessionsdb report NAME --format csv"
        )


async def _has(connection: AsyncConnection, statement: Any, **values: str) -> bool:
    return (await connection.execute(statement, values)).first() is not None


async def _run(connection: AsyncConnection, template: str, *names: str) -> None:
    """Run a statement about names, which can't be parameters. The server puts them in, quoted by
    its own rules: ``%I`` an identifier, ``%L`` a literal."""
    places = ", ".join(f"CAST(:n{place} AS text)" for place in range(len(names)))
    values = {f"n{place}": name for place, name in enumerate(names)}
    made = await connection.scalar(
        text(f"SELECT format(CAST(:template AS text), {places})"), {"template": template, **values}
    )
    await connection.exec_driver_sql(made)


@contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        hint = (
            "; connect as the owner of the tables, or as a superuser"
            if getattr(error.orig, "sqlstate", None) == "42501"
            else ""
        )
        raise StorageError(f"the database refused: {error.orig}{hint}") from error.orig
    except (SQLAlchemyError, OSError) as error:
        raise StorageError(f"the database failed: {error}") from error

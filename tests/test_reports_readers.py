"""``grant-reader``: the rights of a role, tested by logging in as that role."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from sqlalchemy import make_url

from devtools.databases import Database, PostgresServer
from sessionsdb import InvalidArgument, SessionsDB, StorageError
from sessionsdb.reports import readers
from sessionsdb.reports.catalogue import VIEWS
from sessionsdb.reports.readers import GrantRefused
from sessionsdb.schema import VERSION_TABLE, metadata
from tests.support.command_line import CommandLine
from tests.support.schemas import downgrade, upgrade
from tests.support.turns import answer_next

DENIED = asyncpg.InsufficientPrivilegeError
NUMBERS = itertools.count(1)


@pytest.fixture
def kind() -> str:
    return "postgresql"


@pytest.fixture
async def two_tenants(db: SessionsDB) -> SessionsDB:
    for namespace in ("acme", "globex"):
        tenant = db.in_namespace(namespace)
        await tenant.broker.register(f"{namespace}-chat", channel=f"{namespace}-web", peer="ann")
        await tenant.broker.send(f"{namespace}-chat", f"a secret of {namespace}")
        await answer_next(tenant, "noted")
        await tenant.broker.send(f"{namespace}-chat", "more")
    return db


@pytest.fixture
async def role(postgres_server: PostgresServer, database: Database) -> AsyncIterator[str]:
    """A role that may log in and has been granted nothing, with a name that needs quoting."""
    name = f'reader "{next(NUMBERS)}" of O\'Neill'
    await database.query(f"CREATE ROLE {quoted(name)} LOGIN")
    yield name
    await database.query(f"DROP OWNED BY {quoted(name)} CASCADE")
    await database.query(f"DROP ROLE {quoted(name)}")


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


@asynccontextmanager
async def logged_in(database: Database, role: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(database.url, user=role)
    try:
        assert await connection.fetchval("SELECT current_user") == role
        yield connection
    finally:
        await connection.close()


async def namespaces(connection: asyncpg.Connection, schema: str) -> list[set[str]]:
    """The namespaces that each view shows."""
    return [
        {row[0] for row in await connection.fetch(f'SELECT * FROM "{schema}".{view.name}')}
        for view in VIEWS
    ]


async def assert_tables_are_closed(connection: asyncpg.Connection) -> None:
    for table in [*metadata.tables, VERSION_TABLE]:
        for statement in (
            f"SELECT * FROM {table}",
            f"SELECT count(*) FROM {table}",
            f"DELETE FROM {table}",
            f"SELECT query_to_xml('SELECT * FROM {table}', true, true, '')",
            f"COPY {table} TO STDOUT",
        ):
            with pytest.raises(DENIED):
                await connection.execute(statement)


# ---- every namespace ---------------------------------------------------------------------------


async def test_a_reader_reads_the_views_and_no_table(
    two_tenants: SessionsDB, database: Database, role: str
) -> None:
    async with logged_in(database, role) as connection:
        with pytest.raises(DENIED):
            await connection.fetch("SELECT * FROM report_sessions")
    granted = await readers.grant(two_tenants, role)
    assert granted == (role, "public", True)
    async with logged_in(database, role) as connection:
        assert await namespaces(connection, "public") == [{"acme", "globex"}] * len(VIEWS)
        await assert_tables_are_closed(connection)
        for statement in (
            "UPDATE report_turns SET error = 'x'",
            "DELETE FROM report_inbox",
            "CREATE TABLE mine (x int)",
        ):
            with pytest.raises((DENIED, asyncpg.ObjectNotInPrerequisiteStateError)):
                await connection.execute(statement)


async def test_a_grant_can_be_repeated_and_taken_back(
    two_tenants: SessionsDB, database: Database, role: str
) -> None:
    for _ in range(2):
        await readers.grant(two_tenants, role)
    assert await readers.revoke(two_tenants, role) == ["public"]
    assert await readers.revoke(two_tenants, role) == []
    async with logged_in(database, role) as connection:
        for view in VIEWS:
            with pytest.raises(DENIED):
                await connection.fetch(f"SELECT * FROM {view.name}")
    # No remaining grant keeps the role from being dropped.
    left = "SELECT count(*) FROM pg_shdepend AS d JOIN pg_roles AS r ON r.oid = d.refobjid"
    assert await database.value(f"{left} WHERE r.rolname LIKE 'reader%'") == 0


# ---- one namespace -----------------------------------------------------------------------------


async def test_a_reader_of_one_namespace_reads_that_and_no_other(
    two_tenants: SessionsDB, database: Database, role: str
) -> None:
    granted = await readers.grant(two_tenants, role, namespace="acme")
    assert granted.schema == "reports_acme"
    async with logged_in(database, role) as connection:
        assert await namespaces(connection, "reports_acme") == [{"acme"}] * len(VIEWS)
        for view in VIEWS:
            for statement in (
                f"SELECT * FROM {view.name}",
                f"SELECT count(*) FROM public.{view.name}",
                f"SELECT query_to_xml('SELECT * FROM {view.name}', true, true, '')",
                f"CREATE OR REPLACE VIEW reports_acme.{view.name} AS SELECT 1 AS namespace",
                f"ALTER VIEW reports_acme.{view.name} RESET (security_barrier)",
                f"DELETE FROM reports_acme.{view.name}",
            ):
                with pytest.raises((DENIED, asyncpg.ObjectNotInPrerequisiteStateError)):
                    await connection.execute(statement)
        await assert_tables_are_closed(connection)
        await connection.execute("SET search_path TO reports_acme")
        assert {row[0] for row in await connection.fetch("SELECT namespace FROM report_turns")} == {
            "acme"
        }
        for other in ("SET ROLE postgres", "CREATE TABLE reports_acme.mine (x int)"):
            with pytest.raises(DENIED):
                await connection.execute(other)


LEAK = """
CREATE FUNCTION pg_temp.leak(text) RETURNS boolean LANGUAGE plpgsql COST 0.0000001 AS
    $$ BEGIN RAISE NOTICE 'seen %', $1; RETURN true; END $$
"""

# An index on the namespace would hide the rows that a function sees in a scan.
NO_INDEX = "SET enable_indexscan = off; SET enable_bitmapscan = off; SET enable_indexonlyscan = off"

LEAKY_OPERATOR = """
CREATE FUNCTION pg_temp.leak2(text, text) RETURNS boolean LANGUAGE plpgsql COST 0.0000001 AS
    $$ BEGIN RAISE NOTICE 'seen %', $1; RETURN true; END $$;
CREATE OPERATOR pg_temp.<<<< (LEFTARG = text, RIGHTARG = text, FUNCTION = pg_temp.leak2)
"""


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.name)
async def test_functions_of_the_reader_never_see_another_namespaces_rows(
    two_tenants: SessionsDB, database: Database, role: str, view: Any
) -> None:
    """Without the barrier the planner calls a cheap function before it filters the namespace."""
    await readers.grant(two_tenants, role, namespace="acme")
    column = "channel"
    tricks = (
        "SELECT * FROM {0} WHERE pg_temp.leak(namespace || {1})",
        "SELECT * FROM {0} WHERE {1} OPERATOR(pg_temp.<<<<) namespace",
        "SELECT count(*) FROM {0} WHERE pg_temp.leak({1}) OR namespace = 'globex'",
        "SELECT * FROM {0} AS a JOIN {0} AS b ON pg_temp.leak(a.{1} || b.{1})",
    )
    async with logged_in(database, role) as connection:
        seen: list[str] = []
        connection.add_log_listener(lambda _, message: seen.append(str(message)))
        await connection.execute(LEAK)
        await connection.execute(LEAKY_OPERATOR)
        await connection.execute(NO_INDEX)
        for trick in tricks:
            await connection.fetch(trick.format(f"reports_acme.{view.name}", column))
        assert seen
        assert not any("globex" in message for message in seen)
        # The error of a failed cast contains the value.
        with pytest.raises(asyncpg.DataError, match="acme"):
            await connection.fetch(
                f"SELECT * FROM reports_acme.{view.name} WHERE CAST({column} AS integer) = 1"
            )


async def test_the_tricks_do_work_where_there_is_no_barrier(
    two_tenants: SessionsDB, database: Database, role: str
) -> None:
    """Prove that the test above can fail."""
    await database.query(
        "CREATE VIEW open_view AS SELECT * FROM report_turns WHERE namespace = 'acme'"
    )
    await database.query(f"GRANT SELECT ON open_view TO {quoted(role)}")
    async with logged_in(database, role) as connection:
        seen: list[str] = []
        connection.add_log_listener(lambda _, message: seen.append(str(message)))
        await connection.execute(LEAK)
        await connection.execute(NO_INDEX)
        await connection.fetch("SELECT * FROM open_view WHERE pg_temp.leak(session_id)")
        assert any("globex" in message for message in seen)


async def test_readers_of_one_namespace_share_its_views_until_the_last_is_gone(
    two_tenants: SessionsDB, database: Database, role: str, postgres_server: PostgresServer
) -> None:
    await readers.grant(two_tenants, role, namespace="acme")
    await readers.grant(two_tenants, role, namespace="globex")
    postgres_server.sql("CREATE ROLE second_reader LOGIN")
    try:
        await readers.grant(two_tenants, "second_reader", namespace="acme")
        assert await readers.revoke(two_tenants, role, namespace="acme") == ["reports_acme"]
        async with logged_in(database, role) as connection:
            assert await namespaces(connection, "reports_globex") == [{"globex"}] * len(VIEWS)
            with pytest.raises(DENIED):
                await namespaces(connection, "reports_acme")
        async with logged_in(database, "second_reader") as connection:
            assert await namespaces(connection, "reports_acme") == [{"acme"}] * len(VIEWS)
        assert await readers.revoke(two_tenants, "second_reader") == ["reports_acme"]
        assert await readers.revoke(two_tenants, role) == ["reports_globex"]
    finally:
        await readers.revoke(two_tenants, "second_reader")
        postgres_server.sql("DROP ROLE second_reader")
    schemas = "SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'reports%'"
    assert await database.value(schemas) == 0


@pytest.mark.parametrize("namespace", ['quo"te', "O'Neill", "%I %L :x ; --", "ünï" * 20, "A b"])
async def test_any_namespace_can_have_readers(
    two_tenants: SessionsDB, database: Database, role: str, namespace: str
) -> None:
    tenant = two_tenants.in_namespace(namespace)
    await tenant.broker.register("chat", channel="web", peer="ann")
    schema = (await readers.grant(two_tenants, role, namespace=namespace)).schema
    assert len(schema.encode()) <= 63
    async with logged_in(database, role) as connection:
        found = await connection.fetch(f"SELECT namespace FROM {quoted(schema)}.report_sessions")
        assert [row[0] for row in found] == [namespace]
    assert await readers.revoke(two_tenants, role, namespace=namespace) == [schema]


# ---- refused -----------------------------------------------------------------------------------


async def test_a_role_that_reads_more_already_is_refused(
    two_tenants: SessionsDB, database: Database, role: str
) -> None:
    with pytest.raises(GrantRefused, match=r"postgres can read .* already"):
        await readers.grant(two_tenants, "postgres")
    await readers.grant(two_tenants, role)
    with pytest.raises(GrantRefused, match=r"report_\w+ of every namespace.*--revoke"):
        await readers.grant(two_tenants, role, namespace="acme")
    await readers.revoke(two_tenants, role)
    for given, to in (
        ("SELECT ON messages", quoted(role)),
        ("SELECT (content) ON inbox", "PUBLIC"),
        ("pg_read_all_data", quoted(role)),
    ):
        await database.query(f"GRANT {given} TO {to}")
        for namespace in (None, "acme"):
            with pytest.raises(GrantRefused, match="already"):
                await readers.grant(two_tenants, role, namespace=namespace)
        await database.query(f"REVOKE {given} FROM {to}")
    schemas = "SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'reports%'"
    assert await database.value(schemas) == 0
    await readers.grant(two_tenants, role, namespace="acme")


async def test_what_cannot_be_granted_is_refused_with_a_reason(
    two_tenants: SessionsDB, database: Database, role: str
) -> None:
    for missing in ("nobody", "public", "PUBLIC", "current_user", "x; DROP TABLE inbox"):
        with pytest.raises(InvalidArgument, match="there is no role"):
            await readers.grant(two_tenants, missing)
    await database.query("CREATE SCHEMA reports_theirs")
    with pytest.raises(
        GrantRefused, match="the schema reports_theirs exists and was not made by sessionsdb"
    ):
        await readers.grant(two_tenants, role, namespace="theirs")
    url = make_url(database.url).set(username=role).render_as_string(hide_password=False)
    await database.query(f"GRANT SELECT ON {VERSION_TABLE} TO PUBLIC")
    async with SessionsDB(url) as powerless:
        with pytest.raises(StorageError, match=r"permission denied.*connect as the owner"):
            await readers.grant(powerless, role)


@pytest.mark.parametrize("namespace", [None, "acme"])
async def test_no_reader_is_added_while_every_role_may_create_on_the_search_path(
    two_tenants: SessionsDB, database: Database, role: str, namespace: str | None
) -> None:
    """Such a reader could plant a function that other roles call."""
    await readers.grant(two_tenants, role, namespace=namespace)
    await database.query("GRANT CREATE ON SCHEMA public TO PUBLIC")
    with pytest.raises(GrantRefused) as refused:
        await readers.grant(two_tenants, "pg_monitor", namespace=namespace)
    remedy = 'REVOKE CREATE ON SCHEMA "public" FROM PUBLIC'
    assert "may create functions in the schema public" in str(refused.value)
    assert remedy in str(refused.value)
    granted = "SELECT count(*) FROM pg_class WHERE relacl::text LIKE '%pg_monitor%'"
    assert await database.value(granted) == 0
    # A right that was given earlier can be taken back in this state.
    assert await readers.revoke(two_tenants, role, namespace=namespace) != []
    await database.query(remedy)
    await readers.grant(two_tenants, role, namespace=namespace)


async def test_any_open_schema_of_the_search_path_counts_and_no_other(
    two_tenants: SessionsDB, database: Database, role: str
) -> None:
    await database.query('CREATE SCHEMA "Odd one"')
    await database.query('GRANT CREATE ON SCHEMA "Odd one" TO PUBLIC')
    await readers.grant(two_tenants, role)  # nothing looks a name up there
    name = await database.value("SELECT current_database()")
    await database.query(f'ALTER DATABASE {name} SET search_path = public, "Odd one"')
    async with SessionsDB(database.url) as db:
        with pytest.raises(GrantRefused, match=r'REVOKE CREATE ON SCHEMA "Odd one" FROM PUBLIC'):
            await readers.grant(db, role)


async def test_a_downgrade_takes_the_views_of_namespaces_with_it(
    two_tenants: SessionsDB, database: Database, role: str
) -> None:
    await readers.grant(two_tenants, role, namespace="acme")
    await downgrade(database, "0003")
    await upgrade(database)
    await readers.grant(two_tenants, role, namespace="acme")
    async with logged_in(database, role) as connection:
        assert await namespaces(connection, "reports_acme") == [{"acme"}] * len(VIEWS)


# ---- the command -------------------------------------------------------------------------------


async def test_the_command_grants_and_revokes(
    two_tenants: SessionsDB, database: Database, role: str
) -> None:
    cli = CommandLine(database.url)
    for words, said in (
        ([role, "--for-namespace", "acme"], 'may read "reports_acme".report_sessions'),
        ([role, "--revoke", "--for-namespace", "globex"], "nothing to revoke"),
        ([role, "--revoke"], "reads nothing in reports_acme any more"),
        ([role], 'may read "public".report_sessions'),
    ):
        answer = (await asyncio.to_thread(cli, "grant-reader", *words)).ok()
        assert said in answer.stdout
    refused = await asyncio.to_thread(cli, "grant-reader", "nobody")
    refused.failed("there is no role 'nobody'")
    await database.query("GRANT CREATE ON SCHEMA public TO PUBLIC")
    refused = await asyncio.to_thread(cli, "grant-reader", role)
    refused.failed('run: REVOKE CREATE ON SCHEMA "public" FROM PUBLIC')


def test_on_sqlite_the_command_says_that_there_are_no_roles(tmp_path: Path) -> None:
    cli = CommandLine(f"sqlite:///{tmp_path}/none.db")
    cli("grant-reader", "analyst").failed("a SQLite file has no roles")
    cli("grant-reader", "analyst", "--for-namespace", "").refused("--for-namespace must not be")
    assert not list(tmp_path.iterdir())

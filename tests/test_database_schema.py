"""``schema=``: the tables in one PostgreSQL schema, an application's tables in ``public``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import asyncpg
import pytest
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

from devtools.databases import Database, add_application
from sessionsdb import (
    InvalidArgument,
    SchemaOutOfDate,
    SessionsDB,
    SessionsDBError,
    StorageError,
    UnknownSession,
)
from sessionsdb.admin import doctor
from sessionsdb.database import open_database_of
from sessionsdb.engine import migrations, urls
from sessionsdb.engine.postgresql.notifier import CHANNEL, channel_of
from sessionsdb.engine.postgresql.search_path import quote_identifier
from sessionsdb.handlers import echo
from sessionsdb.reports import queries, readers
from sessionsdb.reports.catalogue import REPORTS, VIEWS
from sessionsdb.schema import VERSION_TABLE, metadata
from sessionsdb.telemetry.load_gauges import LoadSource
from tests.support.command_line import CommandLine
from tests.support.proxy import proxy_to
from tests.support.schemas import differences, downgrade, revision, upgrade
from tests.support.waiting import until
from tests.support.work import running
from tests.test_cli_schema import apply
from tests.test_migrations import alembic
from tests.test_namespaces import HELLO, VERBS

ODD = 'Our "agents": 50% $1 Nämé'
"""A name with everything that needs quoting somewhere."""


@pytest.fixture
def kind() -> str:
    return "postgresql"


@pytest.fixture
async def shared(empty_database: Database) -> Database:
    """A database whose ``public`` has an application's tables with the names of ours."""
    await add_application(empty_database)
    return empty_database


async def assert_nothing_of_theirs_changed(database: Database) -> None:
    for table in (*metadata.tables, VERSION_TABLE):
        assert await database.query(f"SELECT * FROM public.{table}") == [("theirs",)]
    in_public = "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace"
    assert {row[0] for row in await database.query(in_public)} == {*metadata.tables, VERSION_TABLE}


def inside(database: Database, schema: str) -> Database:
    return Database("postgresql", f"{database.url}&schema={quote(schema)}")


async def installed(database: Database, *schemas: str) -> list[Database]:
    """Installations in several schemas of one database."""
    for schema in schemas:
        await upgrade(inside(database, schema))
    return [inside(database, schema) for schema in schemas]


Opening = Callable[[Database, str], AbstractAsyncContextManager[SessionsDB]]


def by_url(database: Database, schema: str) -> SessionsDB:
    return SessionsDB(inside(database, schema).url)


def by_argument(database: Database, schema: str) -> SessionsDB:
    return SessionsDB(database.url, schema=schema)


@asynccontextmanager
async def through_a_pooler(database: Database, schema: str) -> AsyncIterator[SessionsDB]:
    async with proxy_to(database) as proxy:
        async with SessionsDB(proxy.url, schema=schema, transaction_pooler=True) as db:
            yield db
        assert proxy.outside == []


@asynccontextmanager
async def on_an_engine_of_mine(database: Database, schema: str) -> AsyncIterator[SessionsDB]:
    engine = create_async_engine(urls.parse(database.url))
    async with SessionsDB(engine, schema=schema) as db:
        yield db
        async with engine.connect() as connection:
            path = await connection.scalar(text("SHOW search_path"))
            assert path == '"$user", public'
    await engine.dispose()


@asynccontextmanager
async def on_an_engine_in_autocommit(database: Database, schema: str) -> AsyncIterator[SessionsDB]:
    engine = create_async_engine(urls.parse(database.url), isolation_level="AUTOCOMMIT")
    async with SessionsDB(engine, schema=schema) as db:
        yield db
    await engine.dispose()


OPENINGS = (
    by_url,
    by_argument,
    through_a_pooler,
    on_an_engine_of_mine,
    on_an_engine_in_autocommit,
)


# ---- everything works there ----------------------------------------------------------------------


@pytest.mark.parametrize("opening", OPENINGS)
async def test_every_verb_the_worker_and_the_reports_work(
    shared: Database, opening: Opening
) -> None:
    await installed(shared, ODD)
    async with opening(shared, ODD) as db, running(db, echo, poll_interval=0.05):
        assert db.schema == ODD
        await db.broker.register("mine", channel="cli", peer="ada")
        for name, verb in VERBS.items():
            try:
                await verb(db, "mine")
            except StorageError as error:
                raise AssertionError(name) from error
            except SessionsDBError:
                pass  # the session ended, or the message was answered meanwhile
        await db.store.save("chat", HELLO)
        await db.store.save("chat", [*HELLO, {"role": "assistant", "content": "again"}])
        receipt = await db.broker.send("chat", "hello")
        assert (await db.broker.wait(receipt, timeout=30)).status == "done"
        for report in REPORTS:
            await queries.read(db, report)
        assert (await doctor.examine(db, fix=True)).findings == []
        async with db.engine.begin() as connection:
            assert await connection.scalar(text("SELECT count(*) FROM sessions")) > 0
    await assert_nothing_of_theirs_changed(shared)


@pytest.mark.parametrize("opening", OPENINGS)
async def test_the_doctor_examines_the_schema_of_the_handle_only(
    shared: Database, opening: Opening
) -> None:
    await installed(shared, "agents", ODD)
    engine = create_async_engine(urls.parse(shared.url))
    async with engine.begin() as connection:
        quoted = quote_identifier(ODD)
        await connection.execute(text(f"DROP INDEX {quoted}.ix_inbox_dead"))
        await connection.execute(
            text(
                f"ALTER TABLE {quoted}.inbox ADD CONSTRAINT planted CHECK (position > 0) NOT VALID"
            )
        )
    await engine.dispose()
    async with opening(shared, "agents") as db:
        assert (await doctor.examine(db)).findings == []
    async with opening(shared, ODD) as db:
        found = {one.check: one.examples for one in (await doctor.examine(db)).findings}
    assert found == {"missing-indices": ["ix_inbox_dead"], "unvalidated-constraints": ["planted"]}


async def test_two_handles_in_two_schemas_on_one_engine(shared: Database) -> None:
    await installed(shared, "agents", "billing")
    engine = create_async_engine(urls.parse(shared.url), pool_size=1, max_overflow=1)
    async with (
        SessionsDB(engine, schema="agents") as one,
        SessionsDB(engine, schema="billing") as two,
    ):
        for db, word in ((one, "ours"), (two, "theirs"), (one, "ours"), (two, "theirs")):
            await db.store.save("chat", [{"role": "user", "content": word}])
            assert [m.content for m in await db.broker.history("chat")] == [word]
    await engine.dispose()


def test_each_command_works(empty_database: Database, tmp_path: Path) -> None:
    database = empty_database
    asyncio.run(add_application(database))
    cli = CommandLine(inside(database, ODD).url)
    cli("list").failed("has no schema", "run: sessionsdb migrate")
    cli("migrate").ok()
    assert "nothing to do" in cli("migrate").ok().stdout
    cli("register", "chat", "--channel", "cli", "--peer", "ada").ok()
    cli("send", "chat", "hello").ok()
    cli("worker", "sessionsdb.handlers:echo", "--until-idle").ok()
    assert "hello" in cli("history", "chat").ok().stdout
    assert [row["id"] for row in cli("list", "--json").ok().json] == ["chat"]
    cli("tree", "chat").ok()
    cli("top", "--once").ok()
    for report in REPORTS:
        cli("report", report).ok()
    cli("export", "--output", str(tmp_path / "all.jsonl")).ok()
    cli("import", str(tmp_path / "all.jsonl")).ok()
    cli("purge", "--finished-before", "2020-01-01T00:00:00Z", "--yes").ok()
    assert cli("doctor").ok().stdout.endswith("healthy\n")
    cli("backup", str(tmp_path / "copy")).failed("""pg_dump --schema='"Our ""agents""")

    asyncio.run(assert_nothing_of_theirs_changed(database))


# ---- two installations ---------------------------------------------------------------------------


async def test_two_schemas_share_no_session_and_no_work(shared: Database) -> None:
    agents, billing = await installed(shared, "agents", "billing")
    async with SessionsDB(agents.url) as db, SessionsDB(billing.url) as other:
        await db.broker.register("chat", channel="cli", peer="ada")
        receipt = await db.broker.send("chat", "hello")
        with pytest.raises(UnknownSession):
            await other.broker.get("chat")
        assert await other.worker(echo, namespaces="*").run_until_idle() == 0
        assert (await db.broker.outcome(receipt)).status == "pending"
        assert await db.worker(echo).run_until_idle() == 1


async def test_two_schemas_do_not_hear_each_other(shared: Database) -> None:
    agents, billing = await installed(shared, "agents", "billing")
    heard: list[str] = []
    listener = await shared.connect_to_postgres()
    for channel in (CHANNEL, channel_of("agents"), channel_of("billing")):
        await listener.add_listener(channel, lambda *given: heard.append(given[2]))
    async with SessionsDB(agents.url) as db, SessionsDB(billing.url) as other:
        for handle, schema in ((db, "agents"), (other, "billing")):
            await handle.broker.register("chat", channel="cli", peer="ada")
            await handle.broker.send("chat", "hello")
            await until(lambda schema=schema: channel_of(schema) in heard)
            assert set(heard) == {channel_of(schema)}
            heard.clear()
    await listener.close()


async def test_a_worker_hears_a_send_of_another_process_in_its_schema(shared: Database) -> None:
    [agents] = await installed(shared, "agents")
    async with (
        SessionsDB(agents.url) as sender,
        SessionsDB(agents.url) as db,
        running(db, echo, poll_interval=60),
    ):
        await sender.broker.register("chat", channel="cli", peer="ada")
        receipt = await sender.broker.send("chat", "hello")
        assert (await sender.broker.wait(receipt, timeout=20)).status == "done"


def test_each_installation_has_a_channel_that_postgresql_accepts() -> None:
    names = (None, "agents", "Agents", "é" * 31, "x" * 63, "x" * 62 + "y")
    channels = [channel_of(name) for name in names]
    assert channels[0] == "sessionsdb"
    assert len(set(channels)) == len(names)
    assert all(len(channel.encode()) <= 63 for channel in channels)


async def test_a_migration_of_one_schema_does_not_wait_for_another(shared: Database) -> None:
    [agents] = await installed(shared, "agents")
    async with SessionsDB(agents.url) as db, db.engine.begin() as connection:
        await connection.run_sync(migrations.lock)
        async with asyncio.timeout(30):
            await installed(shared, "billing")


async def test_gauges_tell_the_schema(shared: Database) -> None:
    [agents] = await installed(shared, "agents")
    async with SessionsDB(agents.url) as db:
        name = make_url(agents.url).database
        source = LoadSource(open_database_of(db), None)
        assert source.attributes["db.namespace"] == f"{name}|agents"


# ---- readers -------------------------------------------------------------------------------------


@asynccontextmanager
async def new_role(database: Database, name: str) -> AsyncIterator[str]:
    await database.query(f"CREATE ROLE {name} LOGIN")
    try:
        yield name
    finally:
        await database.query(f"DROP OWNED BY {name} CASCADE")
        await database.query(f"DROP ROLE {name}")


async def seen(database: Database, role: str, schema: str) -> set[str]:
    connection = await asyncpg.connect(database.url, user=role)
    try:
        rows = await connection.fetch(f'SELECT session_id FROM "{schema}".report_sessions')
        return {row[0] for row in rows}
    finally:
        await connection.close()


async def test_readers_of_one_schema_see_nothing_of_the_other(shared: Database) -> None:
    async with new_role(shared, "reader_one") as one, new_role(shared, "reader_two") as two:
        for installation, role in zip(
            await installed(shared, "agents", "billing"), (one, two), strict=True
        ):
            async with SessionsDB(installation.url) as db:
                await db.broker.register(f"of {role}", channel="cli", peer="ada")
                granted = await readers.grant(db, role, namespace="default")
                assert granted.schema == f"{db.schema}_reports_default"
        assert await seen(shared, one, "agents_reports_default") == {"of reader_one"}
        assert await seen(shared, two, "billing_reports_default") == {"of reader_two"}
        for schema in ("billing_reports_default", "agents", "billing"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await seen(shared, one, schema)
        async with by_argument(shared, "billing") as db:
            assert await readers.revoke(db, one) == []
            assert await readers.revoke(db, two) == ["billing_reports_default"]
        assert await seen(shared, one, "agents_reports_default") == {"of reader_one"}


async def test_a_grant_from_before_the_schema_was_named_can_be_revoked(shared: Database) -> None:
    [agents] = await installed(shared, "agents")
    name = make_url(agents.url).database
    async with new_role(shared, "reader_one") as one:
        await shared.query(f"ALTER DATABASE {name} SET search_path = agents")
        async with SessionsDB(shared.url) as db:
            assert (await readers.grant(db, one, namespace="default")).schema == "reports_default"
        async with SessionsDB(agents.url) as db:
            assert await readers.revoke(db, one, namespace="default") == ["reports_default"]


async def test_the_views_of_another_installation_are_not_replaced(shared: Database) -> None:
    await installed(shared, "agents", "billing")
    name = make_url(shared.url).database
    async with new_role(shared, "reader_one") as one:
        await shared.query(f"ALTER DATABASE {name} SET search_path = agents")
        async with SessionsDB(shared.url) as db:
            await db.broker.register("of agents", channel="cli", peer="ada")
            await readers.grant(db, one, namespace="default")
        await shared.query(f"ALTER DATABASE {name} SET search_path = billing")
        async with SessionsDB(shared.url) as db:
            with pytest.raises(readers.GrantRefused, match="schema=billing"):
                await readers.grant(db, one, namespace="default")
        assert await seen(shared, one, "reports_default") == {"of agents"}


# ---- a caller's transaction ----------------------------------------------------------------------


@pytest.mark.parametrize("opening", [by_argument, through_a_pooler, on_an_engine_of_mine])
async def test_a_callers_own_path_stays(shared: Database, opening: Opening) -> None:
    await installed(shared, "agents")
    engine = create_async_engine(urls.parse(shared.url))
    path = text("SHOW search_path")
    before = {
        "nothing": '"$user", public',
        "SET search_path = pg_catalog, public": "pg_catalog, public",
        "SET LOCAL search_path = public": "public",
    }
    async with opening(shared, "agents") as db:
        await db.broker.register("chat", channel="cli", peer="ada")
        for setting, mine in before.items():
            async with engine.connect() as connection:
                async with connection.begin():
                    if setting != "nothing":
                        await connection.execute(text(setting))
                    await connection.execute(text("INSERT INTO sessions VALUES ('mine')"))
                    await db.broker.send("chat", setting, connection=connection)
                    assert await connection.scalar(path) == mine
                    with pytest.raises(UnknownSession):
                        await db.broker.send("nowhere", "hello", connection=connection)
                    assert await connection.scalar(path) == mine
                    await connection.execute(text("DELETE FROM sessions WHERE theirs = 'mine'"))
                stays = '"$user", public' if "LOCAL" in setting else mine
                assert await connection.scalar(path) == stays
                await connection.execute(text("RESET search_path"))
                await connection.commit()
        assert (await db.broker.get("chat")).pending == len(before)
        async with engine.connect() as connection, connection.begin() as transaction:
            await db.broker.send("chat", "never", connection=connection)
            await transaction.rollback()
        assert (await db.broker.get("chat")).pending == len(before)
    await engine.dispose()
    await assert_nothing_of_theirs_changed(shared)


async def test_a_caller_in_autocommit_can_not_write_into_another_schema(shared: Database) -> None:
    await installed(shared, "agents")
    engine = create_async_engine(urls.parse(shared.url), isolation_level="AUTOCOMMIT")
    async with by_argument(shared, "agents") as db, engine.connect() as connection:
        await db.broker.register("chat", channel="cli", peer="ada")
        with pytest.raises(InvalidArgument, match="AUTOCOMMIT"):
            await db.broker.send("chat", "hello", connection=connection)
        assert (await db.broker.get("chat")).pending == 0
    await engine.dispose()
    await assert_nothing_of_theirs_changed(shared)


@pytest.mark.parametrize("statement", ["INSERT INTO inbox", "COMMIT"])
@pytest.mark.parametrize("pooler", [False, True])
async def test_a_lost_answer_is_looked_up_in_the_schema(
    shared: Database, statement: str, pooler: bool
) -> None:
    await installed(shared, "agents")
    async with proxy_to(shared) as proxy:
        engine = create_async_engine(urls.parse(proxy.url))
        options = {"schema": "agents", "transaction_pooler": pooler}
        async with SessionsDB(proxy.url if pooler else engine, **options) as db:
            await db.broker.register("chat", channel="cli", peer="ada")
            proxy.cut(statement, "after")
            receipt = await db.broker.send("chat", "hello")
            assert proxy.cuts == 1
            assert receipt.position == 1
            assert (await db.broker.get("chat")).pending == 1
        await engine.dispose()
    await assert_nothing_of_theirs_changed(shared)


# ---- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "",
        "x" * 64,
        "é" * 32,
        "nul\0",
        "\ud800",
        "pg_temp",
        "pg_x",
        "$user",
        "information_schema",
        5,
    ],
)
def test_a_name_that_can_be_no_schema_is_refused(name: Any) -> None:
    with pytest.raises(InvalidArgument, match="schema"):
        SessionsDB("postgresql://ada@db/agents", schema=name)


async def test_names_that_differ_in_case_are_different_schemas(shared: Database) -> None:
    lower, upper = await installed(shared, "agents", "Agents")
    async with SessionsDB(lower.url) as db, SessionsDB(upper.url) as other:
        await db.store.save("chat", HELLO)
        assert await other.store.load("chat") is None


async def test_url_and_argument_must_agree() -> None:
    url = "postgresql://ada@db/agents?schema=agents"
    assert SessionsDB(url, schema="agents").schema == SessionsDB(url).schema == "agents"
    with pytest.raises(InvalidArgument, match=r"'agents'.*'billing'"):
        SessionsDB(url, schema="billing")
    with pytest.raises(InvalidArgument, match="several schemas"):
        SessionsDB(url + "&schema=billing")
    with pytest.raises(InvalidArgument, match="schema in the database URL is empty"):
        SessionsDB("postgresql://ada@db/agents?schema=")


async def test_an_engine_whose_url_names_a_schema_is_refused_with_the_way_to_do_it() -> None:
    engine = create_async_engine("postgresql+asyncpg://ada@db/agents?schema=agents")
    with pytest.raises(InvalidArgument, match=r"SessionsDB\(engine, schema="):
        SessionsDB(engine)


def test_sqlite_says_that_a_file_of_its_own_is_the_answer(tmp_path: Path) -> None:
    for call in (
        lambda: SessionsDB(f"sqlite:///{tmp_path}/a.db", schema="agents"),
        lambda: SessionsDB(f"sqlite:///{tmp_path}/a.db?schema=agents"),
        lambda: SessionsDB(create_async_engine("sqlite+aiosqlite://"), schema="agents"),
    ):
        with pytest.raises(InvalidArgument, match="a file of its own"):
            call()
    assert list(tmp_path.iterdir()) == []
    CommandLine(f"sqlite:///{tmp_path}/a.db?schema=agents")("list").failed("a file of its own")


# ---- migrations ----------------------------------------------------------------------------------


async def test_the_tables_in_a_schema_are_those_of_the_package(shared: Database) -> None:
    [odd] = await installed(shared, ODD)
    assert await differences(odd) == []
    await downgrade(odd, "0002")
    await upgrade(odd)
    assert await differences(odd) == []
    await assert_nothing_of_theirs_changed(shared)


async def test_the_alembic_command_works_in_a_schema(shared: Database, tmp_path: Path) -> None:
    odd = inside(shared, ODD)
    schemas = "SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_|^information_schema'"
    await alembic("current", cwd=tmp_path, url=odd.url)
    assert await shared.query(schemas) == [("public",)]
    await alembic("upgrade", "head", cwd=tmp_path, url=odd.url)
    await alembic("check", cwd=tmp_path, url=odd.url)
    assert await differences(odd) == []
    await alembic("downgrade", "base", cwd=tmp_path, url=odd.url)
    await assert_nothing_of_theirs_changed(shared)


async def test_the_printed_sql_makes_the_schema(shared: Database) -> None:
    odd = inside(shared, ODD)
    sql = (await asyncio.to_thread(CommandLine(odd.url), "migrate", "--sql")).ok().stdout
    await asyncio.to_thread(apply, sql, shared)
    assert await differences(odd) == []
    await assert_nothing_of_theirs_changed(shared)


async def test_migrations_of_a_missing_schema_at_the_same_time_all_succeed(
    shared: Database,
) -> None:
    async def migrate() -> None:
        async with SessionsDB(shared.url, schema="agents", migrate=True):
            pass

    await asyncio.gather(*(migrate() for _ in range(4)))
    assert await differences(inside(shared, "agents")) == []
    await assert_nothing_of_theirs_changed(shared)


async def test_a_role_that_may_not_create_the_schema_is_told_the_statement(
    shared: Database,
) -> None:
    async with new_role(shared, "plain_role") as role:
        url = make_url(shared.url).set(username=role).render_as_string()
        with pytest.raises(StorageError, match='CREATE SCHEMA "agents" AUTHORIZATION "plain_role"'):
            async with SessionsDB(url, schema="agents", migrate=True):
                pass
        await shared.query("CREATE SCHEMA agents AUTHORIZATION plain_role")
        async with SessionsDB(url, schema="agents", migrate=True) as db:
            await db.store.save("chat", HELLO)


async def test_a_role_that_may_not_use_the_schema_is_told_the_grant(shared: Database) -> None:
    await installed(shared, "agents")
    async with new_role(shared, "plain_role") as role:
        url = make_url(shared.url).set(username=role).render_as_string()
        for migrate in (False, True):
            with pytest.raises(
                StorageError, match='GRANT USAGE ON SCHEMA "agents" TO "plain_role"'
            ):
                async with SessionsDB(url, schema="agents", migrate=migrate):
                    pass


# ---- collisions ----------------------------------------------------------------------------------


async def test_a_collision_gets_advice(shared: Database) -> None:
    await shared.query(f"DROP TABLE {VERSION_TABLE}")
    with pytest.raises(SchemaOutOfDate, match=r"inbox, mailboxes, .*schema=agents"):
        async with SessionsDB(shared.url):
            pass
    with pytest.raises(StorageError, match=r"nothing was migrated.*schema=agents"):
        async with SessionsDB(shared.url, migrate=True):
            pass
    assert await revision(shared) is None


async def test_a_collision_with_a_later_revision_gets_advice(empty_database: Database) -> None:
    await upgrade(empty_database, "0001")
    await empty_database.query("CREATE VIEW waits AS SELECT 1 AS theirs")
    with pytest.raises(StorageError, match=r"waits.*schema=agents"):
        async with SessionsDB(empty_database.url, migrate=True):
            pass
    assert await revision(empty_database) == "0001"


async def test_a_file_with_tables_of_another_program_gets_advice(tmp_path: Path) -> None:
    database = Database("sqlite", f"sqlite:///{tmp_path}/theirs.db")
    await database.query("CREATE TABLE messages (theirs text)")
    with pytest.raises(StorageError, match=r"nothing was migrated.*a file of their own"):
        async with SessionsDB(database.url):
            pass
    with pytest.raises(SchemaOutOfDate, match=r"another program: messages.*a file of their own"):
        async with SessionsDB(database.url, migrate=False):
            pass
    advice = (await asyncio.to_thread(CommandLine(database.url), "doctor")).stdout
    assert "sqlite:///agents.db; then run sessionsdb migrate with that URL" in advice
    assert "theirs.db" not in advice, "the file of the other program is not to be migrated"
    tables = "SELECT name FROM sqlite_master"
    assert await database.query(tables) == [("messages",)]


async def test_tables_in_public_can_be_moved_as_the_docs_say(empty_database: Database) -> None:
    await upgrade(empty_database)
    async with SessionsDB(empty_database.url) as db:
        await db.store.save("chat", HELLO)
    await empty_database.query("CREATE SCHEMA agents")
    for table in (*metadata.tables, VERSION_TABLE):
        await empty_database.query(f"ALTER TABLE {table} SET SCHEMA agents")
    for view in VIEWS:
        await empty_database.query(f"ALTER VIEW {view.name} SET SCHEMA agents")
    moved = inside(empty_database, "agents")
    async with SessionsDB(moved.url) as db:
        assert await db.store.load("chat") == HELLO
        assert len((await queries.read(db, "sessions")).rows) == 1
    assert await differences(moved) == []

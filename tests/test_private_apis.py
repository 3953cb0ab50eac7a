"""The private parts of libraries still do what this package needs of them."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
import threading
from typing import Any

import aiosqlite
import asyncpg
import pytest
from sqlalchemy import Connection, create_engine, event, literal, select, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.util import await_only

from devtools.databases import PostgresServer
from sessionsdb import private_apis
from sessionsdb.types import Receipt


async def test_aiosqlite_runs_a_function_on_the_thread_of_its_connection() -> None:
    async with aiosqlite.connect(":memory:") as connection:
        thread = private_apis.thread_of(connection)
        raw = private_apis.sqlite3_connection(connection)
        assert isinstance(raw, sqlite3.Connection)

        def work() -> tuple[threading.Thread, int]:
            return threading.current_thread(), raw.execute("SELECT 1").fetchone()[0]

        assert await private_apis.run_on_thread(connection, work) == (thread, 1)
        with pytest.raises(sqlite3.OperationalError, match="nowhere"):
            await private_apis.run_on_thread(connection, lambda: raw.execute("SELECT nowhere"))
    thread.join(5)
    assert not thread.is_alive()


def test_sqlalchemy_tells_whether_statements_are_observed() -> None:
    engine = create_engine("sqlite://")
    with engine.connect() as connection:
        assert not private_apis.has_listeners(connection)
        event.listen(engine, "commit", lambda _connection: None)
        assert not private_apis.has_listeners(connection)
        event.listen(engine, "after_cursor_execute", lambda *_: None)
        assert private_apis.has_listeners(connection)
    engine.dispose()

    engine = create_engine("sqlite://")
    with engine.connect() as connection:
        event.listen(connection, "before_cursor_execute", lambda *_: None)
        assert private_apis.has_listeners(connection)
    engine.dispose()


def test_sqlalchemy_tells_whether_statements_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    engine = create_engine("sqlite://", echo=True)
    with engine.connect() as connection:
        assert private_apis.has_listeners(connection)
    engine.dispose()


@pytest.mark.parametrize("level", [None, "AUTOCOMMIT", "SERIALIZABLE"])
def test_sqlalchemy_tells_whether_a_connection_is_in_autocommit(level: str | None) -> None:
    engine = create_engine("sqlite://", **({} if level is None else {"isolation_level": level}))
    with engine.connect() as connection:
        assert private_apis.is_autocommit(connection) == (level == "AUTOCOMMIT")
        connection.execution_options(isolation_level="AUTOCOMMIT")
        assert private_apis.is_autocommit(connection)
        connection.execution_options(isolation_level="SERIALIZABLE")
        assert not private_apis.is_autocommit(connection)


def test_sqlalchemy_raises_its_own_error_for_the_error_of_a_driver() -> None:
    engine = create_engine("sqlite://")
    observed: list[BaseException] = []
    event.listen(engine, "handle_error", lambda c: observed.append(c.original_exception))

    def fail(connection: Connection) -> None:
        error = sqlite3.OperationalError("no such table")
        private_apis.raise_as_sqlalchemy(connection, "SELECT 1", error)

    with engine.connect() as connection:
        with pytest.raises(OperationalError, match="no such table") as raised:
            fail(connection)
        assert isinstance(raised.value.orig, sqlite3.OperationalError)
        assert observed == [raised.value.orig]
        assert connection.execute(text("SELECT 1")).scalar() == 1
    engine.dispose()


def test_a_pydantic_model_filled_by_its_slots_is_like_a_validated_one() -> None:
    filled = Receipt.from_fields(session_id="chat", position=1, duplicate=False)
    validated = Receipt(session_id="chat", position=1, duplicate=False)
    assert filled == validated
    assert filled.model_dump_json() == validated.model_dump_json()
    assert filled.model_fields_set == validated.model_fields_set
    assert repr(filled) == repr(validated)
    assert filled.model_copy(update={"position": 2}).position == 2
    with pytest.raises(ValueError, match="frozen"):
        filled.position = 2


def test_opentelemetry_tells_whether_a_tracer_provider_is_set() -> None:
    # In a process of its own, since a provider can be set only once.
    program = (
        "from opentelemetry import trace\n"
        "from sessionsdb.private_apis import has_tracer_provider\n"
        "assert not has_tracer_provider(trace)\n"
        "trace.set_tracer_provider(trace.NoOpTracerProvider())\n"
        "assert has_tracer_provider(trace)\n"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert finished.returncode == 0, finished.stderr.decode()


async def test_asyncpg_does_not_ask_for_the_array_types_that_it_was_told(
    postgres_server: PostgresServer,
) -> None:
    connection = await asyncpg.connect(postgres_server.url("postgres"))
    try:
        private_apis.know_array_types(connection)
        asked: list[str] = []
        with connection.query_logger(lambda record: asked.append(record.query)):
            for type, values in (("bigint", [2**40, None]), ("integer", [1]), ("boolean", [True])):
                assert await connection.fetchval(f"SELECT $1::{type}[]", values) == values
        assert not [query for query in asked if "typeinfo" in query]
    finally:
        await connection.close()


async def test_asyncpg_forgets_a_transaction_whose_begin_has_failed(
    postgres_server: PostgresServer,
) -> None:
    class Connection(asyncpg.Connection):
        async def execute(self, query: str, *args: Any, timeout: float | None = None) -> Any:
            if query == "BEGIN;" and refused:
                return await super().execute(refused.pop())
            return await super().execute(query, *args, timeout=timeout)

    refused = ["SELECT nowhere"]
    connection = await asyncpg.connect(postgres_server.url("postgres"), connection_class=Connection)
    try:
        with pytest.raises(asyncpg.UndefinedColumnError):
            await connection.transaction().start()
        private_apis.forget_transaction(connection)
        async with connection.transaction():  # with a BEGIN, and no SAVEPOINT
            assert connection.is_in_transaction()
        assert not connection.is_in_transaction()
    finally:
        await connection.close()


def test_a_literal_for_psql_has_each_backslash_once() -> None:
    dialect: Any = postgresql.dialect()
    private_apis.keep_backslashes(dialect)
    query = select(literal(r"a\b"))
    assert r"'a\b'" in str(query.compile(dialect=dialect, compile_kwargs={"literal_binds": True}))


async def test_sqlalchemy_fetches_the_rows_of_asyncpg_without_a_cursor(
    postgres_server: PostgresServer,
) -> None:
    url = postgres_server.url("postgres").replace("postgresql:", "postgresql+asyncpg:")
    engine = create_async_engine(url)

    def fetch(connection: Connection, sql: str, *values: Any) -> list[Any]:
        return [tuple(row) for row in private_apis.fetch_rows(connection, sql, values)]

    try:
        async with engine.connect() as connection:
            # It begins the transaction, which a rollback undoes.
            async with connection.begin() as transaction:
                assert await connection.run_sync(fetch, "CREATE TABLE fetched (n int)") == []
                insert = "INSERT INTO fetched SELECT generate_series(1, $1::int)"
                assert await connection.run_sync(fetch, insert, 2) == []
                assert await connection.run_sync(fetch, "SELECT n FROM fetched") == [(1,), (2,)]
                await transaction.rollback()
            async with connection.begin() as transaction:
                with pytest.raises(connection.dialect.loaded_dbapi.Error) as raised:
                    await connection.run_sync(fetch, "SELECT n FROM fetched")
                assert raised.value.sqlstate == "42P01"
                await transaction.rollback()

            autocommit = await connection.execution_options(isolation_level="AUTOCOMMIT")
            begun = "SELECT pg_current_xact_id_if_assigned() IS NOT NULL, txid_current() > 0"
            assert await autocommit.run_sync(fetch, begun) == [(False, True)]
            assert await autocommit.run_sync(fetch, begun) == [(False, True)]
    finally:
        await engine.dispose()


async def test_sqlalchemy_awaits_in_a_greenlet_that_is_used_again() -> None:
    def await_twice() -> list[str]:
        return [await_only(asyncio.sleep(0, answer)) for answer in ("first", "second")]

    greenlet = private_apis.AwaitingGreenlet(await_twice)
    first = await greenlet.switch()
    second = await greenlet.switch(first)
    assert greenlet.switch(second) == ["first", "second"]


def test_a_meter_of_opentelemetry_tells_whether_it_has_a_provider() -> None:
    """The global provider can be set once, so another process sets it."""
    program = (
        "from opentelemetry import metrics\n"
        "from sessionsdb.private_apis import has_no_provider\n"
        "meter = metrics.get_meter('m')\n"
        "assert has_no_provider(meter)\n"
        "metrics.set_meter_provider(metrics.NoOpMeterProvider())\n"
        "assert not has_no_provider(meter)\n"
        "assert not has_no_provider(metrics.get_meter('m'))\n"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert finished.returncode == 0, finished.stderr.decode()

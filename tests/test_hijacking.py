"""Overloads of functions and operators on the search path of PostgreSQL are never called.

With CREATE on a schema of the path, any role can plant them. Each call here would run one with the
rights of the caller.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from sqlalchemy import event

from devtools.databases import Database, PostgresServer
from sessionsdb import Reply, SessionsDB, SpawnRequest, Turn
from sessionsdb.admin.doctor import examine
from sessionsdb.reports import queries, readers
from sessionsdb.reports.catalogue import REPORTS
from tests.support.command_line import CommandLine
from tests.support.planted import functions_in, plant, was_taken
from tests.support.sql_rules import broken_rules
from tests.support.work import SOON
from tests.test_namespaces import HELLO, VERBS, answer
from tests.test_sql_rules import OBJECTS, SOURCE

FUNCTIONS = functions_in([*OBJECTS.values(), *(sql for _, sql in SOURCE)])


@pytest.fixture
def kind() -> str:
    return "postgresql"


@pytest.fixture(scope="module")
def planted(postgres_server: PostgresServer) -> Iterator[Database]:
    """A database with all overloads, without tables."""
    with postgres_server.new_database(migrated=False) as database:
        asyncio.run(plant(database, FUNCTIONS))
        yield database


@pytest.fixture
async def trapped(planted: Database) -> AsyncIterator[Database]:
    """The same, migrated. The test calls none of the overloads."""
    async with SessionsDB(planted.url, migrate=True) as db:
        yield planted
        for session in await db.store.list():
            await db.store.delete(session.id)
    assert not await was_taken(planted)


async def handle(turn: Turn) -> Reply:
    if "fail" in turn.text:
        raise RuntimeError("as asked")
    if "stage" in turn.text:
        turn.send("other", "from a turn")
        turn.spawn(SpawnRequest(prompt="go"))
    return Reply("done", "model", input_tokens=1, output_tokens=2)


async def work(db: SessionsDB) -> None:
    """Bring sessions into every state."""
    for id in ("theirs", "other"):
        await db.broker.register(id, channel="cli", peer="ada")
    await db.store.append("theirs", HELLO)
    await db.store.save("theirs", [*HELLO, *HELLO])
    await db.store.save("theirs", [*HELLO, *HELLO, *HELLO])
    await db.broker.send("theirs", "stage", idempotency_key="k")
    await db.broker.send("theirs", "fail", sender="other")
    await asyncio.gather(*(db.broker.send("other", str(n)) for n in range(5)))
    await db.worker(handle, retry=SOON, max_attempts=2).run_until_idle()
    await db.worker(handle, retry=SOON, max_attempts=2, namespaces="*").run_until_idle()
    [dead] = await db.broker.dead_letters()
    await db.broker.requeue(dead.receipt)
    await asyncio.gather(*(db.broker.history(id) for id in ("theirs", "other")))


def refused(answered: str) -> bool:
    return "StorageError" in answered or "ProgrammingError" in answered


async def test_a_planted_overload_is_called_where_a_statement_leaves_it_the_choice(
    planted: Database,
) -> None:
    connection = await planted.connect_to_postgres()
    try:
        for sql in ("SELECT format('%s', 'x'::text, 'y'::text)", "SELECT 'x'::text = 'x'::varchar"):
            with pytest.raises(Exception, match=r"taken|choose|unique"):
                await connection.fetch(sql)
        assert await was_taken(planted)
        await connection.execute("SELECT setval('public.taken', 1, false)")
    finally:
        await connection.close()


async def test_no_verb_and_no_turn_calls_a_planted_overload(trapped: Database) -> None:
    async with SessionsDB(trapped.url) as db:
        await work(db)
        for name, verb in VERBS.items():
            for id in ("other", "theirs"):
                answered = await answer(verb, db, id)
                assert not refused(answered), (name, answered)


async def test_no_report_and_no_check_calls_a_planted_overload(trapped: Database) -> None:
    async with SessionsDB(trapped.url) as db:
        await work(db)
        for name in REPORTS:
            await queries.read(db, name, channel="cli")
        assert (await examine(db, fix=True)).healthy
        await trapped.query("CREATE ROLE spectator LOGIN")
        try:
            for namespace in ("default", None):
                await readers.grant(db, "spectator", namespace=namespace)
                await readers.revoke(db, "spectator", namespace=namespace)
        finally:
            await trapped.query("DROP OWNED BY spectator")
            await trapped.query("DROP ROLE spectator")


async def test_no_command_calls_a_planted_overload(trapped: Database, tmp_path: Path) -> None:
    async with SessionsDB(trapped.url) as db:
        await work(db)
    run = CommandLine(trapped.url)
    file = str(tmp_path / "export.jsonl")
    for command in (
        "migrate",
        "list",
        "history theirs",
        "doctor",
        "top --once",
        "dead-letters",
        "tree",
        "report sessions",
        f"export {file}",
        "purge --finished-before 1d --dry-run",
        "migrate --sql",
    ):
        answered = await asyncio.to_thread(run, *command.split())
        assert answered.code in (0, 2), (command, answered.stdout, answered.stderr)
        assert not refused(answered.stderr), (command, answered.stderr)


async def test_each_statement_that_is_sent_follows_the_rules(database: Database) -> None:
    sent: set[str] = set()
    db = SessionsDB(database.url)

    @event.listens_for(db.engine.sync_engine, "before_cursor_execute")
    def _(_c: object, _k: object, statement: str, *_: object) -> None:
        if not inspect.cleandoc(statement).startswith("SELECT pg_catalog.pg_class"):
            sent.add(statement)

    async with db:
        await work(db)
        for name, verb in VERBS.items():
            assert not refused(await answer(verb, db, "other")), name
        for name in REPORTS:
            await queries.read(db, name)
        await examine(db, fix=True)
    assert len(sent) > 50
    assert [fault for sql in sent for fault in broken_rules(sql)] == []

"""Overloads of functions and operators on the search path of PostgreSQL are never called.

With CREATE on a schema of the path, any role can plant them. Each call here would run one with the
rights of the caller.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from devtools.databases import Database, PostgresServer
from sessionsdb import Question, Reply, SessionsDB, SpawnRequest, Turn
from sessionsdb.admin.doctor import examine
from sessionsdb.cli.command_list import COMMANDS
from sessionsdb.reports import queries, readers
from sessionsdb.reports.catalogue import REPORTS
from sessionsdb.tools import SessionsTool
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
    if "ask" in turn.text:
        return Reply("Well?", ask=Question(prompt="Well?", expires_in=9e9, accept_message=True))
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
    await db.broker.register("asking", channel="cli", peer="ada")
    for close in (
        lambda: db.broker.answer("asking:1", "yes", idempotency_key="k"),
        lambda: db.broker.send("asking", "yes", idempotency_key="l"),
        lambda: db.broker.interrupt("asking"),
        lambda: asyncio.sleep(0),
    ):
        await db.broker.send("asking", "ask", sender="other")
        await db.worker(handle).run_until_idle()
        await db.broker.questions("asking")
        await db.broker.get("asking")
        await close()
        await db.worker(handle).run_until_idle()
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


async def test_no_tool_of_a_model_calls_a_planted_overload(trapped: Database) -> None:
    async with SessionsDB(trapped.url) as db:
        await work(db)
        await db.index_search()
        tool = SessionsTool(db.broker, "theirs")
        receipts: list[dict[str, Any]] = []
        called = set()
        for name, given in (
            ("sessions_spawn", {"prompt": "go", "idempotency_key": "k"}),
            ("sessions_list", {"newest_first": True}),
            ("sessions_list", {"include_ended": True, "limit": 1}),
            ("sessions_send", {"session_id": "CHILD", "text": "more", "idempotency_key": "m"}),
            ("sessions_status", {"receipts": receipts}),
            ("sessions_wait", {"receipts": receipts, "mode": "any", "timeout_secs": 0.01}),
            ("sessions_history", {"session_id": "theirs", "limit": 2}),
            ("sessions_history", {"session_id": "theirs", "after": 0}),
            ("sessions_history", {"session_id": "theirs", "message": 1, "offset": 1}),
            ("sessions_search", {"query": '"pass it" on* -never', "limit": 1}),
            ("sessions_schedule", {"session_id": "CHILD", "text": "tick", "cron": "0 9 * * *"}),
            ("sessions_unschedule", {"session_id": "CHILD", "schedule_id": "MADE"}),
            ("sessions_cancel", {"session_id": "CHILD"}),
            ("sessions_cancel", {"session_id": "CHILD", "position": 1}),
            ("sessions_end", {"session_id": "CHILD", "subtree": True, "reason": "done"}),
        ):
            if given.get("session_id") == "CHILD":
                given["session_id"] = receipts[0]["session_id"]
            if given.get("schedule_id") == "MADE":
                [made] = await db.broker.schedules()
                given["schedule_id"] = made.id
            result = await tool.execute("id", name, given)
            assert not result.is_error, (name, result.content)
            assert result.structured is not None
            if name == "sessions_spawn":
                receipts.append(result.structured["receipt"])
            called.add(name)
        assert called == {definition.name for definition in tool.definitions()}


WORKER = "worker tests.test_hijacking:handle --until-idle --max-attempts 1 --all-namespaces"
"""A message dies, so it ends with exit code 1."""

COMMANDS_TO_RUN = (
    "migrate",
    "migrate --sql",
    "register fresh --channel cli --peer ada",
    "register below --parent fresh",
    "register dying",
    "update fresh --model m --system s --tool a --metadata {}",
    "list",
    "list --channel cli --peer ada --active-since 2020-01-01 --ended --newest-first --limit 5",
    "list --root fresh --after below --json",
    "list --parent fresh",
    "send fresh hello --sender below --idempotency-key once",
    "spawn fresh go --tool a --idempotency-key once",
    "outcome fresh 1",
    "outcome fresh 1 --wait 0",
    "send dying fail",
    "schedule fresh tick --at 2020-01-01 --name once --author ada --metadata {}",
    "schedule fresh tick --cron *~*~*~*~* --tz Europe/Berlin --catch-up all --name often",
    "schedule fresh tock --at +1d --name often",
    "schedules",
    "schedules fresh --json",
    "unschedule none",
    WORKER,
    "history fresh",
    "history fresh --limit 1 --before 2",
    "history fresh --after 0",
    "search --index",
    "search hello --index --channel cli --peer ada --root fresh --limit 1",
    "search hello --json -- -never",
    "token dashboard --rights write --expires 1h",
    "token --list",
    "state fresh",
    "state fresh --scope peer --set name=1 --remove draft --expected-version 0",
    "fork fresh --at 1 --new-id copy",
    "inbox dying",
    "dead-letters",
    "dead-letters dying",
    "requeue dying 1",
    WORKER,
    "requeue --all --session dying --since 1h --error asked",
    "requeue --all",
    "tree",
    "tree fresh",
    "top --once",
    "top --once --all-namespaces",
    *(f"report {name} --channel cli" for name in REPORTS),
    *(f"report {name} --since 7d" for name in REPORTS if name != "inbox"),
    "export --output FILE",
    "export --session fresh --tree --full --output FILE",
    "import FILE",
    "copy URL sqlite:///FILE.db",
    "grant-reader spectator",
    "grant-reader spectator --revoke",
    "grant-reader spectator --for-namespace default",
    "grant-reader spectator --revoke --for-namespace default",
    "doctor",
    "doctor --fix",
    "send fresh again",
    "cancel fresh 2 --drop-partial",
    "interrupt fresh --tree",
    "end fresh --subtree --reason enough",
    "reopen fresh",
    "questions",
    "questions fresh --limit 5",
    "end fresh",
    "purge --finished-before 2100-01-01 --ended-before 2100-01-01 --dry-run",
    "purge --finished-before 0m --dead --channel cli --yes",
    "purge --messages-before 0m --yes",
    "purge --ended-before 0m --children cascade --all-namespaces --yes",
    "delete theirs --children cascade",
    "delete other",
)

NOT_RUN = {
    "answer": "answers as the verbs of the test above",
    "chat": "sends, follows and interrupts as the verbs of the test above",
    "follow": "ends with its session, and follows as the verbs of the test above",
    "backup": "copies a file of SQLite",
    "demo": "makes a file of SQLite",
    "mcp": "serves the tools of the test above",
    "serve": "serves the verbs of the test above",
}


async def test_no_command_calls_a_planted_overload(trapped: Database, tmp_path: Path) -> None:
    async with SessionsDB(trapped.url) as db:
        await work(db)
    await trapped.query("CREATE ROLE spectator LOGIN")
    run = CommandLine(trapped.url)
    try:
        for command in COMMANDS_TO_RUN:
            file = str(tmp_path / "export.jsonl")
            words = [
                trapped.url if word == "URL" else word.replace("FILE", file).replace("~", " ")
                for word in command.split()
            ]
            # A worker handles signals, which only a main thread can.
            start = run.program if command == WORKER else run
            answered = await asyncio.to_thread(start, *words)
            told = (command, answered.stdout, answered.stderr)
            assert answered.code == (1 if command == WORKER else 0), told
            assert "taken" not in answered.stderr, told
    finally:
        await trapped.query("DROP OWNED BY spectator")
        await trapped.query("DROP ROLE spectator")


def test_every_command_is_run_above() -> None:
    run = {command.split()[0] for command in COMMANDS_TO_RUN}
    assert run | set(NOT_RUN) == set(COMMANDS)
    assert not run & set(NOT_RUN)


async def test_the_doctor_notes_each_schema_of_the_search_path_that_is_open_to_every_role(
    db: SessionsDB, database: Database
) -> None:
    await database.query('CREATE SCHEMA "Odd one"')
    for schema in ("public", '"Odd one"'):
        await database.query(f"GRANT CREATE ON SCHEMA {schema} TO PUBLIC")
    [note] = (report := await examine(db)).findings
    assert (note.check, note.level, report.healthy) == ("open-schemas", "note", True)
    assert note.examples == ['schema "public"'], "the other is not on the path"
    assert "REVOKE CREATE ON SCHEMA … FROM PUBLIC" in note.action
    told = await asyncio.to_thread(CommandLine(database.url), "doctor")
    assert "note open-schemas (1)" in told.ok().stdout
    here = await database.value("SELECT current_database()")
    await database.query(f'ALTER DATABASE {here} SET search_path = public, "Odd one"')
    async with SessionsDB(database.url) as other:
        [note] = (await examine(other)).findings
        assert note.examples == ['schema "Odd one"', 'schema "public"']
        for schema in ("public", '"Odd one"'):
            await database.query(f"REVOKE CREATE ON SCHEMA {schema} FROM PUBLIC")
        assert (await examine(other)).findings == []


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

"""A command imports what it needs: the help waits for no database library."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from sqlalchemy import text

import sessionsdb
from devtools.databases import Database
from sessionsdb import SessionsDB
from sessionsdb.cli.command_list import COMMANDS
from tests.support.command_line import CommandLine

HEAVY = {"aiosqlite", "alembic", "asyncpg", "mcp", "opentelemetry", "pydantic", "sqlalchemy"}
DRAWING = {"markdown_it", "pygments", "rich"}

RUN_A_COMMAND = """
from sessionsdb.cli import main
main()
"""
COMPLETE_A_NAME = """
import typer
from sessionsdb.cli.app import app
program = typer.main.get_command(app)
context = program.make_context("sessionsdb", [], resilient_parsing=True)
print(*(item.value for item in program.shell_complete(context, "dea")))
"""
PRINT_IMPORTED = """
import sys
sys.argv[0] = "sessionsdb"
try:
    exec(sys.argv.pop(1))
finally:
    print("imported:", *sorted(sys.modules))
"""


def imported(*arguments: str, run: str = RUN_A_COMMAND) -> tuple[set[str], str]:
    """The modules that a command imports in a process of its own, and its output."""
    done = subprocess.run(
        [sys.executable, "-c", PRINT_IMPORTED, run, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    printed, found, names = done.stdout.rpartition("imported:")
    assert found, done.stderr
    return set(names.split()), printed


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], []], ids=" ".join)
def test_version_and_help_import_no_database_library(arguments: list[str]) -> None:
    modules, printed = imported(*arguments)
    assert "sessionsdb" in printed
    assert modules & (HEAVY | DRAWING) == set()


def test_the_help_of_a_command_draws_no_boxes() -> None:
    modules, printed = imported("send", "--help")
    assert "--idempotency-key KEY" in printed
    assert modules & DRAWING == set()


def test_a_usage_error_imports_no_database_library() -> None:
    modules, _ = imported("sendd")
    assert modules & (HEAVY | DRAWING) <= {"pydantic"}, "which typer needs to parse the arguments"


def test_the_completion_of_commands_imports_no_database_library() -> None:
    modules, printed = imported(run=COMPLETE_A_NAME)
    assert printed.split() == ["dead-letters"]
    assert modules & (HEAVY | DRAWING) <= {"pydantic"}, "which typer needs to parse the arguments"


OTHER_DATABASE = {"asyncpg", "sqlalchemy.dialects.postgresql", "sessionsdb.operations.postgresql"}
UNUSED_BY_READS = {
    *OTHER_DATABASE,
    *("alembic", "mcp", "opentelemetry", "sqlalchemy.orm", "sqlalchemy.ext.asyncio"),
    *("sessionsdb.events", "sessionsdb.store", "sessionsdb.worker"),
    *("sessionsdb.operations.mailbox", "sessionsdb.runtime.follow_hub"),
    *("sessionsdb.runtime.requests", "sessionsdb.runtime.search_indexer"),
    *("sessionsdb.runtime.transcript_cache", "sessionsdb.messages.formats"),
}
"""Large modules that a command which reads on SQLite does not need."""

UNUSED_BY_LISTS = {
    *UNUSED_BY_READS,
    *("sessionsdb.messages.codec", "sessionsdb.operations.sqlite"),
    *("sessionsdb.operations.inbox_types", "sessionsdb.operations.question_rows"),
}

MOST_MODULES = 110
"""The modules of this package that a list imports at most. It was 187 when all were imported."""


def count_own(modules: set[str]) -> int:
    return sum(name.partition(".")[0] == "sessionsdb" for name in modules)


@pytest.mark.parametrize("kind", ["sqlite"])
@pytest.mark.parametrize("form", [[], ["--json"]], ids=["table", "json"])
def test_a_list_imports_no_module_that_it_does_not_need(
    database: Database, form: list[str]
) -> None:
    cli = CommandLine(database.url)
    cli("register", "chat-1", "--peer", "ada").ok()
    modules, printed = imported("--url", database.url, "list", *form)
    assert "chat-1" in printed
    assert modules & (UNUSED_BY_LISTS | DRAWING) == set()
    assert count_own(modules) <= MOST_MODULES


@pytest.mark.parametrize("kind", ["sqlite"])
@pytest.mark.parametrize("form", [[], ["--json"]], ids=["text", "json"])
def test_a_history_imports_nothing_that_draws_and_no_orm(
    database: Database, form: list[str]
) -> None:
    cli = CommandLine(database.url)
    line = {"session_id": "chat-1", "messages": [{"role": "user", "content": "hello"}]}
    cli("import", "-", input=json.dumps(line)).ok()
    modules, printed = imported("--url", database.url, "history", "chat-1", *form)
    assert "hello" in printed
    assert modules & (UNUSED_BY_READS | DRAWING) == set()


@pytest.mark.parametrize("kind", ["sqlite"])
def test_a_send_imports_nothing_that_draws_and_no_orm(database: Database) -> None:
    cli = CommandLine(database.url)
    cli("register", "chat-1").ok()
    modules, printed = imported("--url", database.url, "send", "chat-1", "hello")
    assert printed == "sent: message 1 of session chat-1\n"
    unused = {*OTHER_DATABASE, "alembic", "sqlalchemy.orm", "sessionsdb.worker"}
    assert modules & (unused | DRAWING) == set()


def test_a_handle_on_a_sqlite_file_imports_no_orm(tmp_path: Path) -> None:
    make = f"from sessionsdb import SessionsDB; SessionsDB('sqlite:///{tmp_path / 'new.db'}')"
    modules, _ = imported(run=make)
    assert "sessionsdb.database" in modules
    assert modules & (UNUSED_BY_LISTS | DRAWING) == set()


async def test_the_engine_of_a_sqlite_file_is_one_object_and_is_made_at_its_first_use(
    tmp_path: Path,
) -> None:
    async with SessionsDB(f"sqlite:///{tmp_path / 'new.db'}") as db:
        await db.broker.register("chat-1", channel="cli", peer="ada")
        engine = db.engine
        assert engine is db.engine
        async with engine.connect() as connection:
            rows = await connection.execute(text("SELECT id FROM sessions"))
            assert rows.all() == [("chat-1",)]


COUNT_COLLECTIONS = """
import gc, sys, types
from sessionsdb.cli import main

async def tell(target):
    "Tell what the garbage collector did until here, and whether it runs now."
    print(len(collections), gc.isenabled())

def made_at_its_first_use(name):
    from sessionsdb.cli.decorators import without_database
    return without_database(tell)

command = types.ModuleType("sessionsdb.cli.commands.sessions")
command.__getattr__ = made_at_its_first_use
sys.modules[command.__name__] = command
collections = []
gc.callbacks.append(lambda phase, info: collections.append(phase))
main()
"""


def test_the_garbage_collector_is_off_during_imports_and_on_in_a_command() -> None:
    _, printed = imported("list", run=COUNT_COLLECTIONS)
    assert printed.split() == ["0", "True"]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_summary_in_the_list_is_the_first_paragraph_of_the_help(name: str) -> None:
    listed = COMMANDS[name]
    module = import_module(f"sessionsdb.cli.commands.{listed.module}")
    text = inspect.getdoc(getattr(module, listed.function)) or ""
    assert " ".join(text.partition("\n\n")[0].split()) == listed.summary


def test_every_public_name_is_found_at_its_first_use() -> None:
    for name in sessionsdb.__all__:
        assert getattr(sessionsdb, name) is not None
    assert set(sessionsdb.__all__) <= set(dir(sessionsdb))
    with pytest.raises(AttributeError, match="nonesuch"):
        _ = sessionsdb.nonesuch

"""A command imports what it needs: the help waits for no database library."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from importlib import import_module

import pytest

import sessionsdb
from devtools.databases import Database
from sessionsdb.cli.command_list import COMMANDS

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


@pytest.mark.parametrize("kind", ["sqlite"])
def test_a_list_on_sqlite_imports_nothing_for_postgresql_or_migrations(database: Database) -> None:
    modules, printed = imported("--url", database.url, "list", "--json")
    assert json.loads(printed) == []
    postgresql = "sessionsdb.operations.postgresql"
    assert modules & {"alembic", "asyncpg", "mcp", "opentelemetry", postgresql} == set()


@pytest.mark.parametrize("kind", ["sqlite"])
def test_a_list_for_a_script_imports_no_worker_and_nothing_that_draws(database: Database) -> None:
    modules, _ = imported("--url", database.url, "list", "--json")
    assert modules & (DRAWING | {"sessionsdb.worker"}) == set()


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

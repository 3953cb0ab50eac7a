"""Every command and option is documented: in its help, with examples, and in docs/cli.md."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from sessionsdb.cli.app import app
from sessionsdb.cli.reference import reference
from tests.support.command_line import CommandLine

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"
PROGRAM: Any = typer.main.get_command(app)
COMMANDS = {"": PROGRAM, **PROGRAM.commands}
COMMANDS_OF_THE_CONTRACT = {
    *("demo", "migrate", "register", "list", "tree", "history", "send"),
    *("spawn", "outcome", "end", "delete", "import", "export"),
    *("worker", "dead-letters", "requeue", "report", "grant-reader", "mcp"),
    *("top", "doctor", "purge", "backup", "update"),
    *("cancel", "interrupt", "reopen", "chat"),
}


def examples(command: Any) -> Iterator[list[str]]:
    for line in command.help.partition("Examples:")[2].splitlines():
        if "sessionsdb" in line:
            yield shlex.split(line[line.index("sessionsdb") :], comments=False)


def test_the_commands_of_the_contract_exist() -> None:
    assert set(PROGRAM.commands) >= COMMANDS_OF_THE_CONTRACT


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_help_and_examples(name: str) -> None:
    command = COMMANDS[name]
    assert re.search(r"\.$", command.help.splitlines()[0])
    assert list(examples(command)), f"{name} has no example"
    for parameter in command.params:
        assert parameter.help, f"{name} {parameter.name} has no help"
        assert parameter.help.endswith("."), f"{name} {parameter.name}"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_printed(name: str, tmp_path: Path) -> None:
    cli = CommandLine(f"sqlite:///{tmp_path}/none.db")
    words = [name] if name else []
    answer = cli(*words, "--help", env={"COLUMNS": "200"}).ok()
    for parameter in COMMANDS[name].params:
        for option in parameter.opts if parameter.param_type_name == "option" else ():
            assert option in answer.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_80_columns_and_wraps_no_example(name: str, tmp_path: Path) -> None:
    cli = CommandLine(f"sqlite:///{tmp_path}/none.db")
    answer = cli(*([name] if name else []), "--help", env={"COLUMNS": "80"}).ok()
    lines = answer.stdout.splitlines()
    assert max(len(line) for line in lines) <= 80
    for example in COMMANDS[name].help.partition("Examples:\n")[2].splitlines():
        if example.strip():
            assert f"    {example.strip()}" in [line.rstrip() for line in lines]


@pytest.mark.parametrize(
    ("name", "extra"), [("worker", "metrics"), ("report", "plot"), ("mcp", "mcp"), ("serve", "web")]
)
def test_help_names_the_extra_that_is_needed(name: str, extra: str, tmp_path: Path) -> None:
    cli = CommandLine(f"sqlite:///{tmp_path}/none.db")
    answer = cli(name, "--help", env={"COLUMNS": "200"}).ok()
    assert f"sessionsdb[{extra}]" in answer.stdout
    assert f"sessionsdb[{extra}]" in PAGE.read_text()


@pytest.mark.parametrize("name", COMMANDS)
def test_the_examples_parse(name: str) -> None:
    for example in examples(COMMANDS[name]):
        end = next((i for i, word in enumerate(example) if word in "|>"), None)
        words = example[1:end]
        with PROGRAM.make_context("sessionsdb", words) as context:
            called, command, rest = PROGRAM.resolve_command(
                context, [*context._protected_args, *context.args]
            )
            if name:
                assert called == name
            if "-" not in rest:  # the parser would read standard input
                command.make_context(called, rest, parent=context).close()


@pytest.mark.parametrize("name", COMMANDS)
def test_the_page_names_every_command_and_option(name: str) -> None:
    page = PAGE.read_text()
    if name:
        assert f"### sessionsdb {name}\n" in page
        page = page.partition(f"### sessionsdb {name}\n")[2].partition("\n### ")[0]
    for parameter in COMMANDS[name].params:
        if name and parameter.name in ("url", "namespace"):
            continue
        shown = parameter.opts if parameter.param_type_name == "option" else [parameter.metavar]
        for option in shown:
            assert f"`{option}`" in page


def test_the_page_is_generated_from_the_commands() -> None:
    assert PAGE.read_text() == reference(), "run: make docs"

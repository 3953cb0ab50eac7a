"""The program: its commands, and the options before the command."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from sessionsdb._version import __version__
from sessionsdb.cli.command_list import COMMANDS, LoadedCommands, summaries
from sessionsdb.cli.console.options import DEFAULT_URL
from sessionsdb.cli.console.output import discard_unread_stderr, escape_unencodable, visible
from sessionsdb.cli.help_page import help_page, usage

USAGE_ERROR = 2
"""The exit code for a wrong option or argument, or none at all."""


class Program(TyperGroup):
    """The program. Control characters in its usage errors are escaped, because they quote input."""

    subcommand_words = ("COMMAND", "[ARGS]...")
    listed = COMMANDS

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.commands: Any = LoadedCommands()
        self._is_listing = False

    def list_commands(self, _: Any) -> list[str]:
        return list(self.commands)

    def get_command(self, _: Any, cmd_name: str) -> Any:
        commands = summaries() if self._is_listing else self.commands
        return commands.get(cmd_name)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        formatter.write(help_page(self, ctx) + "\n")

    def collect_usage_pieces(self, _: Any) -> list[str]:
        return usage(self).split(" ")

    def shell_complete(self, *arguments: Any) -> Any:
        with self._listing():
            return super().shell_complete(*arguments)

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        if not args and not ctx.resilient_parsing:
            typer.echo(ctx.get_help())
            raise typer.Exit(USAGE_ERROR)
        return super().parse_args(ctx, args)

    @contextmanager
    def _listing(self) -> Iterator[None]:
        """Give the commands by name and summary, without their modules."""
        self._is_listing = True
        try:
            yield
        finally:
            self._is_listing = False

    def make_context(self, *arguments: Any, **named: Any) -> Any:
        with _escape_errors():
            return super().make_context(*arguments, **named)

    def invoke(self, ctx: Any) -> Any:
        with _escape_errors():
            return super().invoke(ctx)


@contextmanager
def _escape_errors() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        # Only usage errors have a message. Their class is in a private module of typer.
        if isinstance(message := getattr(error, "message", None), str):
            # The prefix is pydantic's, by which typer checks a choice.
            error.message = visible(message.removeprefix("Value error, "))  # type: ignore[attr-defined]
        raise


app = typer.Typer(
    name="sessionsdb",
    cls=Program,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"sessionsdb {__version__}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    url: Annotated[
        str,
        typer.Option(
            "--url",
            metavar="URL",
            envvar="SESSIONSDB_URL",
            help="The database: sqlite:///FILE or postgresql://USER@HOST/NAME. "
            "Add ?schema=NAME for the tables of a PostgreSQL schema.",
        ),
    ] = DEFAULT_URL,
    namespace: Annotated[
        str,
        typer.Option(
            "--namespace",
            metavar="NAME",
            envvar="SESSIONSDB_NAMESPACE",
            help="The namespace, a tenant. Namespaces can't see each other.",
        ),
    ] = "default",
    transaction_pooler: Annotated[
        bool,
        typer.Option(
            "--transaction-pooler",
            envvar="SESSIONSDB_TRANSACTION_POOLER",
            help="PostgreSQL is behind pgbouncer in transaction mode.",
        ),
    ] = False,
    read_url: Annotated[
        str | None,
        typer.Option(
            "--read-url",
            metavar="URL",
            envvar="SESSIONSDB_READ_URL",
            help="Standbys of PostgreSQL for list, history, search, follow, tree, dead-letters "
            "and report. What they show may be slightly old.",
        ),
    ] = None,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and stop."
        ),
    ] = False,
) -> None:
    """Keep the sessions of AI agents in SQL.

    A SQLite file is created at its first use. A PostgreSQL database needs
    'sessionsdb migrate' first. An error is one line on standard error and
    exit code 1. A wrong option or argument is exit code 2.

    Examples:

        sessionsdb demo
        sessionsdb import transcripts.jsonl
        sessionsdb --url postgresql://me@db.example/agents list
        sessionsdb history chat-1 --namespace acme --json
    """
    from sessionsdb.cli.target import Target  # neither for --help nor for --version

    escape_unencodable()
    context.obj = Target(url, namespace, transaction_pooler, read_url)


def main() -> None:
    """The console script's entry point."""
    # Imports make objects that stay. The garbage collector would visit them again and again, which
    # takes a tenth of the time of a short command. A command that runs turns the collector on.
    gc.disable()
    try:
        app(prog_name="sessionsdb")
    finally:
        discard_unread_stderr()

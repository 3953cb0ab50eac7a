"""The program: its commands, and the options before the command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from sessionsdb._version import __version__
from sessionsdb.cli.commands import (
    backup,
    dead_letters,
    demo,
    doctor,
    inbox,
    mcp,
    purge,
    reports,
    schema,
    sessions,
    top,
    transcripts,
    transfer,
    tree,
    worker,
)
from sessionsdb.cli.console.options import DEFAULT_URL
from sessionsdb.cli.console.output import escape_unencodable, visible
from sessionsdb.cli.target import Target


class Program(TyperGroup):
    """The program. Control characters in its usage errors are escaped, because they quote input."""

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
            error.message = visible(message)  # type: ignore[attr-defined]
        raise


app = typer.Typer(
    name="sessionsdb",
    cls=Program,
    no_args_is_help=True,
    add_completion=False,
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
    escape_unencodable()
    context.obj = Target(url, namespace, transaction_pooler)


# The help lists the commands in this order.
SESSIONS, MESSAGES, WORK = "Sessions", "Messages", "Work"
TRANSFER, REPORTS, DATABASE = "Import and export", "Reports", "Database"
OPERATING = "Operating"

app.command("register", rich_help_panel=SESSIONS)(sessions.register)
app.command("list", rich_help_panel=SESSIONS)(sessions.list_sessions)
app.command("tree", rich_help_panel=SESSIONS)(tree.tree)
app.command("history", rich_help_panel=SESSIONS)(transcripts.history)
app.command("end", rich_help_panel=SESSIONS)(sessions.end)
app.command("delete", rich_help_panel=SESSIONS)(sessions.delete)

app.command("send", rich_help_panel=MESSAGES)(inbox.send)
app.command("spawn", rich_help_panel=MESSAGES)(inbox.spawn)
app.command("outcome", rich_help_panel=MESSAGES)(inbox.outcome)
app.command("dead-letters", rich_help_panel=MESSAGES)(dead_letters.dead_letters)
app.command("requeue", rich_help_panel=MESSAGES)(dead_letters.requeue)

app.command("worker", rich_help_panel=WORK)(worker.worker)
app.command("mcp", rich_help_panel=WORK)(mcp.mcp)

app.command("import", rich_help_panel=TRANSFER)(transfer.import_transcripts)
app.command("export", rich_help_panel=TRANSFER)(transfer.export_transcripts)

app.command("report", rich_help_panel=REPORTS)(reports.report_on)
app.command("grant-reader", rich_help_panel=REPORTS)(reports.grant_reader)

app.command("top", rich_help_panel=OPERATING)(top.top)
app.command("doctor", rich_help_panel=OPERATING)(doctor.doctor)
app.command("purge", rich_help_panel=OPERATING)(purge.purge)
app.command("backup", rich_help_panel=OPERATING)(backup.backup)

app.command("migrate", rich_help_panel=DATABASE)(schema.migrate)
app.command("demo", rich_help_panel=DATABASE)(demo.demo)


def main() -> None:
    """The console script's entry point."""
    app(prog_name="sessionsdb")

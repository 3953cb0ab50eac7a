"""The program: its commands and the options before them."""

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
from sessionsdb.cli.console.database_commands import Target
from sessionsdb.cli.console.options import DEFAULT_URL
from sessionsdb.cli.console.output import never_fail_on_characters, visible


class Program(TyperGroup):
    """The program. What its usage errors name, which may be anybody's text, is safe to look at."""

    def make_context(self, *arguments: Any, **named: Any) -> Any:
        with _visible_errors():
            return super().make_context(*arguments, **named)

    def invoke(self, ctx: Any) -> Any:
        with _visible_errors():
            return super().invoke(ctx)


@contextmanager
def _visible_errors() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        # A usage error's; its class is in a private module of typer's.
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


def _show_version(wanted: bool) -> None:
    if wanted:
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
            help="The database: sqlite:///FILE, or postgresql://USER@HOST/NAME.",
        ),
    ] = DEFAULT_URL,
    namespace: Annotated[
        str,
        typer.Option(
            "--namespace",
            metavar="NAME",
            envvar="SESSIONSDB_NAMESPACE",
            help="The namespace: a tenant, who sees nothing of the others.",
        ),
    ] = "default",
    transaction_pooler: Annotated[
        bool,
        typer.Option(
            "--transaction-pooler",
            envvar="SESSIONSDB_TRANSACTION_POOLER",
            help="The PostgreSQL is behind pgbouncer in transaction mode.",
        ),
    ] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Print the version and stop."
        ),
    ] = False,
) -> None:
    """Keep the sessions of AI agents in SQL.

    A SQLite file is made when it is first used; a PostgreSQL database
    is brought up by 'sessionsdb migrate'. Errors are one line on standard
    error and exit code 1; a wrong option or argument is exit code 2.

    Examples:

        sessionsdb demo
        sessionsdb import transcripts.jsonl
        sessionsdb --url postgresql://me@db.example/agents list
        sessionsdb history chat-1 --namespace acme --json
    """
    never_fail_on_characters()
    context.obj = Target(url, namespace, transaction_pooler)


# The order here is the order in the help. A group of commands is a file of its own.
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

app.command("report", rich_help_panel=REPORTS)(reports.report)
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

"""The commands by name. The module of a command is imported when it is run or its help is shown.

The list of commands and the completion of their names need no module: SQLAlchemy alone would take
longer to import than everything else that they do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any, NamedTuple

import typer
from typer.core import TyperCommand

from sessionsdb.cli.help_page import help_page, usage


class Listed(NamedTuple):
    """A command in the list: where it stands, and where its function is."""

    panel: str
    module: str
    function: str
    summary: str
    """The first paragraph of the function's docstring. A test compares both."""


# The help lists the commands in this order.
SESSIONS, MESSAGES, WORK = "Sessions", "Messages", "Work"
TRANSFER, REPORTS, DATABASE = "Import and export", "Reports", "Database"
OPERATING = "Operating"

COMMANDS = {
    "register": Listed(
        SESSIONS,
        "sessions",
        "register",
        "Create a session with an empty transcript and an empty inbox.",
    ),
    "list": Listed(
        SESSIONS, "sessions", "list_sessions", "List sessions, the one that was active last first."
    ),
    "tree": Listed(
        SESSIONS,
        "tree",
        "tree",
        "Show sessions as trees of parents and children, ended ones included.",
    ),
    "history": Listed(
        SESSIONS, "transcripts", "history", "Show a transcript as text, newest message last."
    ),
    "search": Listed(
        SESSIONS, "search", "search", "Search the messages of all transcripts, the newest first."
    ),
    "follow": Listed(
        SESSIONS, "follow", "follow", "Show what happens in a session, as it happens."
    ),
    "update": Listed(
        SESSIONS, "update", "update", "Change the settings of a session, and keep the others."
    ),
    "state": Listed(
        SESSIONS, "state", "state", "Show the state of a session, or change keys of it."
    ),
    "fork": Listed(
        SESSIONS,
        "fork",
        "fork",
        "Create a session that begins with the transcript of another one.",
    ),
    "end": Listed(SESSIONS, "sessions", "end", "End a session. It accepts no more messages."),
    "reopen": Listed(SESSIONS, "stop", "reopen", "Let an ended session take messages again."),
    "delete": Listed(
        SESSIONS,
        "sessions",
        "delete",
        "Delete a session with its transcript and its inbox, permanently.",
    ),
    "chat": Listed(
        MESSAGES, "chat", "chat", "Talk to a session: send messages and see the replies."
    ),
    "send": Listed(MESSAGES, "inbox", "send", "Put a user's message into a session's inbox."),
    "spawn": Listed(
        MESSAGES, "inbox", "spawn", "Create a child session and send it a first message."
    ),
    "inbox": Listed(
        MESSAGES, "waiting", "inbox", "Show the messages of an inbox that wait, run or died."
    ),
    "outcome": Listed(
        MESSAGES, "inbox", "outcome", "Show the status of a message, and the reply to it."
    ),
    "questions": Listed(
        MESSAGES, "questions", "questions", "Show open questions to people, the oldest first."
    ),
    "answer": Listed(MESSAGES, "questions", "answer", "Answer an open question of a session."),
    "cancel": Listed(
        MESSAGES, "stop", "cancel", "Cancel one message. A message that is finished stays as it is."
    ),
    "interrupt": Listed(
        MESSAGES,
        "stop",
        "interrupt",
        "Stop the running turn of a session. The session lives on.",
    ),
    "dead-letters": Listed(
        MESSAGES,
        "dead_letters",
        "dead_letters",
        "Show dead messages: all their attempts failed. The newest is last.",
    ),
    "requeue": Listed(
        MESSAGES,
        "dead_letters",
        "requeue",
        "Put dead messages back into the inbox, before all waiting messages.",
    ),
    "schedule": Listed(
        MESSAGES,
        "schedules",
        "schedule",
        "Send a message to a session later, once or again and again.",
    ),
    "schedules": Listed(
        MESSAGES,
        "schedules",
        "schedules",
        "Show the messages that are sent later, the next one first.",
    ),
    "unschedule": Listed(
        MESSAGES,
        "schedules",
        "unschedule",
        "Delete a schedule. The messages that it has sent stay.",
    ),
    "worker": Listed(
        WORK, "worker", "worker", "Run a worker: take messages from the inboxes and run the agent."
    ),
    "mcp": Listed(WORK, "mcp", "mcp", "Serve the session tools over the Model Context Protocol."),
    "serve": Listed(
        WORK,
        "serve",
        "serve",
        "Serve the sessions over HTTP, as web pages and as a JSON API.",
    ),
    "token": Listed(
        WORK,
        "serve",
        "token",
        "Make a token for clients of 'sessionsdb serve', or list and revoke tokens.",
    ),
    "import": Listed(
        TRANSFER,
        "transfer",
        "import_transcripts",
        "Save transcripts from files: of export, or of other programs.",
    ),
    "export": Listed(
        TRANSFER,
        "transfer",
        "export_transcripts",
        "Write transcripts as JSON lines, the form that import reads.",
    ),
    "copy": Listed(
        TRANSFER,
        "copy",
        "copy",
        "Copy a database into another one, in all namespaces, and compare both.",
    ),
    "report": Listed(
        REPORTS,
        "reports",
        "report_on",
        "Report on the sessions of a namespace, the newest first.",
    ),
    "grant-reader": Listed(
        REPORTS,
        "reports",
        "grant_reader",
        "Let a PostgreSQL role read the report views, and no other data.",
    ),
    "top": Listed(OPERATING, "top", "top", "Show workers, running turns, inboxes and rates."),
    "doctor": Listed(
        OPERATING, "doctor", "doctor", "Check a database in all namespaces, and print what to do."
    ),
    "purge": Listed(OPERATING, "purge", "purge", "Delete old rows, in small transactions."),
    "backup": Listed(
        OPERATING, "backup", "backup", "Copy a SQLite database while other processes write to it."
    ),
    "migrate": Listed(
        DATABASE, "schema", "migrate", "Migrate the tables of a database to this version."
    ),
    "demo": Listed(
        DATABASE, "demo", "demo", "Show the purpose of the package, on a fresh SQLite file."
    ),
}


class Command(TyperCommand):
    """A command with the plain help of this program."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        formatter.write(help_page(self, ctx) + "\n")

    def collect_usage_pieces(self, _: Any) -> list[str]:
        return usage(self).split(" ")


def summaries() -> dict[str, TyperCommand]:
    """Return the commands with name and summary only, for a list of them."""
    return {
        name: TyperCommand(name, help=listed.summary, rich_help_panel=listed.panel)
        for name, listed in COMMANDS.items()
    }


class LoadedCommands(Mapping[str, Any]):
    """The commands of typer. Each is made, and its module imported, at its first use."""

    def __init__(self) -> None:
        self._loaded: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._loaded:
            self._loaded[name] = _load(name, COMMANDS[name])
        return self._loaded[name]

    def __contains__(self, name: object) -> bool:
        return name in COMMANDS

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)


def _load(name: str, listed: Listed) -> Any:
    module = import_module(f"sessionsdb.cli.commands.{listed.module}")
    # Typer makes a command of a function as the only command of an app.
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(name, cls=Command, rich_help_panel=listed.panel)(getattr(module, listed.function))
    return typer.main.get_command(app)

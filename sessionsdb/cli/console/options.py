"""Options and arguments that several commands share."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Annotated, Any

import typer

from sessionsdb.errors import InvalidArgument

DEFAULT_URL = "sqlite:///sessionsdb.db"
"""A file in the working folder."""

Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        metavar="URL",
        help="The database. Same as --url before the command.",
        rich_help_panel="Database",
    ),
]
Namespace = Annotated[
    str | None,
    typer.Option(
        "--namespace",
        metavar="NAME",
        help="The namespace. Same as --namespace before the command.",
        rich_help_panel="Database",
    ),
]
AsJson = Annotated[
    bool,
    typer.Option("--json", help="Print JSON in ASCII, for scripts."),
]
SessionArgument = Annotated[str, typer.Argument(metavar="ID", help="The session's id.")]
Model = Annotated[
    str | None, typer.Option("--model", metavar="NAME", help="The model for the agent.")
]
System = Annotated[
    str | None, typer.Option("--system", metavar="TEXT", help="The system prompt for the agent.")
]
Tools = Annotated[
    list[str] | None,
    typer.Option("--tool", metavar="NAME", help="A tool the agent may use. Repeat it for several."),
]
NoTools = Annotated[bool, typer.Option("--no-tools", help="Allow the agent no tools.")]
IdempotencyKey = Annotated[
    str | None,
    typer.Option(
        "--idempotency-key",
        metavar="KEY",
        help="Names this call. A repeated call with the same key and arguments changes nothing "
        "and prints the first answer.",
    ),
]
Wait = Annotated[
    float | None,
    typer.Option(
        "--wait",
        metavar="SECONDS",
        min=0,
        help="Wait at most this long for the reply. The message stays in the inbox afterwards. "
        "Default: do not wait.",
    ),
]


def tool_list(tools: list[str] | None, no_tools: bool) -> list[str] | None:
    """Combine ``--tool`` and ``--no-tools``. Return ``None`` if neither was given."""
    if no_tools and tools:
        raise typer.BadParameter("--no-tools can't be used together with --tool.")
    if no_tools:
        return []
    return tools or None


def parse_time(text: str | None, option: str) -> datetime | None:
    """Return the time that an option names: an age, or a day or time in ISO 8601."""
    if text is None:
        return None
    from sessionsdb.reports.queries import parse_since  # which few commands need

    try:
        return parse_since(text)
    except InvalidArgument as error:
        raise typer.BadParameter(f"{option}: {error}") from None


def json_object(text: str, option: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise typer.BadParameter(f"{option} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise typer.BadParameter(f"{option} must be a JSON object, like '{{\"key\": 1}}'")
    return value

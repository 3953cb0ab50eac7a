"""Options and arguments that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

DEFAULT_URL = "sqlite:///sessionsdb.db"
"""A file in the working folder."""

Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        metavar="URL",
        help="The database, as the option of the same name before the command.",
        rich_help_panel="Database",
    ),
]
Namespace = Annotated[
    str | None,
    typer.Option(
        "--namespace",
        metavar="NAME",
        help="The namespace, as the option of the same name before the command.",
        rich_help_panel="Database",
    ),
]
AsJson = Annotated[
    bool,
    typer.Option("--json", help="Print JSON for scripts, in ASCII."),
]
SessionArgument = Annotated[str, typer.Argument(metavar="ID", help="The session's id.")]
Model = Annotated[
    str | None, typer.Option("--model", metavar="NAME", help="The model the agent is to use.")
]
System = Annotated[str | None, typer.Option("--system", metavar="TEXT", help="The system prompt.")]
Tools = Annotated[
    list[str] | None,
    typer.Option("--tool", metavar="NAME", help="A tool it may use; give it once for each."),
]
NoTools = Annotated[bool, typer.Option("--no-tools", help="It may use no tools at all.")]
IdempotencyKey = Annotated[
    str | None,
    typer.Option(
        "--idempotency-key",
        metavar="KEY",
        help="A repeated call with the same key and arguments does nothing more "
        "and answers as the first did.",
    ),
]
Wait = Annotated[
    float | None,
    typer.Option(
        "--wait",
        metavar="SECONDS",
        min=0,
        help="Wait this long for the answer. Giving up changes nothing for the message.",
    ),
]


def tool_list(tools: list[str] | None, no_tools: bool) -> list[str] | None:
    """What ``--tool`` and ``--no-tools`` say together; ``None`` if neither was given."""
    if no_tools and tools:
        raise typer.BadParameter("--no-tools can't be used together with --tool.")
    if no_tools:
        return []
    return tools or None

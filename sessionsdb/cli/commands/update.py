"""The command that changes a session: update."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from sessionsdb import SessionsDB
from sessionsdb.cli.console import output
from sessionsdb.cli.console.options import (
    AsJson,
    Model,
    NoTools,
    SessionArgument,
    System,
    Tools,
    json_object,
    tool_list,
)
from sessionsdb.cli.decorators import with_database
from sessionsdb.cli.session_prefix import whole_id


@with_database
async def update(
    db: SessionsDB,
    id: SessionArgument,
    channel: Annotated[
        str | None, typer.Option("--channel", metavar="NAME", help="The origin of the session.")
    ] = None,
    peer: Annotated[
        str | None,
        typer.Option("--peer", metavar="NAME", help="The user or bot at the other end."),
    ] = None,
    model: Model = None,
    system: System = None,
    tool: Tools = None,
    no_tools: NoTools = False,
    metadata: Annotated[
        str | None,
        typer.Option("--metadata", metavar="JSON", help="A JSON object instead of the old one."),
    ] = None,
    clear: Annotated[
        list[str] | None,
        typer.Option(
            "--clear",
            metavar="SETTING",
            help="Clear model, system, tools or metadata. Without tools the agent may use every "
            "tool. Repeat it for several.",
        ),
    ] = None,
    json_: AsJson = False,
) -> None:
    """Change the settings of a session, and keep the others.

    A running turn keeps the settings that it started with. Children keep the
    settings that they copied when they were spawned.

    Examples:

        sessionsdb update chat-1 --model some-model --system 'Be brief.'
        sessionsdb update chat-1 --clear tools --metadata '{"customer": 12}'
    """
    changes: dict[str, Any] = {
        "channel": channel,
        "peer": peer,
        "model": model,
        "system": system,
        "tools": tool_list(tool, no_tools),
        "metadata": None if metadata is None else json_object(metadata, "--metadata"),
    }
    changes = {name: value for name, value in changes.items() if value is not None}
    for setting in clear or []:
        if setting not in ("model", "system", "tools", "metadata"):
            raise typer.BadParameter(
                f"--clear takes model, system, tools or metadata, not {setting!r}."
            )
        if setting in changes:
            raise typer.BadParameter(f"--clear {setting} can't be used together with a new value.")
        changes[setting] = None
    if not changes:
        raise typer.BadParameter("give at least one option with a new value, or --clear.")
    session = await db.broker.update(await whole_id(db, id, writes=True), **changes)
    if json_:
        output.print_json(session)
    else:
        output.say(f"updated: {session.id}")

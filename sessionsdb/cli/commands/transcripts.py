"""The command that reads a transcript."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from sessionsdb import SessionMessage, SessionsDB
from sessionsdb.cli.console import output
from sessionsdb.cli.console.database_commands import with_database
from sessionsdb.cli.console.options import AsJson, SessionArgument

ROLE_STYLES = {"user": "bold green", "assistant": "bold cyan", "system": "bold magenta"}


@with_database
async def history(
    db: SessionsDB,
    id: SessionArgument,
    limit: Annotated[
        int | None,
        typer.Option("--limit", metavar="N", min=0, help="The last so many; 50 if not given."),
    ] = None,
    before: Annotated[
        int | None,
        typer.Option("--before", metavar="SEQ", help="Only what stands before this message."),
    ] = None,
    after: Annotated[
        int | None,
        typer.Option(
            "--after", metavar="SEQ", help="Only what stands behind this message: the first of it."
        ),
    ] = None,
    json_: AsJson = False,
) -> None:
    """Show a transcript as text, newest message last.

    SEQ is the number shown before a message; it never changes. What still
    waits in the inbox is not part of the transcript. 'export' gives the
    messages as they were stored.

    Examples:

        sessionsdb history chat-1
        sessionsdb history chat-1 --limit 20 --before 131
        sessionsdb history chat-1 --after 131 --json
    """
    messages = await db.broker.history(id, limit, before=before, after=after)
    if json_:
        output.print_json_array(messages)
        return
    if not messages:
        output.note("no messages")
    out = output.console()
    for message in messages:
        out.print(heading(message))
        out.print(Text(output.visible(message.content)), soft_wrap=True)


def heading(message: SessionMessage) -> Text:
    """The line above a message: its place, its role and its time."""
    place = "" if message.seq is None else f"#{message.seq} "
    return Text.assemble(
        (place, "dim"),
        output.cell(message.role, ROLE_STYLES.get(message.role, "bold")),
        (f"  {output.moment(message.timestamp)} UTC", "dim"),
    )

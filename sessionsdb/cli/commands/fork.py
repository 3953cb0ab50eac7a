"""The command that forks a session: fork."""

from __future__ import annotations

from typing import Annotated

import typer

from sessionsdb import SessionsDB
from sessionsdb.cli.console import output
from sessionsdb.cli.console.options import AsJson, SessionArgument
from sessionsdb.cli.decorators import with_database
from sessionsdb.cli.session_prefix import whole_id


@with_database
async def fork(
    db: SessionsDB,
    id: SessionArgument,
    at: Annotated[
        int | None,
        typer.Option(
            "--at", metavar="SEQ", help="Copy the messages up to this number. Default: all."
        ),
    ] = None,
    new_id: Annotated[
        str | None,
        typer.Option("--new-id", metavar="ID", help="The id of the fork. Default: fork-<uuid>."),
    ] = None,
    json_: AsJson = False,
) -> None:
    """Create a session that begins with the transcript of another one.

    The fork has the settings, the metadata and the state of its source. The
    inbox is not copied. 'history --json' shows the numbers of messages.

    Examples:

        sessionsdb fork chat-1
        sessionsdb fork chat-1 --at 12 --new-id chat-1-again
    """
    forked = await db.broker.fork(await whole_id(db, id), at=at, new_id=new_id)
    if json_:
        output.print_json(forked)
    else:
        output.say(f"forked: {forked.id}, {output.quantity(forked.message_count, 'message')}")

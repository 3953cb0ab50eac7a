"""Commands on messages whose attempts are used up."""

from __future__ import annotations

from typing import Annotated

import typer

from sessionsdb import Receipt, SessionId, SessionsDB
from sessionsdb.cli.console import output
from sessionsdb.cli.console.database_commands import with_database
from sessionsdb.cli.console.options import AsJson, SessionArgument


@with_database
async def dead_letters(
    db: SessionsDB,
    id: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="Only those of this session.")
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", min=0, metavar="N", help="The last so many of them.")
    ] = 100,
    json_: AsJson = False,
) -> None:
    """Show messages whose attempts are used up, the last to die at the end.

    With each stands the error of its last attempt. 'requeue' gives a message
    another life when the cause is mended.

    Examples:

        sessionsdb dead-letters
        sessionsdb dead-letters chat-1 --json
    """
    found = await db.broker.dead_letters(id, limit=limit)
    if json_:
        output.print_json_array(found)
        return
    if not found:
        output.note("no dead letters")
    for outcome in found:
        died = "" if outcome.finished_at is None else f"{output.moment(outcome.finished_at)} UTC  "
        attempts = output.counted(outcome.attempts, "attempt")
        where = f"message {outcome.receipt.position} of session {outcome.receipt.session_id}"
        output.say(f"{died}{where}, {attempts}")
        for line in (outcome.error or "").splitlines():
            output.say(f"    {line}")


@with_database
async def requeue(
    db: SessionsDB,
    id: SessionArgument,
    position: Annotated[
        int, typer.Argument(metavar="POSITION", min=1, help="The message's place in its inbox.")
    ],
) -> None:
    """Give a dead message another life, ahead of those that wait.

    Its attempts are counted anew; its receipt stays the same.

    Examples:

        sessionsdb requeue chat-1 3
    """
    await db.broker.requeue(Receipt(session_id=SessionId(id), position=position))
    output.say(f"requeued: message {position} of session {id}")

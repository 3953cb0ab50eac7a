"""Commands on dead messages: dead-letters, requeue."""

from __future__ import annotations

from typing import Annotated

import typer

from sessionsdb import Receipt, SessionId, SessionsDB
from sessionsdb.cli.console import output
from sessionsdb.cli.console.options import AsJson, SessionArgument
from sessionsdb.cli.decorators import with_database
from sessionsdb.cli.session_prefix import whole_id


@with_database
async def dead_letters(
    db: SessionsDB,
    id: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="Only messages of this session.")
    ] = None,
    limit: Annotated[
        int,
        typer.Option(
            "--limit", min=0, metavar="N", help="Show at most N messages, the newest ones."
        ),
    ] = 100,
    json_: AsJson = False,
) -> None:
    """Show dead messages: all their attempts failed. The newest is last.

    Each message is shown with the error of its last attempt. Fix the cause,
    then let a worker try the message again with 'requeue'.

    Examples:

        sessionsdb dead-letters
        sessionsdb dead-letters chat-1 --json
    """
    id = None if id is None else await whole_id(db, id)
    found = await db.broker.dead_letters(id, limit=limit)
    if json_:
        output.print_json_array(found)
        return
    if not found:
        output.note("no dead letters")
    for outcome in found:
        died = (
            ""
            if outcome.finished_at is None
            else f"{output.format_time(outcome.finished_at)} UTC  "
        )
        attempts = output.quantity(outcome.attempts, "attempt")
        where = f"message {outcome.receipt.position} of session {outcome.receipt.session_id}"
        output.say(f"{died}{where}, {attempts}", "bold red")
        for line in (outcome.error or "").splitlines():
            output.say(f"    {line}")


@with_database
async def requeue(
    db: SessionsDB,
    id: SessionArgument,
    position: Annotated[
        int, typer.Argument(metavar="POSITION", min=1, help="The message's position in the inbox.")
    ],
) -> None:
    """Put a dead message back into the inbox, before all waiting messages.

    Its attempts are counted from zero. Its receipt stays valid.

    Examples:

        sessionsdb requeue chat-1 3
    """
    id = await whole_id(db, id, writes=True)
    await db.broker.requeue(Receipt(session_id=SessionId(id), position=position))
    output.say(f"requeued: message {position} of session {id}")

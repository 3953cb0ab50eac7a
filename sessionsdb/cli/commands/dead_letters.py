"""Commands on dead messages: dead-letters, requeue."""

from __future__ import annotations

from typing import Annotated

import typer

from sessionsdb import Receipt, SessionId, SessionsDB
from sessionsdb.cli.console import output
from sessionsdb.cli.console.options import AsJson, parse_time
from sessionsdb.cli.decorators import with_database, with_reads
from sessionsdb.cli.session_prefix import whole_id


@with_reads
async def dead_letters(
    db: SessionsDB,
    id: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="Only messages of this session.")
    ] = None,
    limit: Annotated[
        int,
        typer.Option(
            "--limit", min=1, metavar="N", help="Show at most N messages, the newest ones."
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
        message = f"{died}message {outcome.receipt.position}"
        session = f"of session {outcome.receipt.session_id}"
        output.say_fitting(
            f"{message} {session}, {attempts}",
            f"{message}, {attempts}",
            f"    {session}",
            style="bold red",
        )
        for line in (outcome.error or "").splitlines():
            output.say(f"    {line}")


@with_database
async def requeue(
    db: SessionsDB,
    id: Annotated[str | None, typer.Argument(metavar="[ID]", help="The session's id.")] = None,
    position: Annotated[
        int | None,
        typer.Argument(metavar="[POSITION]", min=1, help="The message's position in the inbox."),
    ] = None,
    all_: Annotated[
        bool, typer.Option("--all", help="Requeue all dead messages that the options below name.")
    ] = False,
    session: Annotated[
        str | None,
        typer.Option("--session", metavar="ID", help="With --all: only messages of this session."),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            "--since",
            metavar="TIME",
            help="With --all: only messages that died at TIME or later. TIME is an age such as 2h "
            "or 7d, or a UTC date or time in ISO 8601.",
        ),
    ] = None,
    error: Annotated[
        str | None,
        typer.Option(
            "--error", metavar="TEXT", help="With --all: only messages with TEXT in their error."
        ),
    ] = None,
) -> None:
    """Put dead messages back into the inbox, before all waiting messages.

    Their attempts are counted from zero. Their receipts stay valid. Name one
    message by ID and POSITION, or many by --all. Messages of ended sessions
    stay dead.

    Examples:

        sessionsdb requeue chat-1 3
        sessionsdb requeue --all --since 2h --error RateLimitError
        sessionsdb requeue --all --session chat-1
    """
    if not all_:
        if id is None or position is None:
            raise typer.BadParameter("name a message by ID and POSITION, or give --all.")
        if not (session is None and since is None and error is None):
            raise typer.BadParameter("--session, --since and --error need --all.")
        id = await whole_id(db, id, writes=True)
        await db.broker.requeue(Receipt(session_id=SessionId(id), position=position))
        output.say(f"requeued: message {position} of session {id}")
        return
    if id is not None:
        raise typer.BadParameter("give ID and POSITION, or --all with --session, not both.")
    if session is not None:
        session = await whole_id(db, session, writes=True)
    count = await db.broker.requeue_all(session, since=parse_time(since, "--since"), error=error)
    output.say(f"requeued: {output.quantity(count, 'message')}")

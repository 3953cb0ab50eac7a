"""The command that shows an inbox: inbox."""

from __future__ import annotations

from typing import Annotated

import typer

from sessionsdb import Outcome, SessionsDB
from sessionsdb.cli.console import output
from sessionsdb.cli.console.options import AsJson, SessionArgument
from sessionsdb.cli.decorators import with_database
from sessionsdb.cli.session_prefix import whole_id

STYLES = {"dead": "bold red", "running": "bold green"}


@with_database
async def inbox(
    db: SessionsDB,
    id: SessionArgument,
    limit: Annotated[
        int,
        typer.Option(
            "--limit", min=1, metavar="N", help="Show at most N messages, the first ones."
        ),
    ] = 100,
    after: Annotated[
        int, typer.Option("--after", min=0, metavar="N", help="Continue after this position.")
    ] = 0,
    json_: AsJson = False,
) -> None:
    """Show the messages of an inbox that wait, run or died.

    The order is that of their positions, in which they are handled. Requeued
    messages come first.

    Examples:

        sessionsdb inbox chat-1
        sessionsdb inbox chat-1 --after 250 --json
    """
    found = await db.broker.inbox(await whole_id(db, id), limit=limit + 1, after=after)
    page = found[:limit]
    if json_:
        output.print_json_array(page)
    elif page:
        for outcome in page:
            _show(outcome)
    else:
        output.note("nothing waits")
    if len(page) < len(found):
        output.note(f"more follow: --after {page[-1].receipt.position}")


def _show(outcome: Outcome) -> None:
    message = outcome.message
    sender = None if message is None else message.sender
    attempts = output.quantity(outcome.attempts, "attempt")
    heading = (
        f"{output.format_time(outcome.enqueued_at)} UTC  message {outcome.receipt.position}, "
        f"{outcome.status}, {attempts}"
    )
    style = STYLES.get(outcome.status, "bold")
    if sender is None:
        output.say(heading, style)
    else:
        output.say_fitting(f"{heading}, from {sender}", heading, f"    from {sender}", style=style)
    for line in ("" if message is None else message.content).splitlines():
        output.say(f"    {line}")

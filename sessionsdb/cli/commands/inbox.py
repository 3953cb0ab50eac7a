"""Commands on inboxes: send, spawn, outcome."""

from __future__ import annotations

from typing import Annotated

import typer

from sessionsdb import Outcome, Receipt, SessionId, SessionsDB, SpawnRequest
from sessionsdb.cli.console import output
from sessionsdb.cli.console.options import (
    AsJson,
    IdempotencyKey,
    Model,
    NoTools,
    SessionArgument,
    System,
    Tools,
    Wait,
    tool_list,
)
from sessionsdb.cli.console.stdin import text_or_stdin
from sessionsdb.cli.decorators import with_database
from sessionsdb.cli.session_prefix import whole_id


@with_database
async def send(
    db: SessionsDB,
    id: SessionArgument,
    text: Annotated[
        str,
        typer.Argument(
            metavar="TEXT",
            callback=text_or_stdin,
            help="The message. - reads it from standard input.",
        ),
    ],
    sender: Annotated[
        str | None,
        typer.Option(
            "--sender",
            metavar="ID",
            help="The session whose agent sends the message. Default: a user sends it.",
        ),
    ] = None,
    idempotency_key: IdempotencyKey = None,
    wait: Wait = None,
    json_: AsJson = False,
) -> None:
    """Put a user's message into a session's inbox.

    The message is stored when the command ends. A worker answers it. The last
    line end of standard input is removed. Exit code 0 means that the message
    was stored, even if its turn fails later.

    With --json the receipt is printed, or with --wait the outcome, which
    contains the receipt.

    Examples:

        sessionsdb send chat-1 'What is the weather?'
        git diff | sessionsdb send review-7 -
        sessionsdb send lead-1 'The review is done.' --sender review-7
        sessionsdb send chat-1 hello --idempotency-key mail-8123 --wait 60
    """
    id = await whole_id(db, id, writes=True)
    receipt = await db.broker.send(id, text, sender=sender, idempotency_key=idempotency_key)
    if not json_:
        note = " (sent before: nothing was added)" if receipt.duplicate else ""
        output.say(f"sent: message {receipt.position} of session {receipt.session_id}{note}")
    if wait is not None:
        print_outcome(await db.broker.wait(receipt, wait), json_)
    elif json_:
        output.print_json(receipt)


@with_database
async def spawn(
    db: SessionsDB,
    parent: Annotated[str, typer.Argument(metavar="PARENT", help="The parent session's id.")],
    prompt: Annotated[
        str,
        typer.Argument(
            metavar="PROMPT",
            callback=text_or_stdin,
            help="The child's first message. - reads it from standard input.",
        ),
    ],
    model: Model = None,
    system: System = None,
    tool: Tools = None,
    no_tools: NoTools = False,
    idempotency_key: IdempotencyKey = None,
    wait: Wait = None,
    json_: AsJson = False,
) -> None:
    """Create a child session and send it a first message.

    Settings that are not given are copied from the parent. The child's tools
    must be a part of the parent's tools.

    Examples:

        sessionsdb spawn chat-1 'Summarise the three papers.'
        sessionsdb spawn chat-1 'Look it up.' --tool search --wait 120 --json
    """
    request = SpawnRequest(
        prompt=prompt,
        model=model,
        system=system,
        tools=tool_list(tool, no_tools),
        wait_for_first_reply=wait is not None,
        wait_timeout_secs=wait or 0,
    )
    parent = await whole_id(db, parent, writes=True)
    child = await db.broker.spawn(parent, request, idempotency_key=idempotency_key)
    if json_:
        output.print_json(child)
        return
    output.say(f"spawned: {child.id}")
    if child.first_reply is not None:
        output.say(child.first_reply.content)
    elif wait is not None:
        output.note("no reply yet; the child lives on")


@with_database
async def outcome(
    db: SessionsDB,
    id: SessionArgument,
    position: Annotated[
        int, typer.Argument(metavar="POSITION", min=1, help="The message's position in the inbox.")
    ],
    wait: Wait = None,
    json_: AsJson = False,
) -> None:
    """Show the status of a message, and the reply to it.

    The status is pending, running, done, dead (all attempts failed) or
    cancelled.

    Examples:

        sessionsdb outcome chat-1 3
        sessionsdb outcome chat-1 3 --wait 60 --json
    """
    id = await whole_id(db, id)
    receipt = Receipt(session_id=SessionId(id), position=position)
    print_outcome(await db.broker.wait(receipt, wait or 0), json_)


def print_outcome(outcome: Outcome, json_: bool) -> None:
    if json_:
        output.print_json(outcome)
        return
    style = {"dead": "bold red", "done": "green"}.get(outcome.status, "")
    output.say(f"{outcome.status}, {output.quantity(outcome.attempts, 'attempt')}", style)
    if outcome.error is not None:
        output.say(outcome.error, "red")
    if outcome.reply is not None:
        output.say(outcome.reply.content)

"""Commands that stop turns: cancel, interrupt. And the one that takes the end of a session back."""

from __future__ import annotations

from typing import Annotated

import typer

from sessionsdb import Outcome, Receipt, SessionId, SessionsDB
from sessionsdb.cli.console import output
from sessionsdb.cli.console.options import AsJson, SessionArgument
from sessionsdb.cli.decorators import with_database
from sessionsdb.cli.session_prefix import whole_id

DropPartial = Annotated[
    bool,
    typer.Option(
        "--drop-partial",
        help="Keep neither the question nor the streamed part of the reply. Default: both enter "
        "the transcript.",
    ),
]


@with_database
async def cancel(
    db: SessionsDB,
    id: SessionArgument,
    position: Annotated[
        int, typer.Argument(metavar="POSITION", min=1, help="The message's position in the inbox.")
    ],
    drop_partial: DropPartial = False,
    json_: AsJson = False,
) -> None:
    """Cancel one message. A message that is finished stays as it is.

    A waiting message leaves the inbox. The turn of a running message is
    stopped and can't commit. The streamed part of its reply is kept. The
    session lives on.

    With --json the outcome is printed.

    Examples:

        sessionsdb cancel chat-1 3
        sessionsdb cancel chat-1 3 --drop-partial --json
    """
    id = await whole_id(db, id, writes=True)
    receipt = Receipt(session_id=SessionId(id), position=position)
    before = await db.broker.outcome(receipt)
    outcome = await db.broker.cancel(receipt, keep_partial=not drop_partial)
    if json_:
        output.print_json(outcome)
    elif before.final:
        output.say(f"finished before: {_name(outcome)} is {outcome.status}")
    elif outcome.status == "cancelled":
        output.say(f"cancelled: {_name(outcome)}{_kept(outcome)}")
    else:
        output.say(f"too late: {_name(outcome)} is {outcome.status}")


@with_database
async def interrupt(
    db: SessionsDB,
    id: SessionArgument,
    tree: Annotated[
        bool,
        typer.Option("--tree", "--subtree", help="Stop the turns of all sessions below it too."),
    ] = False,
    drop_partial: DropPartial = False,
    json_: AsJson = False,
) -> None:
    """Stop the running turn of a session. The session lives on.

    The messages of the turn are cancelled, also if the turn has failed and
    waits for another attempt. Messages behind them are handled next. The
    streamed part of the reply is kept.

    With --json the outcomes of the messages are printed.

    Examples:

        sessionsdb interrupt chat-1
        sessionsdb interrupt chat-1 --tree --drop-partial
    """
    id = await whole_id(db, id, writes=True)
    stopped = await db.broker.interrupt(id, subtree=tree, keep_partial=not drop_partial)
    if json_:
        output.print_json_array(stopped)
        return
    for outcome in stopped:
        output.say(f"interrupted: {_name(outcome)}{_kept(outcome)}")
    if not stopped:
        output.note(f"nothing to stop: no turn runs in session {id}{' or below it' * tree}")


@with_database
async def reopen(db: SessionsDB, id: SessionArgument, json_: AsJson = False) -> None:
    """Let an ended session take messages again.

    Sessions below it stay ended. Messages that its end cancelled stay
    cancelled.

    Examples:

        sessionsdb reopen chat-1
    """
    id = await whole_id(db, id, writes=True)
    before = await db.broker.get(id)
    session = await db.broker.reopen(id)
    if json_:
        output.print_json(session)
    else:
        output.say(f"had not ended: {id}" if before.ended_at is None else f"reopened: {id}")


def _name(outcome: Outcome) -> str:
    return f"message {outcome.receipt.position} of session {outcome.receipt.session_id}"


def _kept(outcome: Outcome) -> str:
    return "" if outcome.reply is None else "; the partial reply is kept"

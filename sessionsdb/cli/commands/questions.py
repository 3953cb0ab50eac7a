"""Commands on questions to people: questions, answer."""

from __future__ import annotations

from typing import Annotated

import typer

from sessionsdb import OpenQuestion, SessionsDB
from sessionsdb.cli.commands.inbox import print_outcome
from sessionsdb.cli.console import output
from sessionsdb.cli.console.options import AsJson, IdempotencyKey, Wait
from sessionsdb.cli.console.stdin import text_or_stdin
from sessionsdb.cli.decorators import with_database
from sessionsdb.cli.session_prefix import whole_id

DATA_CHARACTERS = 76
"""The data of a question is cut, so that it is one line of 80 columns. --json has it whole."""


@with_database
async def questions(
    db: SessionsDB,
    id: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="Only the question of this session.")
    ] = None,
    limit: Annotated[
        int,
        typer.Option("--limit", min=1, metavar="N", help="Show at most N questions."),
    ] = 100,
    json_: AsJson = False,
) -> None:
    """Show open questions to people, the oldest first.

    A session with an open question is held: its messages wait behind the
    question. Answer one with 'answer'.

    Examples:

        sessionsdb questions
        sessionsdb questions chat-1 --json
    """
    id = None if id is None else await whole_id(db, id)
    found = await db.broker.questions(id, limit=limit)
    if json_:
        output.print_json_array(found)
        return
    if not found:
        output.note("no open questions")
    for question in found:
        _show(question)


@with_database
async def answer(
    db: SessionsDB,
    question_id: Annotated[
        str,
        typer.Argument(metavar="QUESTION_ID", help="The question's id, as 'questions' shows it."),
    ],
    text: Annotated[
        str,
        typer.Argument(
            metavar="TEXT",
            callback=text_or_stdin,
            help="The answer. - reads it from standard input.",
        ),
    ],
    author: Annotated[
        str | None,
        typer.Option("--author", metavar="NAME", help="Who answers, for people."),
    ] = None,
    idempotency_key: IdempotencyKey = None,
    wait: Wait = None,
    json_: AsJson = False,
) -> None:
    """Answer an open question of a session.

    The answer is handled before all messages that wait there. The same answer
    by the same author again changes nothing. Exit code 0 means that the answer
    was stored.

    With --json the receipt is printed, or with --wait the outcome, which
    contains the receipt.

    Examples:

        sessionsdb answer chat-1:3 yes --author ada
        sessionsdb answer chat-1:3 'No, keep the file.' --wait 60
    """
    receipt = await db.broker.answer(
        question_id, text, author=author, idempotency_key=idempotency_key
    )
    if not json_:
        note = " (answered before: nothing was added)" if receipt.duplicate else ""
        output.say(f"answered: message {receipt.position} of session {receipt.session_id}{note}")
    if wait is not None:
        print_outcome(await db.broker.wait(receipt, wait), json_)
    elif json_:
        output.print_json(receipt)


def _show(question: OpenQuestion) -> None:
    asked = output.format_time(question.asked_at)
    until = (
        ""
        if question.expires_at is None
        else f", expires {output.format_time(question.expires_at)} UTC"
    )
    output.say(output.one_line(question.id), "bold")
    output.say(f"    asked {asked} UTC{until}", "dim")
    for line in question.prompt.splitlines():
        output.say(f"    {output.one_line(line)}")
    if question.data is not None:
        output.say(f"    {output.cut(output.as_json(question.data), DATA_CHARACTERS)}", "dim")

"""The command that reads a transcript."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from sessionsdb import SessionMessage, SessionsDB
from sessionsdb.cli.console import output
from sessionsdb.cli.console.options import AsJson, SessionArgument
from sessionsdb.cli.console.speaker import speaker
from sessionsdb.cli.decorators import with_reads
from sessionsdb.cli.session_prefix import whole_id

if TYPE_CHECKING:
    from rich.text import Text

ROLE_STYLES = {"user": "bold green", "assistant": "bold cyan", "system": "bold magenta"}

GAP = "  "
"""Stands between the parts of a heading."""

INDENT = "    "

NO_TEXT = "(no text)"
"""Shown for a message without text, such as one of nothing but reasoning."""


@with_reads
async def history(
    db: SessionsDB,
    id: SessionArgument,
    limit: Annotated[
        int | None,
        typer.Option("--limit", metavar="N", min=1, help="Show at most N messages. Default: 50."),
    ] = None,
    before: Annotated[
        int | None,
        typer.Option(
            "--before", metavar="SEQ", help="Only messages before this one, the last N of them."
        ),
    ] = None,
    after: Annotated[
        int | None,
        typer.Option(
            "--after", metavar="SEQ", help="Only messages after this one, the first N of them."
        ),
    ] = None,
    json_: AsJson = False,
) -> None:
    """Show a transcript as text, newest message last.

    SEQ is the number shown before a message. It never changes. 'from' names
    the session that sent a message, 'by' its author. Messages that wait in
    the inbox are not in the transcript yet. 'export' prints the stored JSON of
    the messages.

    Examples:

        sessionsdb history chat-1
        sessionsdb history chat-1 --limit 20 --before 131
        sessionsdb history chat-1 --after 131 --json
    """
    id = await whole_id(db, id)
    messages = await db.broker.history(id, limit, before=before, after=after)
    if json_:
        output.print_json_array(messages)
        return
    if not messages:
        output.note("no messages")
    print_messages(messages)


def print_messages(messages: Sequence[SessionMessage]) -> None:
    """Print messages for people, on a terminal in the colours of their roles."""
    if output.is_plain() and all(map(output.prints_as_it_is, plain := [*_plain(messages)])):
        for text in plain:
            output.print_plain(text)
    else:
        _print_styled(messages)


def _plain(messages: Sequence[SessionMessage]) -> Iterator[str]:
    for message in messages:
        yield GAP.join(["".join(text for text, _ in _heading(message)), *speaker(message)])
        yield output.visible(message.content) or NO_TEXT
        if message.interrupted:
            yield output.STOPPED


def _print_styled(messages: Sequence[SessionMessage]) -> None:
    from rich.text import Text  # which output into a pipe does not need

    out = output.console()
    for message in messages:
        out.print(heading(message, out.width), soft_wrap=True)
        if message.content:
            out.print(Text(output.visible(message.content)), soft_wrap=True)
        else:
            out.print(Text(NO_TEXT, style="dim"))
        if message.interrupted:
            out.print(Text(output.STOPPED, style="dim"))


def heading(message: SessionMessage, width: int = output.PIPE_WIDTH) -> Text:
    """Return the line above a message: its seq, its role, its time and its speaker.

    The speaker stands on a line of its own if all of it is wider than ``width``.
    """
    from rich.text import Text

    line = Text.assemble(*_heading(message))
    if parts := speaker(message):
        who = Text(GAP.join(parts), style="dim")
        fits = line.cell_len + len(GAP) + who.cell_len <= width
        line.append(GAP if fits else f"\n{INDENT}")
        line.append_text(who)
    return line


def _heading(message: SessionMessage) -> list[tuple[str, str]]:
    """Return the parts of a heading, each with its style."""
    return [
        ("" if message.seq is None else f"#{message.seq} ", "dim"),
        (output.cell_text(message.role), ROLE_STYLES.get(message.role, "bold")),
        (f"  {output.format_time(message.timestamp)} UTC", "dim"),
    ]

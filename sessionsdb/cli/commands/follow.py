"""The command that follows a session."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Annotated

import typer

from sessionsdb import Event, SessionsDB
from sessionsdb.cli.console import output
from sessionsdb.cli.console.event_printer import EventPrinter
from sessionsdb.cli.console.options import SessionArgument
from sessionsdb.cli.console.signals import on_stop_signal
from sessionsdb.cli.decorators import with_reads
from sessionsdb.cli.session_prefix import whole_id


@with_reads
async def follow(
    db: SessionsDB,
    id: SessionArgument,
    tree: Annotated[bool, typer.Option("--tree", help="Follow all sessions below it too.")] = False,
    after: Annotated[
        str | None,
        typer.Option(
            "--after",
            metavar="PLACE",
            help="Begin behind this place: start, a message's seq, or an event's cursor. "
            "With --tree only start. Default: now.",
        ),
    ] = None,
    json_: Annotated[
        bool, typer.Option("--json", help="Print JSON for scripts: one event on each line.")
    ] = False,
) -> None:
    """Show what happens in a session, as it happens.

    Messages, turns, and replies while they are streamed. It ends when the
    session is deleted, or with Ctrl-C. A lost database is waited for.

    Each event of --json has a cursor. --after CURSOR goes on behind it.

    Examples:

        sessionsdb follow chat-1
        sessionsdb follow chat-1 --tree --after start
        sessionsdb follow chat-1 --json | jq .type
    """
    id = await whole_id(db, id)
    place = int(after) if after is not None and after.isascii() and after.isdecimal() else after
    if tree and place not in (None, "start"):
        raise typer.BadParameter(
            "--tree takes no seq or cursor, because each session has its own; leave --after out, "
            "or give it start."
        )
    printer = EventPrinter(tree=tree)
    following = asyncio.create_task(_print_all(db, id, place, tree, printer, json_=json_))

    def stop(_signal: str) -> None:
        following.cancel()

    with on_stop_signal(stop):
        await asyncio.wait((following,))
    printer.close()
    if not following.cancelled():
        following.result()


async def _print_all(
    db: SessionsDB,
    id: str,
    place: str | int | None,
    tree: bool,
    printer: EventPrinter,
    *,
    json_: bool,
) -> None:
    async with aclosing(db.broker.follow(id, after=place, subtree=tree)) as events:
        async for event in events:
            _print(event, printer, json_=json_)


def _print(event: Event, printer: EventPrinter, *, json_: bool) -> None:
    if json_:
        output.print_json(event)
    else:
        printer.print(event)

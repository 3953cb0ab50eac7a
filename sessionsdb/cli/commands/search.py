"""The command that searches the words of messages, and brings their index up to date."""

from __future__ import annotations

from typing import Annotated

import typer

from sessionsdb import SearchHit, SessionsDB
from sessionsdb.cli.console import output
from sessionsdb.cli.console.options import AsJson
from sessionsdb.cli.decorators import with_reads
from sessionsdb.cli.session_prefix import whole_id


@with_reads
async def search(
    db: SessionsDB,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="WORDS",
            help="Words that must all be in a message. Put a phrase into quotes of its own: "
            "'\"two words\"'. word* finds all words that begin so. Behind -- a -word leaves "
            "messages out.",
        ),
    ] = None,
    channel: Annotated[
        str | None, typer.Option("--channel", metavar="NAME", help="Only sessions of this channel.")
    ] = None,
    peer: Annotated[
        str | None, typer.Option("--peer", metavar="NAME", help="Only sessions of this peer.")
    ] = None,
    root: Annotated[
        str | None,
        typer.Option("--root", metavar="ID", help="Only this session and all sessions below it."),
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", min=1, max=1_000, metavar="N", help="Show at most N messages.")
    ] = 20,
    after: Annotated[
        str | None,
        typer.Option("--after", metavar="CURSOR", help="Continue after this cursor of a hit."),
    ] = None,
    index: Annotated[
        bool,
        typer.Option("--index", help="First bring the index of the namespace up to date."),
    ] = False,
    json_: AsJson = False,
) -> None:
    """Search the messages of all transcripts, the newest first.

    Case and accents make no difference. Reasoning and the results of tools
    are not searched. The index is filled by --index, and by workers with
    --index-search. Without WORDS --index only fills it.

    Examples:

        sessionsdb search --index
        sessionsdb search flight '"new york"' --channel web
        sessionsdb search --json -- refund -flight
    """
    if not words and not index:
        raise typer.BadParameter("give WORDS to search for, or --index to fill the index only.")
    if index:
        indexed = await db.index_search()
        if not words:
            output.say(f"indexed {output.quantity(indexed, 'message')}")
            return
    found = await db.broker.search(
        " ".join(words or ()),
        channel=channel,
        peer=peer,
        root=None if root is None else await whole_id(db, root),
        limit=limit + 1 if limit < MAX_LIMIT else limit,
        after=after,
    )
    page = found[:limit]
    if json_:
        output.print_json_array(page)
    elif page:
        for hit in page:
            _show(hit)
    else:
        output.note("no message found")
    if len(page) < len(found):
        output.note(f"more follow: --after {page[-1].cursor}")


MAX_LIMIT = 1_000


def _show(hit: SearchHit) -> None:
    place = f"{output.format_time(hit.created_at)} UTC  {hit.session_id}"
    message = f"message {hit.seq}, {hit.role}"
    output.say_fitting(f"{place}, {message}", place, f"    {message}", style="bold")
    output.say(f"    {hit.snippet}")

"""Commands on sessions: register, list, end, delete."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from sessionsdb import SessionsDB
from sessionsdb.cli.console import output
from sessionsdb.cli.console.options import (
    AsJson,
    Model,
    NoTools,
    SessionArgument,
    System,
    Tools,
    json_object,
    parse_time,
    tool_list,
)
from sessionsdb.cli.console.session_table import print_sessions
from sessionsdb.cli.decorators import with_database, with_reads
from sessionsdb.cli.session_prefix import whole_id

TABLE_ROWS = 50
"""Sessions in a table when no limit is given."""


@with_database
async def register(
    db: SessionsDB,
    id: SessionArgument,
    channel: Annotated[
        str,
        typer.Option(
            "--channel",
            metavar="NAME",
            help="The origin of the session, such as cli, discord or email.",
        ),
    ] = "cli",
    peer: Annotated[
        str,
        typer.Option("--peer", metavar="NAME", help="The user or bot at the other end."),
    ] = "",
    parent: Annotated[
        str | None,
        typer.Option("--parent", metavar="ID", help="The parent session. Default: none, a root."),
    ] = None,
    model: Model = None,
    system: System = None,
    tool: Tools = None,
    no_tools: NoTools = False,
    metadata: Annotated[
        str | None,
        typer.Option("--metadata", metavar="JSON", help="A JSON object to store with the session."),
    ] = None,
    exist_ok: Annotated[
        bool,
        typer.Option("--exist-ok", help="Accept an existing session, and leave it unchanged."),
    ] = False,
    json_: AsJson = False,
) -> None:
    """Create a session with an empty transcript and an empty inbox.

    Without --tool and --no-tools the agent may use every tool.

    Examples:

        sessionsdb register chat-1 --channel discord --peer alice
        sessionsdb register chat-1 --tool search --tool read --exist-ok
        sessionsdb register job-7 --metadata '{"customer": 12}' --json
    """
    session = await db.broker.register(
        id,
        channel=channel,
        peer=peer,
        parent=None if parent is None else await whole_id(db, parent, writes=True),
        model=model,
        system=system,
        tools=tool_list(tool, no_tools),
        metadata=None if metadata is None else json_object(metadata, "--metadata"),
        exist_ok=exist_ok,
    )
    if json_:
        output.print_json(session)
    else:
        output.say(f"registered: {session.id}")


@with_reads
async def list_sessions(
    db: SessionsDB,
    channel: Annotated[
        str | None, typer.Option("--channel", metavar="NAME", help="Only sessions of this channel.")
    ] = None,
    peer: Annotated[
        str | None, typer.Option("--peer", metavar="NAME", help="Only sessions with this peer.")
    ] = None,
    parent: Annotated[
        str | None, typer.Option("--parent", metavar="ID", help="Only children of this session.")
    ] = None,
    root: Annotated[
        str | None,
        typer.Option("--root", metavar="ID", help="Only this session and all sessions below it."),
    ] = None,
    active_since: Annotated[
        str | None,
        typer.Option(
            "--active-since",
            metavar="TIME",
            help="Only sessions active since TIME: an age such as 2h or 7d, or a day or time in "
            "ISO 8601 (UTC unless it has an offset).",
        ),
    ] = None,
    ended: Annotated[bool, typer.Option("--ended", help="Include ended sessions.")] = False,
    newest_first: Annotated[
        bool | None,
        typer.Option(
            "--newest-first/--oldest-first",
            help="The order, and with --limit the sessions that are shown. Default: newest first "
            "in the table, oldest first with --json.",
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit",
            metavar="N",
            min=1,
            help=f"Show at most N sessions. Default: {TABLE_ROWS} in the table, all with --json.",
        ),
    ] = None,
    after: Annotated[
        str | None,
        typer.Option(
            "--after",
            metavar="ID",
            help="Continue after this session, the last one of a page in the same order.",
        ),
    ] = None,
    json_: AsJson = False,
) -> None:
    """List sessions, the one that was active last first.

    With --json it is last, as in the API. A terminal shows 8 characters of a
    UUID, which other commands take for the whole id. Ended sessions are left
    out, unless --ended is given.

    Examples:

        sessionsdb list
        sessionsdb list --channel discord --active-since 2026-01-31
        sessionsdb list --limit 50 --after chat-17 --json --newest-first
    """
    if newest_first is None:
        newest_first = not json_
    if limit is None and not json_:
        limit = TABLE_ROWS
    found = await db.broker.list(
        channel=channel,
        peer=peer,
        parent=None if parent is None else await whole_id(db, parent),
        root=None if root is None else await whole_id(db, root),
        active_since=parse_time(active_since, "--active-since"),
        include_ended=ended,
        limit=None if limit is None else limit + 1,
        after=None if after is None else await whole_id(db, after),
        newest_first=newest_first,
    )
    page = found if limit is None else found[:limit]
    if json_:
        output.print_json_array(page)
    elif page:
        print_sessions(page)
    else:
        output.note("no sessions")
    if len(page) < len(found) and page:
        output.note(f"more follow: --after {page[-1].id}")


@with_database
async def end(
    db: SessionsDB,
    id: SessionArgument,
    subtree: Annotated[
        bool, typer.Option("--subtree", help="End all sessions below it too.")
    ] = False,
    reason: Annotated[
        str | None,
        typer.Option(
            "--reason", metavar="TEXT", help="The reason, which is stored with the session."
        ),
    ] = None,
    json_: AsJson = False,
) -> None:
    """End a session. It accepts no more messages.

    Waiting messages are cancelled. A running turn is cancelled and can't
    commit. The transcript stays.

    Examples:

        sessionsdb end chat-1
        sessionsdb end chat-1 --subtree --reason 'budget used up'
    """
    ended = await db.broker.end(await whole_id(db, id, writes=True), subtree=subtree, reason=reason)
    if json_:
        output.print_json({"ended": ended})
    else:
        output.say(f"ended: {output.quantity(ended, 'session')}" if ended else "had ended before")


@with_database
async def delete(
    db: SessionsDB,
    id: SessionArgument,
    children: Annotated[
        Literal["detach", "cascade", "refuse"],
        typer.Option(
            "--children",
            help="The children of the session: detach makes them roots, cascade deletes all "
            "sessions below it, refuse deletes nothing if there are children.",
        ),
    ] = "detach",
    json_: AsJson = False,
) -> None:
    """Delete a session with its transcript and its inbox, permanently.

    A missing session is no error, so that the command can be repeated.

    Examples:

        sessionsdb delete chat-1
        sessionsdb delete chat-1 --children cascade
    """
    known = await db.store.version(id) is not None
    await db.store.delete(id, children=children)
    if json_:
        output.print_json({"deleted": known})
    else:
        output.say(f"deleted: {id}" if known else f"nothing to delete: no session {id}")

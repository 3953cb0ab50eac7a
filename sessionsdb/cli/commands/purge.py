"""The command that deletes what is past its retention."""

from __future__ import annotations

import sys
from datetime import datetime
from typing import Annotated, Literal

import typer

from sessionsdb import InvalidArgument, SessionsDB
from sessionsdb.admin import purge as retention
from sessionsdb.admin.purge import Purged
from sessionsdb.cli.console import output
from sessionsdb.cli.console.database_commands import with_database
from sessionsdb.cli.console.options import AsJson
from sessionsdb.cli.console.progress import progress
from sessionsdb.operations.retention import RetentionRules
from sessionsdb.reports.queries import parse_since


@with_database
async def purge(
    db: SessionsDB,
    finished_before: Annotated[
        str | None,
        typer.Option(
            "--finished-before",
            metavar="TIME",
            help="Messages of inboxes that were done or cancelled before: 30d, 24h, 90m or 2w ago, "
            "or a day or time in ISO 8601, UTC unless it names an offset.",
        ),
    ] = None,
    ended_before: Annotated[
        str | None,
        typer.Option(
            "--ended-before",
            metavar="TIME",
            help="Sessions that ended before, with transcript and inbox.",
        ),
    ] = None,
    messages_before: Annotated[
        str | None,
        typer.Option(
            "--messages-before",
            metavar="TIME",
            help="Messages of transcripts that were written before.",
        ),
    ] = None,
    channel: Annotated[
        str | None, typer.Option("--channel", metavar="NAME", help="Only sessions of this channel.")
    ] = None,
    dead: Annotated[
        bool,
        typer.Option(
            "--dead",
            help="With --finished-before: dead letters too, which can then no longer be requeued.",
        ),
    ] = False,
    children: Annotated[
        Literal["detach", "cascade", "refuse"],
        typer.Option(
            "--children",
            help="What to do with what is below an ended session: it becomes trees of its own; or "
            "goes with it, once all of it ended before; or keeps it until it went itself.",
        ),
    ] = "detach",
    all_namespaces: Annotated[
        bool, typer.Option("--all-namespaces", help="In every namespace of the database.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Count what would go, and delete nothing.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    json_: AsJson = False,
) -> None:
    """Delete what is past its retention, in small transactions.

    What is not finished is never deleted, and a session that lives never is.
    With a receipt its outcome, its idempotency key and its line in the
    reports go; it stays as long as it says which session sent a message that
    is still in a transcript. Counters stay true at every moment, so a purge
    can be broken off and run again.

    Examples:

        sessionsdb purge --finished-before 30d --ended-before 90d --dry-run
        sessionsdb purge --messages-before 2026-01-31 --channel discord --yes
        sessionsdb purge --ended-before 1w --children cascade --all-namespaces --yes
    """
    rules = RetentionRules(
        finished_before=_moment(finished_before, "--finished-before"),
        ended_before=_moment(ended_before, "--ended-before"),
        messages_before=_moment(messages_before, "--messages-before"),
        namespace=None if all_namespaces else db.namespace,
        channel=channel,
        dead=dead,
        children=children,
    )
    if rules.finished_before is rules.ended_before is rules.messages_before is None:
        raise typer.BadParameter(
            "say what: --finished-before, --ended-before, --messages-before, or several of them."
        )
    if dead and rules.finished_before is None:
        raise typer.BadParameter("--dead needs --finished-before.")
    asks = not (dry_run or yes)
    if asks and not sys.stdin.isatty():
        raise typer.BadParameter("there is nobody to ask: use --yes, or --dry-run to count.")
    total = None
    if dry_run or asks or sys.stderr.isatty():
        found = await retention.count(db, rules)
        total = found.total
        if dry_run:
            _say(found, "would go", json_=json_, dry_run=True)
            return
        if asks and total:
            typer.confirm(f"Delete {_told(found)} for good?", abort=True, err=True)
    with progress("purging rows", total) as moved:
        gone = await retention.purge(db, rules, moved)
    _say(gone, "purged", json_=json_, dry_run=False)


def _moment(text: str | None, option: str) -> datetime | None:
    try:
        return None if text is None else parse_since(text)
    except InvalidArgument as error:
        raise typer.BadParameter(f"{option}: {error}") from None


def _told(rows: Purged) -> str:
    return (
        f"{output.counted(rows.sessions, 'session')}, "
        f"{output.counted(rows.messages, 'message')} of transcripts, "
        f"{output.counted(rows.inbox, 'receipt')}"
    )


def _say(rows: Purged, what: str, *, json_: bool, dry_run: bool) -> None:
    if json_:
        output.print_json({**output.wire(rows), "dry_run": dry_run})
        return
    output.say(f"{what}: {_told(rows)}")
    if rows.kept:
        output.note(f"kept: {output.counted(rows.kept, 'ended session')}, for what is below them")

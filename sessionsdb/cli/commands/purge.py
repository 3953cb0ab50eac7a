"""The command that deletes rows past their retention."""

from __future__ import annotations

import sys
from datetime import datetime
from typing import Annotated, Literal

import typer

from sessionsdb import InvalidArgument, SessionsDB
from sessionsdb.admin import purge as retention
from sessionsdb.admin.purge import PurgeResult
from sessionsdb.cli.console import output
from sessionsdb.cli.console.options import AsJson
from sessionsdb.cli.console.progress import progress
from sessionsdb.cli.decorators import with_database
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
            help="Delete inbox messages that were done or cancelled before TIME: an age (30d, "
            "24h, 90m, 2w), or a day or time in ISO 8601 (UTC unless it has an offset).",
        ),
    ] = None,
    ended_before: Annotated[
        str | None,
        typer.Option(
            "--ended-before",
            metavar="TIME",
            help="Delete sessions that ended before TIME, with transcript and inbox.",
        ),
    ] = None,
    messages_before: Annotated[
        str | None,
        typer.Option(
            "--messages-before",
            metavar="TIME",
            help="Delete transcript messages that were written before TIME.",
        ),
    ] = None,
    channel: Annotated[
        str | None, typer.Option("--channel", metavar="NAME", help="Only sessions of this channel.")
    ] = None,
    dead: Annotated[
        bool,
        typer.Option(
            "--dead",
            help="With --finished-before: delete dead messages too. They can't be requeued then.",
        ),
    ] = False,
    children: Annotated[
        Literal["detach", "cascade", "refuse"],
        typer.Option(
            "--children",
            help="The sessions below an ended session: detach makes them roots. cascade deletes "
            "them too, if all of them ended before TIME. refuse keeps their parent.",
        ),
    ] = "detach",
    all_namespaces: Annotated[
        bool, typer.Option("--all-namespaces", help="Purge every namespace of the database.")
    ] = False,
    duty_cycle: Annotated[
        float,
        typer.Option(
            "--duty-cycle",
            metavar="SHARE",
            help="The share of the time in which rows are found and deleted. The purge rests after "
            "each transaction, so that turns keep their speed. 1 does not rest.",
        ),
    ] = retention.DUTY_CYCLE,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Count the rows, and delete nothing.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Delete without asking.")] = False,
    json_: AsJson = False,
) -> None:
    """Delete old rows, in small transactions.

    Unfinished messages and live sessions are never deleted. An inbox message
    is deleted with its outcome, its idempotency key and its row in the
    reports. The transcript keeps the sender of the message. Counters are correct
    after every transaction, so a purge can be interrupted and run again.

    Examples:

        sessionsdb purge --finished-before 30d --ended-before 90d --dry-run
        sessionsdb purge --messages-before 2026-01-31 --channel discord --yes
        sessionsdb purge --ended-before 1w --children cascade --all-namespaces
    """
    rules = RetentionRules(
        finished_before=_parse_time(finished_before, "--finished-before"),
        ended_before=_parse_time(ended_before, "--ended-before"),
        messages_before=_parse_time(messages_before, "--messages-before"),
        namespace=None if all_namespaces else db.namespace,
        channel=channel,
        dead=dead,
        children=children,
    )
    if rules.finished_before is rules.ended_before is rules.messages_before is None:
        raise typer.BadParameter(
            "one of --finished-before, --ended-before and --messages-before is needed."
        )
    if dead and rules.finished_before is None:
        raise typer.BadParameter("--dead needs --finished-before.")
    if not 0 < duty_cycle <= 1:
        raise typer.BadParameter("--duty-cycle must be over 0 and at most 1.")
    asks = not (dry_run or yes)
    if asks and not sys.stdin.isatty():
        raise typer.BadParameter(
            "standard input is no terminal, so no question is possible: use --yes, or --dry-run."
        )
    total = None
    if dry_run or asks or sys.stderr.isatty():
        found = await retention.count(db, rules)
        total = found.total
        if dry_run:
            _print_result(found, "would go", json_=json_, dry_run=True)
            return
        if asks and total:
            typer.confirm(f"Delete {_describe(found)} for good?", abort=True, err=True)
    with progress("purging rows", total) as advance:
        deleted = await retention.purge(db, rules, advance, duty_cycle=duty_cycle)
    _print_result(deleted, "purged", json_=json_, dry_run=False)


def _parse_time(text: str | None, option: str) -> datetime | None:
    try:
        return None if text is None else parse_since(text)
    except InvalidArgument as error:
        raise typer.BadParameter(f"{option}: {error}") from None


def _describe(result: PurgeResult) -> str:
    return (
        f"{output.quantity(result.sessions, 'session')}, "
        f"{output.quantity(result.messages, 'message')} of transcripts, "
        f"{output.quantity(result.inbox, 'receipt')}"
    )


def _print_result(result: PurgeResult, label: str, *, json_: bool, dry_run: bool) -> None:
    if json_:
        output.print_json({**output.wire_form(result), "dry_run": dry_run})
        return
    output.say(f"{label}: {_describe(result)}")
    if result.kept:
        output.note(
            f"kept: {output.quantity(result.kept, 'ended session')}, for the sessions below them"
        )

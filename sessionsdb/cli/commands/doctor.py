"""The command that checks a database."""

from __future__ import annotations

from typing import Annotated

import typer

from sessionsdb import SchemaOutOfDate
from sessionsdb.admin import doctor as doctors
from sessionsdb.admin.findings import Finding, HealthReport
from sessionsdb.cli.console import output
from sessionsdb.cli.console.error_words import name_url
from sessionsdb.cli.console.options import AsJson
from sessionsdb.cli.console.progress import progress
from sessionsdb.cli.decorators import with_target
from sessionsdb.cli.target import Target

UNHEALTHY = 1


@with_target
async def doctor(
    target: Target,
    fix: Annotated[
        bool,
        typer.Option(
            "--fix", help="Repair counters, stuck mailboxes, places in trees and expired waits."
        ),
    ] = False,
    values: Annotated[
        bool,
        typer.Option("--values", help="Also read all JSON values, to find damaged ones."),
    ] = False,
    json_: AsJson = False,
) -> None:
    """Check a database in all namespaces, and print what to do.

    It checks the schema and its indices, and overdue leases. On SQLite it
    checks the settings and the pages of the file, on PostgreSQL long
    transactions, bloat and invalid indices. For every session it compares
    the counters and states with the rows, and its place in a tree with its
    parent. It reads every table once and blocks no other process. With
    --values it also reads all messages, metadata and states into this process.

    Exit code 0 means healthy. Exit code 1 means that a problem is left, or
    that the database can't be read. Each repair of --fix checks again under
    the session's locks, so it is safe while workers run.

    Examples:

        sessionsdb doctor
        sessionsdb doctor --values --json
        sessionsdb --url postgresql://me@db.example/agents doctor --fix
    """
    target.require_file()
    db = target.open(migrate=False)
    try:
        async with db:
            with progress("checking sessions", None) as advance:
                report = await doctors.examine(db, fix=fix, values=values, progress=advance)
    except SchemaOutOfDate as error:
        report = doctors.report_old_schema(db, error)
    if json_:
        output.print_json({"healthy": report.healthy, **output.wire_form(report)})
    else:
        _print_report(report, target.url)
    if not report.healthy:
        raise typer.Exit(UNHEALTHY)


def _print_report(report: HealthReport, url: str) -> None:
    for finding in report.findings:
        style = "red" if finding.level == "problem" and finding.mended < finding.count else ""
        output.say(f"{_title(finding)}: {finding.meaning}", style)
        for example in finding.examples:
            output.say(f"    {output.one_line(example)}")
        if finding.count > len(finding.examples) > 0:
            output.say(f"    … and {finding.count - len(finding.examples)} more")
        if finding.mended < finding.count:
            output.say(f"    to do: {name_url(finding.action, url)}")
    if report.sessions or not report.findings:
        output.say(f"checked: {output.quantity(report.sessions, 'session')}")
    output.say("healthy", "green") if report.healthy else output.say("not healthy", "bold red")


def _title(finding: Finding) -> str:
    level = "mended" if finding.mended == finding.count else finding.level
    partly = f", {finding.mended} mended" if 0 < finding.mended < finding.count else ""
    return f"{level} {finding.check} ({finding.count}{partly})"

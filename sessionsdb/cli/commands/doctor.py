"""The command that checks a database."""

from __future__ import annotations

from typing import Annotated

import typer

from sessionsdb import SchemaOutOfDate
from sessionsdb.admin import doctor as doctors
from sessionsdb.admin.findings import Finding, HealthReport
from sessionsdb.cli.console import output
from sessionsdb.cli.console.database_commands import Target, with_target
from sessionsdb.cli.console.database_files import require_file
from sessionsdb.cli.console.options import AsJson
from sessionsdb.cli.console.progress import progress

UNHEALTHY = 1


@with_target
async def doctor(
    target: Target,
    fix: Annotated[
        bool,
        typer.Option(
            "--fix", help="Mend what can be mended safely: counters, stuck mailboxes, old waits."
        ),
    ] = False,
    json_: AsJson = False,
) -> None:
    """Check a database, in all namespaces, and say what to do.

    The schema and its indices, the settings and pages of a SQLite file, the
    transactions, bloat and indices of a PostgreSQL server, overdue leases,
    and for every session whether its counters and states agree with its rows.
    It reads every table once, and holds nobody up.

    Exit code 0: nothing is wrong. 1: something is, or the database can't be
    read. With --fix what was mended is no longer wrong. Each repair looks
    again under the session's locks, so it is safe while others work.

    Examples:

        sessionsdb doctor
        sessionsdb doctor --json
        sessionsdb --url postgresql://me@db.example/agents doctor --fix
    """
    require_file(target.url)
    db = target.open(migrate=False)
    try:
        async with db:
            with progress("checking sessions", None) as moved:
                report = await doctors.examine(db, fix=fix, progress=moved)
    except SchemaOutOfDate as error:
        report = doctors.out_of_date(db, error)
    if json_:
        wire = output.wire(report)
        output.print_json({"healthy": report.healthy, **wire})
    else:
        _say(report)
    if not report.healthy:
        raise typer.Exit(UNHEALTHY)


def _say(report: HealthReport) -> None:
    for found in report.findings:
        output.say(f"{_head(found)}: {found.meaning}")
        for example in found.examples:
            output.say(f"    {output.one_line(example)}")
        if found.count > len(found.examples) > 0:
            output.say(f"    … and {found.count - len(found.examples)} more")
        if found.mended < found.count:
            output.say(f"    to do: {found.action}")
    if report.sessions or not report.findings:
        output.say(f"checked: {output.counted(report.sessions, 'session')}")
    output.say("healthy" if report.healthy else "not healthy")


def _head(found: Finding) -> str:
    level = "mended" if found.mended == found.count else found.level
    partly = f", {found.mended} mended" if 0 < found.mended < found.count else ""
    return f"{level} {found.check} ({found.count}{partly})"

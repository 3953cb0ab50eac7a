"""Commands on the report views: report, grant-reader."""

from __future__ import annotations

import sys
import textwrap
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

import typer

from sessionsdb import InvalidArgument, validation
from sessionsdb.cli.console import output
from sessionsdb.cli.console.charts import CHARTS, chart
from sessionsdb.cli.console.error_words import in_arguments
from sessionsdb.cli.console.report_table import report_table
from sessionsdb.cli.decorators import with_namespace, with_target
from sessionsdb.cli.target import Target
from sessionsdb.reports import formats, pictures, queries
from sessionsdb.reports.pictures.hours import by_hour
from sessionsdb.reports.queries import Report

TABLE_ROWS = 50
"""Rows of a table when no limit is given."""

FORMATS = {"csv": formats.as_csv, "json": formats.as_json}


@with_namespace
async def report_on(
    target: Target,
    name: Annotated[
        Literal["sessions", "turns", "activity", "latency", "inbox", "tree"],
        typer.Argument(metavar="NAME", help="sessions, turns, activity, latency, inbox or tree."),
    ],
    since: Annotated[
        str | None,
        typer.Option(
            "--since",
            metavar="TIME",
            help="Only rows since TIME: an age (7d, 24h, 90m, 2w), or a day or time in ISO 8601 "
            "(UTC unless it has an offset).",
        ),
    ] = None,
    channel: Annotated[
        str | None,
        typer.Option(
            "--channel",
            metavar="NAME",
            help="Only this channel. For a tree: the channel of its root.",
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit",
            metavar="N",
            min=1,
            help=f"Show at most N rows. Default: {TABLE_ROWS} in a table, all in other formats.",
        ),
    ] = None,
    format: Annotated[
        Literal["table", "csv", "json", "md"],
        typer.Option(
            "--format",
            help="table and md show the columns for people, csv and json all columns.",
        ),
    ] = "table",
    plot: Annotated[
        bool,
        typer.Option("--plot", help="Draw bars in the terminal. For activity, latency and tree."),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE",
            help="Draw a picture into this file, .svg or .png. For activity, latency and tree. "
            "Needs the extra sessionsdb[plot].",
        ),
    ] = None,
    sql: Annotated[
        bool,
        typer.Option("--sql", help="Print the query, without connecting to the database."),
    ] = False,
) -> None:
    """Report on the sessions of a namespace, the newest first.

    The reports are views with the same columns on both databases. psql,
    sqlite3, pandas and BI tools can read them too, see docs/reporting.md.
    Times and days are in UTC, durations in seconds.

    Examples:

        sessionsdb report activity --since 30d
        sessionsdb report latency --channel discord --plot
        sessionsdb report tree --out tree.svg
        sessionsdb report turns --since 24h --format csv > turns.csv
        sessionsdb report --sql inbox
    """
    chosen = [
        option
        for option, is_chosen in (
            ("--format", format != "table"), ("--plot", plot), ("--out", out), ("--sql", sql),
        )
        if is_chosen
    ]  # fmt: skip
    if len(chosen) > 1:
        raise typer.BadParameter(f"{chosen[0]} can't be used together with {chosen[1]}.")
    if (plot or out is not None) and name not in CHARTS:
        raise typer.BadParameter(f"{chosen[0]} is for {', '.join(CHARTS)}; {name} is a table only.")
    if since is not None and name == "inbox":
        raise typer.BadParameter("--since is not for inbox, which shows the present.")
    if out is not None and out.suffix.lower().removeprefix(".") not in pictures.FORMATS:
        raise typer.BadParameter(f"--out writes .svg or .png, not {out.name!r}.")
    begin = _parse_time(since)
    if sql:
        statement = queries.query(name, target.namespace, since=begin, channel=channel, limit=limit)
        _write(queries.as_sql(statement, target.kind) + "\n")
        return
    is_table = format == "table" and not plot and out is None
    max_rows = TABLE_ROWS if limit is None and is_table else None
    async with target.open_to_read() as db:
        report = await queries.read(
            db,
            name,
            since=begin,
            channel=channel,
            limit=limit if max_rows is None else max_rows + 1,
        )
        if out is not None:
            report = await by_hour(db, report, channel=channel)
    if out is not None:
        pictures.draw(report, out)
        output.note(f"written: {out}")
    elif not report.rows and (plot or format == "table"):
        output.note("nothing to report")
    elif plot:
        console = output.console()
        console.print(chart(report, short=console.is_terminal))
    elif format in FORMATS:
        _write(FORMATS[format](report))
    elif format == "md":
        typer.echo(output.visible(formats.as_markdown(report)), nl=False)
    else:
        _print_table(report, max_rows)


def _print_table(report: Report, max_rows: int | None) -> None:
    console = output.console()
    table, left_out = report_table(report, max_rows, console.width, short=console.is_terminal)
    console.print(table)
    if left_out:
        names = f"left out for the width: {', '.join(left_out)}; csv and json have all"
        for line in textwrap.wrap(names, console.width):
            output.note(line)
    if max_rows is not None and len(report.rows) > max_rows:
        output.note(f"more follow: these are the first {max_rows}; --limit N shows N, csv all")


def _parse_time(since: str | None) -> datetime | None:
    try:
        return None if since is None else queries.parse_since(since)
    except InvalidArgument as error:
        raise typer.BadParameter(f"--since: {error}") from None


def _write(text: str) -> None:
    # A program gets the text unchanged, where typer's echo would remove escape sequences. On a
    # terminal they are escaped, so that no text can move the cursor.
    sys.stdout.write(output.visible(text) if sys.stdout.isatty() else text)


@with_target
async def grant_reader(
    target: Target,
    role: Annotated[
        str, typer.Argument(metavar="ROLE", help="An existing role of the PostgreSQL server.")
    ],
    for_namespace: Annotated[
        str | None,
        typer.Option(
            "--for-namespace",
            metavar="NAME",
            help="Only the reports of this namespace. Default: every namespace.",
        ),
    ] = None,
    revoke: Annotated[
        bool,
        typer.Option(
            "--revoke",
            help="Revoke the grant of all reports, or with --for-namespace of one namespace.",
        ),
    ] = False,
) -> None:
    """Let a PostgreSQL role read the report views, and no other data.

    With --for-namespace the role gets views with the same names in a schema
    of the namespace. PostgreSQL hides the rows of all other namespaces. Run
    the command again after an upgrade that changes the views.

    Examples:

        sessionsdb grant-reader analyst
        sessionsdb grant-reader acme_bi --for-namespace acme
        sessionsdb grant-reader acme_bi --revoke
    """
    from sessionsdb.reports import readers  # only for PostgreSQL, unlike the other command

    if for_namespace is not None:
        try:
            validation.namespace(for_namespace)
        except InvalidArgument as error:
            words = {"namespace": "--for-namespace"}
            raise typer.BadParameter(in_arguments(error, words)) from error
    db = target.open()
    readers.require_postgresql(db)  # before the open creates a SQLite file
    async with db:
        if revoke:
            revoked = await readers.revoke(db, role, namespace=for_namespace)
            schemas = ", ".join(revoked)
            output.say(f"revoked: {role} reads nothing in {schemas} any more" if revoked
                       else f"nothing to revoke: {role} was granted no reports")  # fmt: skip
            return
        granted = await readers.grant(db, role, namespace=for_namespace)
    output.say(f'granted: {role} may read "{granted.schema}".report_sessions and the other reports')
    if not granted.may_connect:
        output.note(f"{role} may not connect to this database: GRANT CONNECT ON DATABASE … TO it")

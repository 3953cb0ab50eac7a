"""Commands on the report views: report, grant-reader."""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.table import Table

from sessionsdb import InvalidArgument
from sessionsdb.cli.console import output
from sessionsdb.cli.console.charts import CHARTS, chart
from sessionsdb.cli.console.database_commands import Target, with_namespace, with_target
from sessionsdb.engine import urls
from sessionsdb.reports import formats, pictures, queries, readers
from sessionsdb.reports.queries import Report

TABLE_ROWS = 50
"""What a table for people shows when no limit is given."""

FORMATS = {"csv": formats.as_csv, "json": formats.as_json}


@with_namespace
async def report(
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
            help="Only from then on: 7d, 24h, 90m or 2w ago, or a day or time in ISO 8601, "
            "UTC unless it names an offset.",
        ),
    ] = None,
    channel: Annotated[
        str | None,
        typer.Option("--channel", metavar="NAME", help="Only this channel; of a tree its root's."),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit",
            metavar="N",
            min=0,
            help=f"At most so many rows; if not given, a table shows {TABLE_ROWS}, "
            "and all else is whole.",
        ),
    ] = None,
    format: Annotated[
        Literal["table", "csv", "json", "md"],
        typer.Option(
            "--format",
            help="table and md show the columns for people, csv and json all of them.",
        ),
    ] = "table",
    plot: Annotated[
        bool,
        typer.Option("--plot", help="Draw bars in the terminal: activity, latency, tree."),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE",
            help="Draw a picture into this file, .svg or .png: activity, latency, tree. "
            "Needs the extra sessionsdb[plot].",
        ),
    ] = None,
    sql: Annotated[
        bool,
        typer.Option(
            "--sql", help="Print the query instead of running it; nothing is connected to."
        ),
    ] = False,
) -> None:
    """Report on the sessions of a namespace, the newest first.

    The reports are views of the same columns on both databases, for psql,
    sqlite3, pandas or a BI tool as well: docs/reporting.md tells them all.
    Times and days are UTC, durations seconds.

    Examples:

        sessionsdb report activity --since 30d
        sessionsdb report latency --channel discord --plot
        sessionsdb report tree --out tree.svg
        sessionsdb report turns --since 24h --format csv > turns.csv
        sessionsdb report --sql inbox
    """
    given = [
        option
        for option, is_given in (
            ("--format", format != "table"), ("--plot", plot), ("--out", out), ("--sql", sql),
        )
        if is_given
    ]  # fmt: skip
    if len(given) > 1:
        raise typer.BadParameter(f"{given[0]} can't be used together with {given[1]}.")
    if (plot or out is not None) and name not in CHARTS:
        raise typer.BadParameter(f"{given[0]} is for {', '.join(CHARTS)}; {name} is a table only.")
    if since is not None and name == "inbox":
        raise typer.BadParameter("--since is not for inbox, which tells what waits now.")
    if out is not None and out.suffix.lower().removeprefix(".") not in pictures.FORMATS:
        raise typer.BadParameter(f"--out writes .svg or .png, not {out.name!r}.")
    moment = _moment(since)
    if sql:
        statement = queries.query(
            name, target.namespace, since=moment, channel=channel, limit=limit
        )
        _write(queries.as_sql(statement, urls.kind(urls.parse(target.url))) + "\n")
        return
    cut = TABLE_ROWS if limit is None and format == "table" and not plot and out is None else None
    async with target.open() as db:
        read = await queries.read(
            db, name, since=moment, channel=channel, limit=limit if cut is None else cut + 1
        )
    if out is not None:
        pictures.draw(read, out)
        output.note(f"written: {out}")
    elif not read.rows and (plot or format == "table"):
        output.note("nothing to report")
    elif plot:
        output.console().print(chart(read))
    elif format in FORMATS:
        _write(FORMATS[format](read))
    elif format == "md":
        typer.echo(output.visible(formats.as_markdown(read)), nl=False)
    else:
        output.console().print(_table(read, cut))
        if cut is not None and len(read.rows) > cut:
            output.note(f"more follow: these are the first {cut}; --limit N shows N, csv all")


def _moment(since: str | None) -> datetime | None:
    try:
        return None if since is None else queries.parse_since(since)
    except InvalidArgument as error:
        raise typer.BadParameter(f"--since: {error}") from None


def _write(text: str) -> None:
    """For programs as it is; on a terminal nothing in it can move the cursor. Not by typer's echo,
    which would take escape sequences out of what is piped on."""
    sys.stdout.write(output.visible(text) if sys.stdout.isatty() else text)


def _table(read: Report, cut: int | None) -> Table:
    table = Table(box=None, pad_edge=False)
    shown = read.view.shown_columns
    for column in shown:
        right = column.kind in ("integer", "seconds")
        table.add_column(column.name, justify="right" if right else "left")
    for row in read.dicts()[:cut]:
        table.add_row(*(output.cell(formats.brief(row[column.name])) for column in shown))
    return table


@with_target
async def grant_reader(
    target: Target,
    role: Annotated[
        str, typer.Argument(metavar="ROLE", help="A role of the PostgreSQL server, which exists.")
    ],
    for_namespace: Annotated[
        str | None,
        typer.Option(
            "--for-namespace",
            metavar="NAME",
            help="Only this namespace's reports; those of every namespace if not given.",
        ),
    ] = None,
    revoke: Annotated[
        bool,
        typer.Option(
            "--revoke",
            help="Take it back: all reports, or with --for-namespace that namespace's.",
        ),
    ] = False,
) -> None:
    """Let a role read the report views, and nothing else, on PostgreSQL.

    A reader of one namespace has views of the same names in a schema of
    its own, and the database keeps every other namespace from it. Run it
    again after an upgrade that changes the views.

    Examples:

        sessionsdb grant-reader analyst
        sessionsdb grant-reader acme_bi --for-namespace acme
        sessionsdb grant-reader acme_bi --revoke
    """
    db = target.open()
    readers.require_postgresql(db)  # before a file is made
    async with db:
        if revoke:
            revoked = await readers.revoke(db, role, namespace=for_namespace)
            named = ", ".join(revoked)
            output.say(f"revoked: {role} reads nothing in {named} any more" if revoked
                       else f"nothing to revoke: {role} was granted no reports")  # fmt: skip
            return
        granted = await readers.grant(db, role, namespace=for_namespace)
    output.say(f'granted: {role} may read "{granted.schema}".report_sessions and the other reports')
    if not granted.may_connect:
        output.note(f"{role} may not connect to this database: GRANT CONNECT ON DATABASE … TO it")

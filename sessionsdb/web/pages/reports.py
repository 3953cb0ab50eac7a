"""The six reports as tables, and the pictures of those that have one."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Mapping
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from fastapi import APIRouter, Response
from markupsafe import Markup

from sessionsdb.errors import InvalidArgument, SessionsDBError
from sessionsdb.reports import read
from sessionsdb.reports.catalogue import REPORTS, Column
from sessionsdb.reports.formats import cell_text
from sessionsdb.reports.pictures import PAINTERS, PlotLibraryMissing, draw
from sessionsdb.reports.queries import Report, parse_since
from sessionsdb.web.api.problems import status_and_detail
from sessionsdb.web.pages.access import ReaderPage
from sessionsdb.web.pages.rendering import duration, grouped, moment, page, session_url

router = APIRouter()

ROWS = 500

MEANINGS = {
    "sessions": "Each session: where it comes from, its state, and what it has used.",
    "turns": "Each message that was handled: what came of it, and how long it took.",
    "activity": "What happened on each day, by channel.",
    "latency": "How long answers took, by day and channel. Of 100 messages, 50 took no longer than "
    "p50, 95 no longer than p95, and 99 no longer than p99.",
    "inbox": "What waits now, by channel.",
    "tree": "Who spawned whom, with what each session and all sessions below it have used.",
}
"""The views have meanings for readers of SQL. These are for readers of the page."""

NAMES = ("session_id", "path")
"""Columns whose values are links to the session of the row."""

_HAS_PLOT_LIBRARY = find_spec("matplotlib") is not None


class Cell(NamedTuple):
    """One value of a row. ``url``: the page that it leads to."""

    column: Column
    text: str | Markup
    url: str | None


SINCE = {"": "all time", "1h": "last hour", "24h": "last day", "7d": "last week"}


@router.get("/reports")
async def reports(caller: ReaderPage) -> Response:
    return page("reports.html", caller, reports=MEANINGS)


@router.get("/reports/{name}")
async def report(caller: ReaderPage, name: str, since: str = "", channel: str = "") -> Response:
    """Show a report as a table, with its picture above it."""
    try:
        found = await _read(caller, name, since, channel)
    except SessionsDBError as error:
        status, detail = status_and_detail(error)
        return page("refused.html", caller, status=status, detail=detail, back="/reports")
    return page(
        "report.html",
        caller,
        name=name,
        meaning=MEANINGS[name],
        columns=found.view.display_columns,
        rows=_display_rows(found),
        is_cut=len(found.rows) == ROWS,
        has_picture=name in PAINTERS and bool(found.rows),
        has_plot_library=_HAS_PLOT_LIBRARY,
        has_since=found.view.since is not None,
        since=since,
        choices=SINCE,
        names=NAMES,
        channel=channel,
    )


@router.get("/reports/{name}/picture.svg")
async def picture(caller: ReaderPage, name: str, since: str = "", channel: str = "") -> Response:
    """Draw the picture of a report. Needs the extra ``sessionsdb[plot]``."""
    found = await _read(caller, name, since, channel)
    try:
        image = await asyncio.to_thread(_drawn, found)
    except PlotLibraryMissing as missing:
        return Response(str(missing), 501, media_type="text/plain")
    return Response(image, media_type="image/svg+xml")


def _drawn(report: Report) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "picture.svg"
        draw(report, file)
        return file.read_bytes()


async def _read(caller: ReaderPage, name: str, since: str, channel: str) -> Report:
    begin = None
    if since:
        view = REPORTS.get(name)
        if view is None:
            raise InvalidArgument(f"there is no report {name!r}")
        begin = parse_since(since) if view.since is not None else None
    return await read(caller.db, name, since=begin, channel=channel or None, limit=ROWS)


def _display_rows(report: Report) -> list[list[Cell]]:
    """Return the shown cells of each row."""
    shown = report.view.display_columns
    return [[_cell(column, row) for column in shown] for row in report.dicts()]


def _cell(column: Column, row: Mapping[str, Any]) -> Cell:
    value = row[column.name]
    if isinstance(value, datetime):
        text: str | Markup = moment(value)
    elif column.kind == "seconds" and value is not None:
        text = f"{value * 1_000:.0f} ms" if value < 1 else duration(value)
    elif column.kind == "integer" and value is not None and column.name != "position":
        text = grouped(value)
    else:
        text = cell_text(value)
    url = session_url(row["session_id"]) if column.name in NAMES else None
    return Cell(column, text, url)

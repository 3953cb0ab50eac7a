"""The six reports as tables, and the pictures of those that have one."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from fastapi import APIRouter, Response

from sessionsdb.errors import InvalidArgument, SessionsDBError
from sessionsdb.reports import read
from sessionsdb.reports.catalogue import REPORTS
from sessionsdb.reports.formats import cell_text
from sessionsdb.reports.pictures import PAINTERS, PlotLibraryMissing, draw
from sessionsdb.reports.queries import Report, parse_since
from sessionsdb.web.api.problems import status_and_detail
from sessionsdb.web.pages.access import ReaderPage
from sessionsdb.web.pages.rendering import page

router = APIRouter()

ROWS = 500

SINCE = {"": "all time", "1h": "last hour", "24h": "last day", "7d": "last week"}


@router.get("/reports")
async def reports(caller: ReaderPage) -> Response:
    return page("reports.html", caller, reports=REPORTS)


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
        view=found.view,
        columns=found.view.display_columns,
        rows=_display_rows(found),
        is_cut=len(found.rows) == ROWS,
        has_picture=name in PAINTERS and bool(found.rows),
        has_since=found.view.since is not None,
        since=since,
        choices=SINCE,
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


def _display_rows(report: Report) -> list[list[tuple[str, str]]]:
    """Return the shown cells of each row, each with the kind of its column."""
    places = {column.name: index for index, column in enumerate(report.columns)}
    shown = [(places[column.name], column.kind) for column in report.view.display_columns]
    return [[(cell_text(row[place]), kind) for place, kind in shown] for row in report.rows]

"""A report as a table for people: as many columns as fit, each with its whole header."""

from __future__ import annotations

from typing import Any

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from sessionsdb.cli.console import output
from sessionsdb.cli.console.short_ids import short_ids
from sessionsdb.reports import formats
from sessionsdb.reports.catalogue import Column
from sessionsdb.reports.queries import Report

GAP = 2
"""Columns of the terminal between two columns of a table."""

MAX_TEXT = 32
"""A longer text may be folded to make room for other columns."""

SEPARATOR = " > "
"""The text between two ids of a path."""

_ALERTS = ("dead", "overdue")

_STYLES = {"dead": "bold red", "overdue": "bold red", "retrying": "yellow"}
"""The style of a count above zero, and of the state of a session."""


def report_table(
    report: Report, max_rows: int | None, width: int, *, short: bool = False
) -> tuple[Table, list[str]]:
    """Return the rows as a table, and the names of the columns that did not fit into ``width``.

    The first column and counts of failures are kept, then the others in their order. With
    ``short`` the ids are cut for people.
    """
    rows = report.dicts()[:max_rows]
    if short:
        rows = with_short_ids(rows)
    columns = report.view.display_columns
    free = width + GAP
    kept: set[str] = set()
    for column in sorted(
        columns, key=lambda one: one is not columns[0] and one.name not in _ALERTS
    ):
        free -= GAP + _needed_width(column, rows)
        if free < 0 and kept:
            break
        kept.add(column.name)
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0))
    shown = [column for column in columns if column.name in kept]
    for column in shown:
        is_number = column.kind in ("integer", "seconds")
        table.add_column(
            column.name,
            justify="right" if is_number else "left",
            min_width=min(_needed_width(column, rows), width),
            overflow="fold",
        )
    for row in rows:
        table.add_row(*(_cell(column, row[column.name]) for column in shown))
    return table, [column.name for column in columns if column.name not in kept]


def with_short_ids(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows with their ids cut for people."""
    names = [name for name in ("session_id", "path") if rows and name in rows[0]]
    shown = short_ids(part for row in rows for name in names for part in _ids(row[name]))
    return [
        {**row, **{name: SEPARATOR.join(shown[id] for id in _ids(row[name])) for name in names}}
        for row in rows
    ]


def _ids(path: str) -> list[str]:
    return path.split(SEPARATOR)


def _needed_width(column: Column, rows: list[dict[str, Any]]) -> int:
    longest = max((_cell(column, row[column.name]).cell_len for row in rows), default=0)
    if column.kind == "text":
        longest = min(longest, MAX_TEXT)
    return max(cell_len(column.name), longest)


def _cell(column: Column, value: Any) -> Text:
    text = formats.cell_text(value)
    if column.kind == "integer":
        return output.cell(text, _STYLES.get(column.name, "") if value else "")
    return output.cell(text, _STYLES.get(text, "") if column.name in ("state", "status") else "")

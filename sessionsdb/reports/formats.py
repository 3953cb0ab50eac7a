"""Write a report as CSV, JSON or Markdown."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime
from typing import Any

from sessionsdb.reports.queries import Report


def as_csv(report: Report) -> str:
    """Return all columns as CSV with a header. Lines end with ``\\n``.

    Times are in ISO 8601 and a NULL is empty. A text that a spreadsheet would run as a formula
    begins with an apostrophe, which marks it as text. Names of sessions come from other people.
    """
    rows: list[Iterable[Any]] = [[column.name for column in report.columns]]
    rows += ([_csv_value(value) for value in row] for row in report.rows)
    return "".join(f"{_csv_line(row)}\n" for row in rows)


def _csv_line(row: Iterable[Any]) -> str:
    return ",".join(map(_csv_cell, row))


_QUOTED = re.compile(r'[",;|\t\r\n]')
"""Characters of a cell that needs quotation marks. Many countries separate cells by a semicolon."""


def _csv_cell(value: Any) -> str:
    text = "" if value is None else str(value)
    if not _QUOTED.search(text):
        return text
    return '"' + text.replace('"', '""') + '"'


_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""The first characters of a formula in common spreadsheets, also in full width."""


_INNER_FORMULA = re.compile(r'([;|\t\r\n]"*)(?=[=+\-@\uff1d\uff0b\uff0d\uff20])')
"""A formula within a text. It is a cell of its own where another character separates cells: the
quotation marks behind a comma mean nothing there."""


def _csv_value(value: Any) -> Any:
    plain = plain_value(value)
    if not isinstance(plain, str):
        return plain
    plain = _INNER_FORMULA.sub(r"\1'", plain)
    return f"'{plain}" if plain.startswith(_FORMULA) else plain


def as_json(report: Report) -> str:
    """Return all columns as a JSON array in ASCII, one object a line."""
    lines = [
        json.dumps({name: plain_value(value) for name, value in row.items()}, separators=(",", ":"))
        for row in report.dicts()
    ]
    return "[" + ",\n ".join(lines) + "]\n"


def as_markdown(report: Report) -> str:
    """Return the columns for people as a table."""
    columns = report.view.display_columns
    lines = [
        "| " + " | ".join(column.name for column in columns) + " |",
        "|" + "|".join("---" if column.kind in _LEFT else "--:" for column in columns) + "|",
    ]
    for row in report.dicts():
        cells = (cell_text(row[column.name]) for column in columns)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


_LEFT = ("text", "time", "day")


def plain_value(value: Any) -> Any:
    """Return a value for programs: a time or a day as text in ISO 8601."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, date):
        return value.isoformat()
    return value


def cell_text(value: Any) -> str:
    """Return a value for people, on one line.

    A time has seconds, a duration has milliseconds, a text is cut after its first line.
    """
    if value is None:
        return ""
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(value, float):
        return f"{value:.3f}"
    return next(_lines(str(value)), "")


def _lines(text: str) -> Iterator[str]:
    yield from (line for line in text.splitlines() if line.strip())

"""Write a report as CSV, JSON or Markdown."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from datetime import UTC, date, datetime
from typing import Any

from sessionsdb.reports.queries import Report


def as_csv(report: Report) -> str:
    """Return all columns as CSV with a header. Lines end with ``\\n``.

    Times are in ISO 8601 and a NULL is empty.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(column.name for column in report.columns)
    writer.writerows([plain_value(value) for value in row] for row in report.rows)
    return out.getvalue()


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

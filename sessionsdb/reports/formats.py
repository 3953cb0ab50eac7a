"""A report as text for other programs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from datetime import UTC, date, datetime
from typing import Any

from sessionsdb.reports.queries import Report


def as_csv(report: Report) -> str:
    """All columns, a header first; times in ISO 8601, nothing for NULL. Lines end with a newline
    alone."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(column.name for column in report.columns)
    writer.writerows([plain(value) for value in row] for row in report.rows)
    return out.getvalue()


def as_json(report: Report) -> str:
    """An array of objects, one a line, with all columns, in ASCII."""
    lines = [
        json.dumps({name: plain(value) for name, value in row.items()}, separators=(",", ":"))
        for row in report.dicts()
    ]
    return "[" + ",\n ".join(lines) + "]\n"


def as_markdown(report: Report) -> str:
    """A table of the columns for people."""
    shown = report.view.shown_columns
    lines = [
        "| " + " | ".join(column.name for column in shown) + " |",
        "|" + "|".join("---" if column.kind in _LEFT else "--:" for column in shown) + "|",
    ]
    for row in report.dicts():
        cells = (brief(row[column.name]) for column in shown)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


_LEFT = ("text", "time", "day")


def plain(value: Any) -> Any:
    """A value for machines: a time is text in ISO 8601."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, date):
        return value.isoformat()
    return value


def brief(value: Any) -> str:
    """A value for people, on one line: a time to the second, seconds to the thousandth, the first
    line of a text."""
    if value is None:
        return ""
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(value, float):
        return f"{value:.3f}"
    return next(_lines(str(value)), "")


def _lines(text: str) -> Iterator[str]:
    yield from (line for line in text.splitlines() if line.strip())

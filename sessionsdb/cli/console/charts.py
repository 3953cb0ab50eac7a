"""Draw a report as bars in the terminal."""

from __future__ import annotations

from typing import Any

from rich.bar import Bar
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from sessionsdb import InvalidArgument
from sessionsdb.cli.console.output import cell
from sessionsdb.cli.console.report_table import with_short_ids
from sessionsdb.reports.queries import Report

WIDTH = 48
"""Columns of the longest bar."""


def chart(report: Report, *, short: bool = False) -> RenderableType:
    """Return the report as a table with bars, or raise ``InvalidArgument`` if it has no chart.

    With ``short`` the ids are cut for people.
    """
    make = CHARTS.get(report.view.report)
    if make is None:
        raise InvalidArgument(
            f"the report {report.view.report!r} has no chart; {', '.join(CHARTS)} have"
        )
    return make(with_short_ids(report.dicts()) if short else report.dicts())


def _activity(rows: list[dict[str, Any]]) -> Table:
    table = _table("day", "channel", "turns")
    table.add_column("messages", justify="right", no_wrap=True)
    table.add_column("tokens", justify="right", no_wrap=True)
    rows = sorted(rows, key=lambda row: (row["day"], row["channel"]))
    longest = max((row["turns"] for row in rows), default=0)
    before = None
    for row in rows:
        table.add_row(
            Text("" if row["day"] == before else str(row["day"])),
            cell(row["channel"]),
            Text(str(row["turns"])),
            _bar(0, row["turns"], longest),
            Text(str(row["messages"])),
            Text(str(row["input_tokens"] + row["output_tokens"])),
        )
        before = row["day"]
    return table


def _latency(rows: list[dict[str, Any]]) -> Table:
    table = _table("day", "channel", "p50 to p99 of total, s")
    for name in ("p50", "p95", "p99"):
        table.add_column(name, justify="right", no_wrap=True)
    rows = sorted(rows, key=lambda row: (row["day"], row["channel"]))
    longest = max((row["total_p99"] for row in rows), default=0.0)
    before = None
    for row in rows:
        table.add_row(
            Text("" if row["day"] == before else str(row["day"])),
            cell(row["channel"]),
            Text(""),
            _bar(row["total_p50"], row["total_p99"], longest),
            *(Text(f"{row[f'total_{name}']:.3f}") for name in ("p50", "p95", "p99")),
        )
        before = row["day"]
    return table


def _tree(rows: list[dict[str, Any]]) -> Table:
    tokens = any(row["subtree_input_tokens"] + row["subtree_output_tokens"] for row in rows)
    table = _table("session", "", "tokens of the subtree" if tokens else "turns of the subtree")
    weights = [
        row["subtree_input_tokens"] + row["subtree_output_tokens"]
        if tokens
        else row["subtree_turns"]
        for row in rows
    ]
    longest = max(weights, default=0)
    for row, weight in zip(rows, weights, strict=True):
        indent = "  " * (row["depth"] - 1) + "└ " if row["depth"] else ""
        sessions = row["subtree_sessions"]
        table.add_row(
            Text(indent) + cell(row["session_id"]),
            Text(f"{sessions} sessions" if sessions > 1 else "", style="dim"),
            Text(str(weight)),
            _bar(0, weight, longest),
        )
    return table


def _table(first: str, second: str, measure: str) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column(first, no_wrap=True)
    table.add_column(second)
    table.add_column("", justify="right", no_wrap=True)
    # The only column that shrinks on a narrow terminal, down to the length of the second one.
    table.add_column(measure, max_width=WIDTH)
    return table


def _bar(begin: float, end: float, longest: float) -> RenderableType:
    if not end or not longest:
        return Text("")
    # A quarter of a column keeps the smallest value visible.
    shortest = longest / WIDTH / 4
    return Bar(longest, min(begin, end - shortest), max(end, shortest), width=WIDTH, color="cyan")


CHARTS = {"activity": _activity, "latency": _latency, "tree": _tree}

"""The activity and latency of the first two days by hour, counted from the messages themselves.

The views of activity and latency have one row a day. On the first day that is one bar.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sessionsdb import SessionsDB
from sessionsdb.reports import queries
from sessionsdb.reports.queries import Report

MAX_DAYS = 2
MAX_MESSAGES = 200_000
"""With more messages in two days the picture has days: reading them all would take too long."""

Row = dict[str, Any]


async def by_hour(db: SessionsDB, report: Report, *, channel: str | None = None) -> Report:
    """Return the report with hours instead of days, if all of it lies within two days.

    The values of ``day`` are then the beginnings of hours in UTC. A report of more days, of other
    rows or without turns is returned as it is.
    """
    count = _COUNTS.get(report.view.report)
    days = [row["day"] for row in report.dicts()] if count is not None else []
    if count is None or not days or (max(days) - min(days)).days >= MAX_DAYS:
        return report
    first = datetime(min(days).year, min(days).month, min(days).day, tzinfo=UTC)
    turns = await queries.read(db, "turns", since=first, channel=channel, limit=MAX_MESSAGES + 1)
    end = first + timedelta(days=(max(days) - min(days)).days + 1)
    handled = [row for row in turns.dicts() if row["finished_at"] < end]
    groups: dict[tuple[datetime, str], list[Row]] = defaultdict(list)
    for row in handled:
        hour = row["finished_at"].replace(minute=0, second=0, microsecond=0)
        groups[hour, row["channel"]].append(row)
    if not groups or len(turns.rows) > MAX_MESSAGES:
        return report
    counted = [
        {"day": hour, "channel": channel, **count(rows)}
        for (hour, channel), rows in sorted(groups.items())
    ]
    shown = [row for row in counted if row["messages"]]
    if not shown:
        return report
    names = [column.name for column in report.columns]
    return Report(report.view, [tuple(row.get(name) for name in names) for row in shown])


def _activity(rows: Sequence[Row]) -> Row:
    # The messages of one batch share their turn.
    turns = {
        (row["session_id"], row["first_seq"]): row["last_seq"] - row["first_seq"] + 1
        for row in rows
        if row["status"] == "done" and row["first_seq"] is not None
    }
    return {
        "turns": len(turns),
        "messages": sum(turns.values()),
        "input_tokens": sum(row["input_tokens"] or 0 for row in rows),
        "output_tokens": sum(row["output_tokens"] or 0 for row in rows),
    }


def _latency(rows: Sequence[Row]) -> Row:
    answered = [row for row in rows if row["status"] == "done"]
    found: Row = {"messages": len(answered)}
    for span in ("wait", "total") if answered else ():
        values = sorted(row[f"{span}_seconds"] for row in answered)
        for percent in (50, 95, 99):
            found[f"{span}_p{percent}"] = _percentile(values, percent / 100)
    return found


def _percentile(values: Sequence[float], fraction: float) -> float:
    """Return a percentile of sorted values, interpolated as ``percentile_cont`` does it."""
    place = fraction * (len(values) - 1)
    below = int(place)
    above = min(below + 1, len(values) - 1)
    return values[below] + (values[above] - values[below]) * (place - below)


_COUNTS: dict[str, Callable[[Sequence[Row]], Row]] = {"activity": _activity, "latency": _latency}

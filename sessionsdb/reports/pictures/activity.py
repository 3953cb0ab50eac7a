"""Draw turns, messages and tokens by day and channel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from datetime import date
from typing import TYPE_CHECKING, Any

from sessionsdb.reports.pictures.parts import (
    COLOURS,
    OTHERS,
    add_legend,
    all_days,
    format_date_axis,
    label,
    largest_channels,
    short_number,
    title,
)
from sessionsdb.reports.queries import Report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_CHANNELS = len(COLOURS)


def draw_activity(figure: Figure, report: Report) -> None:
    rows = report.dicts()
    days = all_days(rows)
    channels = largest_channels(rows, lambda row: row["messages"] + row["turns"], MAX_CHANNELS)
    figure.set_size_inches(10, 8)
    figure.suptitle(title("Activity", days), weight="bold")
    panels: tuple[tuple[str, Callable[[dict[str, Any]], int]], ...] = (
        ("turns", lambda row: row["turns"]),
        ("messages", lambda row: row["messages"]),
        ("tokens", lambda row: row["input_tokens"] + row["output_tokens"]),
    )
    axes = figure.subplots(len(panels), 1, sharex=True)
    for index, (axis, (name, value)) in enumerate(zip(axes, panels, strict=True)):
        below = [0] * len(days)
        for colour, channel in zip(COLOURS, channels, strict=False):
            heights = _per_day(rows, days, channels, channel, value)
            bars = axis.bar(days, heights, 0.85, bottom=below, color=colour, label=label(channel))
            if len(days) == 1 and heights[0]:
                text = f"{label(channel)}: {short_number(heights[0])}"
                axis.bar_label(bars, [text], label_type="center", fontsize=8)
            below = [a + b for a, b in zip(below, heights, strict=True)]
        axis.set_ylabel(name)
        axis.yaxis.set_major_formatter(lambda number, _: short_number(number))
        if index == 0:
            add_legend(axis, "channel")
    format_date_axis(axes[-1], days)


def _per_day(
    rows: list[dict[str, Any]],
    days: Sequence[date],
    channels: Sequence[str],
    channel: str,
    value: Callable[[dict[str, Any]], int],
) -> list[int]:
    sums: Counter[date] = Counter()
    for row in rows:
        shown = row["channel"] if row["channel"] in channels else OTHERS
        if shown == channel:
            sums[row["day"]] += value(row)
    return [sums[day] for day in days]

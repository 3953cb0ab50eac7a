"""Draw turns, messages and tokens by day or hour, and by channel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from sessionsdb.reports.pictures.parts import (
    COLOURS,
    OTHERS,
    Moment,
    add_legend,
    all_moments,
    format_time_axis,
    label,
    largest_channels,
    short_number,
    time_number,
    title,
    width_of,
)
from sessionsdb.reports.queries import Report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_CHANNELS = len(COLOURS)


def draw_activity(figure: Figure, report: Report) -> None:
    rows = report.dicts()
    moments = all_moments(rows)
    by_hour = width_of(moments) < 1
    places = [time_number(moment) for moment in moments]
    channels = largest_channels(rows, lambda row: row["messages"] + row["turns"], MAX_CHANNELS)
    figure.set_size_inches(10, 8)
    figure.suptitle(title("Activity", moments), weight="bold")
    panels: tuple[tuple[str, Callable[[dict[str, Any]], int]], ...] = (
        ("turns", lambda row: row["turns"]),
        ("messages of turns" if by_hour else "messages", lambda row: row["messages"]),
        ("tokens", lambda row: row["input_tokens"] + row["output_tokens"]),
    )
    axes = figure.subplots(len(panels), 1, sharex=True)
    for index, (axis, (name, value)) in enumerate(zip(axes, panels, strict=True)):
        below = [0] * len(moments)
        for colour, channel in zip(COLOURS, channels, strict=False):
            heights = _per_day(rows, moments, channels, channel, value)
            bars = axis.bar(
                places,
                heights,
                0.85 * width_of(moments),
                bottom=below,
                color=colour,
                label=label(channel),
            )
            if len(moments) == 1 and heights[0]:
                text = f"{label(channel)}: {short_number(heights[0])}"
                axis.bar_label(bars, [text], label_type="center", fontsize=8)
            below = [a + b for a, b in zip(below, heights, strict=True)]
        axis.set_ylabel(name)
        axis.yaxis.set_major_formatter(lambda number, _: short_number(number))
        if index == 0:
            add_legend(axis, "channel")
    format_time_axis(axes[-1], moments)


def _per_day(
    rows: list[dict[str, Any]],
    moments: Sequence[Moment],
    channels: Sequence[str],
    channel: str,
    value: Callable[[dict[str, Any]], int],
) -> list[int]:
    sums: Counter[Moment] = Counter()
    for row in rows:
        shown = row["channel"] if row["channel"] in channels else OTHERS
        if shown == channel:
            sums[row["day"]] += value(row)
    return [sums[moment] for moment in moments]

"""Draw percentiles of waiting times and reply times by day or hour, and by channel."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sessionsdb.reports.pictures.parts import (
    COLOURS,
    ROUNDED_UP,
    add_legend,
    all_moments,
    format_time_axis,
    label,
    largest_channels,
    time_number,
    title,
    width_of,
)
from sessionsdb.reports.queries import Report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_CHANNELS = 4
QUANTILES = (("p50", "-", "o"), ("p95", "--", "s"), ("p99", ":", "^"))
"""Each percentile with its line and its marker, which alone is seen of a single day."""
TICKS = (
    *(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 60, 180, 600, 1_800),
    *(3_600, 3 * 3_600, 12 * 3_600, 86_400, 3 * 86_400, 10 * 86_400, 30 * 86_400, 365 * 86_400),
)
"""Marks of the time axis, in seconds: round numbers of ms, s, min, h and d."""


def draw_latency(figure: Figure, report: Report) -> None:
    rows = sorted(report.dicts(), key=lambda row: row["day"])
    moments = all_moments(rows)
    width = width_of(moments)
    channels = largest_channels(rows, lambda row: row["messages"], MAX_CHANNELS, others=False)
    count = len({row["channel"] for row in rows})
    figure.set_size_inches(10, 7)
    note = f"; {len(channels)} of {count} channels, the largest"
    figure.suptitle(
        title("Latency", moments) + (note if len(channels) < count else ""), weight="bold"
    )
    axes = figure.subplots(2, 1, sharex=True)
    for index, (axis, span) in enumerate(zip(axes, ("wait", "total"), strict=True)):
        for place, (colour, channel) in enumerate(zip(COLOURS, channels, strict=False)):
            of_channel = [row for row in rows if row["channel"] == channel]
            # The channels of a single day or hour are side by side, so that none hides another.
            shift = 0.35 * width * (place - (len(channels) - 1) / 2) if len(moments) == 1 else 0.0
            for quantile, line, marker in QUANTILES:
                axis.plot(
                    [time_number(row["day"]) + shift for row in of_channel],
                    # The axis is logarithmic, so a value is at least a millisecond.
                    [max(row[f"{span}_{quantile}"], 0.001) for row in of_channel],
                    line,
                    color=colour,
                    marker=marker,
                    markersize=4,
                    linewidth=1.4,
                    label=f"{label(channel)} {quantile}",
                )
                if len(moments) == 1 and of_channel:
                    value = of_channel[0][f"{span}_{quantile}"]
                    axis.annotate(
                        f"{quantile} {_duration(value)}",
                        (time_number(moments[0]) + shift, max(value, 0.001)),
                        # Apart from each other, also where all three are equal.
                        xytext={"p50": (8, -6), "p95": (-8, 0), "p99": (8, 6)}[quantile],
                        textcoords="offset points",
                        ha="right" if quantile == "p95" else "left",
                        va="center",
                        fontsize=8,
                        color=colour,
                    )
        drawn = [row for row in rows if row["channel"] in channels]
        ticks = _ticks([row[f"{span}_{quantile}"] for row in drawn for quantile, *_ in QUANTILES])
        axis.set_yscale("log")
        axis.set_yticks(ticks, [_duration(tick) for tick in ticks])
        axis.set_yticks([], minor=True)
        axis.set_ylim(ticks[0] * 0.9, ticks[-1] * 1.1)
        axis.set_ylabel({"wait": "until the turn began", "total": "until the answer"}[span])
        if index == 0:
            add_legend(axis, "channel and percentile")
    format_time_axis(axes[-1], moments)


def _ticks(values: list[float]) -> list[float]:
    """Return the marks that enclose the values, at least two."""
    lowest, highest = max(min(values), TICKS[0]), max(values)
    first = max(index for index, tick in enumerate(TICKS) if tick <= lowest)
    last = next((index for index, tick in enumerate(TICKS) if tick >= highest), len(TICKS) - 1)
    return list(TICKS[first : max(last, first + 1) + 1])


def _duration(seconds: float) -> str:
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")):
        if seconds >= ROUNDED_UP * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1000:.3g} ms"

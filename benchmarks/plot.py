"""A group's results as a picture: a panel for each thing and database, a line for each side."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.results import FLOOR, OURS, SHOWN, GroupResult, Measurement

COLOURS = ("#1f6feb", "#8c959f", "#bf8700", "#cf222e", "#8250df", "#1a7f37")
"""Ours, the bare driver, the peers in their order."""

STYLES = ("-", ":", "-.", "--")
"""The line styles of one side under several conditions."""

WIDTH, HEIGHT = 4.2, 2.5
"""Inches: a panel."""

LEGEND_COLUMNS, LEGEND_MARGIN, LEGEND_ROW = 4, 0.25, 0.17
"""Of the legend: its columns, and in inches the space around it and a row."""


def draw(result: GroupResult, path: Path) -> bool:
    """Write the picture as SVG. Returns false if no scale has several values."""
    import matplotlib

    matplotlib.use("svg")
    # The same results give the same file.
    matplotlib.rcParams["svg.hashsalt"] = result.group
    from matplotlib import pyplot

    scales = {
        what: scale
        for what in dict.fromkeys(m.what for m in result.measurements)
        if (scale := _scale(m for m in result.measurements if m.what == what)) is not None
    }
    if not scales:
        return False
    databases = list(dict.fromkeys(m.database for m in result.measurements))
    figure, panels = pyplot.subplots(
        len(scales),
        len(databases),
        figsize=(WIDTH * len(databases), HEIGHT * len(scales)),
        squeeze=False,
        sharey="row",
    )
    for row, (what, scale) in zip(panels, scales.items(), strict=True):
        for panel, database in zip(row, databases, strict=True):
            here = [
                m
                for m in result.measurements
                if (m.what, m.database) == (what, database) and scale in m.at
            ]
            panel.set_title(f"{what}, {database}", fontsize=9)
            _fill(panel, here, scale, result.sides())
        row[0].set_ylabel(next(m.unit for m in result.measurements if m.what == what), fontsize=8)
    lines = {line.get_label(): line for panel in panels.flat for line in panel.containers}
    figure.legend(
        lines.values(),
        lines.keys(),
        loc="upper center",
        ncols=LEGEND_COLUMNS,
        fontsize=8,
        frameon=False,
    )
    legend = LEGEND_MARGIN + LEGEND_ROW * math.ceil(len(lines) / LEGEND_COLUMNS)
    figure.set_figheight(HEIGHT * len(scales) + legend)
    figure.tight_layout(rect=(0, 0, 1, 1 - legend / figure.get_figheight()))
    figure.savefig(path, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    # Without the blanks at ends of lines, which no file of a repository should have.
    path.write_text("".join(f"{line.rstrip()}\n" for line in path.read_text().splitlines()))
    return True


def _scale(measurements: Iterable[Measurement]) -> str | None:
    """The scale with the most places."""
    places: dict[str, set[int]] = {}
    for measurement in measurements:
        for key, value in measurement.at.items():
            if isinstance(value, int):
                places.setdefault(key, set()).add(value)
    found = max(places, key=lambda key: len(places[key]), default=None)
    return found if found is not None and len(places[found]) > 1 else None


def _fill(panel: Any, here: list[Measurement], scale: str, sides: list[str]) -> None:
    order = [OURS, FLOOR, *(side for side in sides if side not in (OURS, FLOOR))]
    for side in order:
        series: dict[str, list[Measurement]] = {}
        for m in here:
            if m.side == side:
                rest = "".join(f", {_named(*at)}" for at in m.at.items() if at[0] != scale)
                series.setdefault(rest, []).append(m)
        for number, (rest, measured) in enumerate(series.items()):
            _line(
                panel,
                sorted(measured, key=lambda m: m.at[scale]),
                scale,
                label=f"{SHOWN.get(side, side)}{rest}",
                color=COLOURS[order.index(side) % len(COLOURS)],
                linestyle=STYLES[number % len(STYLES)],
            )
    panel.set_xscale("log")
    panel.set_yscale("log")
    ticks = sorted({int(m.at[scale]) for m in here})
    panel.set_xticks(ticks, [f"{tick:,}" for tick in ticks], fontsize=7)
    panel.xaxis.minorticks_off()
    panel.tick_params(which="both", labelsize=7)
    panel.yaxis.set_major_formatter(_plainly)
    least, most = panel.get_ylim()
    # Between powers of ten only where there is hardly one to be seen.
    panel.yaxis.set_minor_formatter(_plainly if most < 10 * least else lambda *_: "")
    panel.grid(alpha=0.3)
    panel.set_xlabel(scale, fontsize=8)


def _named(condition: str, value: Any) -> str:
    if not isinstance(value, int):
        return str(value)
    return f"{value:,} {condition.removesuffix('s') if value == 1 else condition}"


def _plainly(value: float, _place: int | None) -> str:
    return f"{value:,.10g}"


def _line(panel: Any, measured: list[Measurement], scale: str, **look: Any) -> None:
    medians = [m.median for m in measured]
    below = [m.median - min(m.figures) for m in measured]
    above = [max(m.figures) - m.median for m in measured]
    panel.errorbar(
        [m.at[scale] for m in measured],
        medians,
        yerr=(below, above),
        marker="o",
        markersize=3,
        linewidth=1.2,
        capsize=2,
        **look,
    )

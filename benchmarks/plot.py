"""A group's results as a picture: a panel for each thing and database, a line for each side."""

from __future__ import annotations

from pathlib import Path

from benchmarks.results import FLOOR, OURS, SHOWN, Case, GroupResult

COLOURS = ("#1f6feb", "#8c959f", "#bf8700", "#cf222e", "#8250df", "#1a7f37")
"""Ours, the bare driver, the peers in their order."""


def draw(result: GroupResult, path: Path) -> bool:
    """Write the picture as SVG; false if nothing was measured at several places of one scale."""
    import matplotlib

    matplotlib.use("svg")
    # The same results give the same file.
    matplotlib.rcParams["svg.hashsalt"] = result.group
    from matplotlib import pyplot

    scale = _scale(result)
    if scale is None:
        return False
    cases = [case for case in result.cases() if scale in dict(case.at)]
    things = list(dict.fromkeys(case.what for case in cases))
    databases = list(dict.fromkeys(case.database for case in cases))
    sides = [OURS, FLOOR, *(s for s in result.sides() if s not in (OURS, FLOOR))]
    figure, panels = pyplot.subplots(
        len(things),
        len(databases),
        figsize=(4.2 * len(databases), 2.5 * len(things)),
        squeeze=False,
        sharey="row",
    )
    for row, what in enumerate(things):
        for column, database in enumerate(databases):
            panel = panels[row][column]
            here = [c for c in cases if (c.what, c.database) == (what, database)]
            for number, side in enumerate(sides):
                _line(panel, result, here, scale, side, COLOURS[number % len(COLOURS)])
            panel.set_title(f"{what}, {database}", fontsize=9)
            panel.set_xscale("log")
            panel.set_yscale("log")
            ticks = sorted({dict(case.at)[scale] for case in here})
            panel.set_xticks(ticks, [f"{tick:,}" for tick in ticks], fontsize=7)
            panel.minorticks_off()
            panel.tick_params(labelsize=7)
            panel.grid(alpha=0.3)
            if column == 0 and here:
                panel.set_ylabel(_unit(result, here[0]), fontsize=8)
            if row == len(things) - 1:
                panel.set_xlabel(scale, fontsize=8)
    drawn = {line.get_label(): line for panel in panels.flat for line in panel.lines}
    figure.legend(
        drawn.values(),
        drawn.keys(),
        loc="upper center",
        ncols=len(drawn),
        fontsize=8,
        frameon=False,
    )
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.4 / (2.5 * len(things))))
    figure.savefig(path, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    return True


def _scale(result: GroupResult) -> str | None:
    """The scale with the most places."""
    places: dict[str, set[int]] = {}
    for measurement in result.measurements:
        for key, value in measurement.at.items():
            if isinstance(value, int):
                places.setdefault(key, set()).add(value)
    found = max(places, key=lambda key: len(places[key]), default=None)
    return found if found is not None and len(places[found]) > 1 else None


def _line(
    panel: object, result: GroupResult, cases: list[Case], scale: str, side: str, colour: str
) -> None:
    found = [
        (dict(case.at)[scale], measurement)
        for case in cases
        if (measurement := result.find(case, side)) is not None
    ]
    if not found:
        return
    found.sort(key=lambda one: one[0])
    medians = [measurement.median for _, measurement in found]
    below = [m.median - min(m.values) for _, m in found]
    above = [max(m.values) - m.median for _, m in found]
    panel.errorbar(  # type: ignore[attr-defined]
        [place for place, _ in found],
        medians,
        yerr=(below, above),
        marker="o",
        markersize=3,
        linewidth=1.4 if side == OURS else 1,
        linestyle="--" if side == FLOOR else "-",
        capsize=2,
        color=colour,
        label=SHOWN.get(side, side),
    )


def _unit(result: GroupResult, case: Case) -> str:
    return next(m.unit for m in result.measurements if m.case == case)

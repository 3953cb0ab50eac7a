"""Reports as pictures: activity, latency and the tree, drawn by matplotlib.

matplotlib comes with the extra ``sessionsdb[plot]`` and is imported when a picture is drawn.
"""

from __future__ import annotations

import itertools
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sessionsdb import InvalidArgument, SessionsDBError
from sessionsdb.reports.queries import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("svg", "png")

# Okabe and Ito's: told apart by people who are colour-blind.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#7f7f7f")
OTHERS = "others"
MAX_CHANNELS = len(COLOURS)
MAX_LATENCY_CHANNELS = 4
MAX_SESSIONS = 60
LABEL_CHARACTERS = 36


class PlotLibraryMissing(SessionsDBError):
    def __init__(self) -> None:
        super().__init__(
            'pictures need matplotlib; install it with: pip install "sessionsdb[plot]"'
        )


def draw(report: Report, file: Path) -> None:
    """Write the report as a picture, SVG or PNG by the file's ending.

    Raises ``InvalidArgument`` for a report that has no picture, for another ending and where there
    is nothing to draw, ``PlotLibraryMissing``, and ``OSError``.
    """
    kind = file.suffix.lower().removeprefix(".")
    if kind not in FORMATS:
        raise InvalidArgument(f"{file}: a picture is written as .svg or .png")
    painter = PAINTERS.get(report.view.report)
    if painter is None:
        raise InvalidArgument(
            f"the report {report.view.report!r} has no picture; {', '.join(PAINTERS)} have"
        )
    if not report.rows:
        raise InvalidArgument("there is nothing to draw: the report is empty")
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise PlotLibraryMissing from None
    look: Any = {
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "grid.color": "#e4e4e4",
        "font.size": 9,
        "text.parse_math": False,  # names are other people's text
        "svg.hashsalt": "sessionsdb",  # the same report is the same file
    }
    with matplotlib.rc_context(look), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a name in a script the font lacks
        figure = Figure(layout="constrained")
        painter(figure, report)
        metadata = {"Date": None} if kind == "svg" else None
        figure.savefig(file, format=kind, dpi=150, metadata=metadata)


# ---- activity ----------------------------------------------------------------------------------


def _draw_activity(figure: Figure, report: Report) -> None:
    rows = report.dicts()
    days = _days(rows)
    channels = _largest(rows, lambda row: row["messages"] + row["turns"], MAX_CHANNELS)
    figure.set_size_inches(10, 8)
    figure.suptitle(_title("Activity", days), weight="bold")
    panels: tuple[tuple[str, Callable[[dict[str, Any]], int]], ...] = (
        ("turns", lambda row: row["turns"]),
        ("messages", lambda row: row["messages"]),
        ("tokens", lambda row: row["input_tokens"] + row["output_tokens"]),
    )
    axes = figure.subplots(len(panels), 1, sharex=True)
    for place, (axis, (name, value)) in enumerate(zip(axes, panels, strict=True)):
        below = [0] * len(days)
        for colour, channel in zip(COLOURS, channels, strict=False):
            heights = _per_day(rows, days, channels, channel, value)
            axis.bar(days, heights, 0.85, bottom=below, color=colour, label=_label(channel))
            below = [a + b for a, b in zip(below, heights, strict=True)]
        axis.set_ylabel(name)
        axis.yaxis.set_major_formatter(lambda number, _: _short(number))
        if place == 0:
            _legend(axis, "channel")
    _date_axis(axes[-1], days)


def _per_day(
    rows: list[dict[str, Any]],
    days: Sequence[date],
    channels: Sequence[str],
    channel: str,
    value: Callable[[dict[str, Any]], int],
) -> list[int]:
    sums: Counter[date] = Counter()
    for row in rows:
        own = row["channel"] if row["channel"] in channels else OTHERS
        if own == channel:
            sums[row["day"]] += value(row)
    return [sums[day] for day in days]


# ---- latency -----------------------------------------------------------------------------------

QUANTILES = (("p50", "-"), ("p95", "--"), ("p99", ":"))
TICKS = (
    *(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 60, 180, 600, 1_800),
    *(3_600, 3 * 3_600, 12 * 3_600, 86_400, 3 * 86_400, 10 * 86_400, 30 * 86_400, 365 * 86_400),
)
"""Seconds that people know: the marks of the axis."""


def _draw_latency(figure: Figure, report: Report) -> None:
    rows = sorted(report.dicts(), key=lambda row: row["day"])
    days = _days(rows)
    channels = _largest(rows, lambda row: row["messages"], MAX_LATENCY_CHANNELS, others=False)
    count = len({row["channel"] for row in rows})
    figure.set_size_inches(10, 7)
    note = f"; {len(channels)} of {count} channels, the largest"
    title = _title("Latency", days)
    figure.suptitle(title + (note if len(channels) < count else ""), weight="bold")
    axes = figure.subplots(2, 1, sharex=True)
    for place, (axis, span) in enumerate(zip(axes, ("wait", "total"), strict=True)):
        for colour, channel in zip(COLOURS, channels, strict=False):
            own = [row for row in rows if row["channel"] == channel]
            for quantile, line in QUANTILES:
                axis.plot(
                    [row["day"] for row in own],
                    # A logarithm of nothing can't be drawn: from a millisecond on.
                    [max(row[f"{span}_{quantile}"], 0.001) for row in own],
                    line,
                    color=colour,
                    marker="o",
                    markersize=3,
                    linewidth=1.4,
                    label=f"{_label(channel)} {quantile}",
                )
        shown = [row for row in rows if row["channel"] in channels]
        ticks = _ticks([row[f"{span}_{quantile}"] for row in shown for quantile, _ in QUANTILES])
        axis.set_yscale("log")
        axis.set_yticks(ticks, [_duration(tick) for tick in ticks])
        axis.set_yticks([], minor=True)
        axis.set_ylim(ticks[0] * 0.9, ticks[-1] * 1.1)
        axis.set_ylabel({"wait": "until the turn began", "total": "until the answer"}[span])
        if place == 0:
            _legend(axis, "channel")
    _date_axis(axes[-1], days)


def _ticks(values: list[float]) -> list[float]:
    """Marks around the values: the last that is not above the least, to the first not below the
    greatest."""
    least, most = max(min(values), TICKS[0]), max(values)
    first = max(place for place, tick in enumerate(TICKS) if tick <= least)
    last = next((place for place, tick in enumerate(TICKS) if tick >= most), len(TICKS) - 1)
    return list(TICKS[first : max(last, first + 1) + 1])


# ---- the tree ----------------------------------------------------------------------------------


def _draw_tree(figure: Figure, report: Report) -> None:
    rows = report.dicts()
    measure = "tokens" if any(_subtree_tokens(row) for row in rows) else "turns"
    weigh: Callable[[dict[str, Any]], int] = (
        _subtree_tokens if measure == "tokens" else lambda row: int(row["subtree_turns"])
    )
    drawn = _trees_that_fit(rows, weigh)
    figure.set_size_inches(10.5, max(2.5, 0.9 + 0.34 * len(drawn)))
    title = f"Sessions and what is below them, by {measure}"
    if len(drawn) < len(rows):
        title += f"; {len(drawn)} of {len(rows)} sessions, the largest trees"
    figure.suptitle(title, weight="bold")
    axis = figure.subplots()
    most = max((weigh(row) for row in drawn), default=0) or 1
    places = {row["session_id"]: (row["depth"], -line) for line, row in enumerate(drawn)}
    roots = list(dict.fromkeys(row["root_id"] for row in drawn))
    for row in drawn:
        x, y = places[row["session_id"]]
        colour = COLOURS[roots.index(row["root_id"]) % (len(COLOURS) - 1)]
        if row["parent_id"] in places:
            above, line = places[row["parent_id"]]
            axis.plot([above, above, x], [line, y, y], color="#b0b0b0", linewidth=1, zorder=1)
        axis.scatter([x], [y], s=14 + 260 * weigh(row) / most, color=colour, alpha=0.85, zorder=2)
        axis.annotate(
            f"{_label(row['session_id'])}   {_short(weigh(row))} {measure}",
            (x, y),
            xytext=(12, 0),
            textcoords="offset points",
            va="center",
        )
    deepest = max(row["depth"] for row in drawn)
    axis.set_xlim(-0.3, deepest + 2.2)
    axis.set_ylim(-len(drawn) + 0.2, 0.8)
    axis.set_xticks(range(deepest + 1), [f"depth {depth}" for depth in range(deepest + 1)])
    axis.set_yticks([])
    axis.grid(False)
    for side in ("left", "bottom"):
        axis.spines[side].set_visible(False)
    axis.tick_params(length=0, colors="#606060")


def _subtree_tokens(row: dict[str, Any]) -> int:
    return int(row["subtree_input_tokens"] + row["subtree_output_tokens"])


def _trees_that_fit(
    rows: list[dict[str, Any]], weigh: Callable[[dict[str, Any]], int]
) -> list[dict[str, Any]]:
    """Whole trees, those with children and then the heaviest first; of one too large its top."""
    trees: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        trees[row["root_id"]].append(row)
    ranked = sorted(
        trees.values(), key=lambda tree: (len(tree) > 1, max(map(weigh, tree))), reverse=True
    )
    drawn: list[dict[str, Any]] = []
    for tree in ranked:
        if drawn and len(drawn) + len(tree) > MAX_SESSIONS:
            break
        kept = sorted(tree, key=lambda row: row["depth"])[:MAX_SESSIONS]
        drawn += sorted(kept, key=lambda row: row["path"])
    return drawn


# ---- parts -------------------------------------------------------------------------------------


def _days(rows: list[dict[str, Any]]) -> list[date]:
    """Every day from the first to the last, those without a row as well."""
    first, last = min(row["day"] for row in rows), max(row["day"] for row in rows)
    return [first + timedelta(days=n) for n in range((last - first).days + 1)]


def _largest(
    rows: list[dict[str, Any]],
    value: Callable[[dict[str, Any]], int],
    most: int,
    *,
    others: bool = True,
) -> list[str]:
    """The channels with the largest sums; the last is for all others where there are more."""
    sums: Counter[str] = Counter()
    for row in rows:
        sums[row["channel"]] += value(row)
    ranked = [channel for channel, _ in sums.most_common()]
    if len(ranked) <= most:
        return ranked
    return [*ranked[: most - 1], OTHERS] if others else ranked[:most]


def _title(what: str, days: Sequence[date]) -> str:
    span = f"{days[0]}" if len(days) == 1 else f"{days[0]} to {days[-1]}"
    return f"{what}, {span} (UTC)"


def _legend(axis: Axes, title: str) -> None:
    axis.legend(
        title=title, loc="upper left", bbox_to_anchor=(1.005, 1.0), frameon=False, fontsize=8
    )


def _date_axis(axis: Axes, days: Sequence[date]) -> None:
    step = max(1, -(-len(days) // 10))
    ticks = list(itertools.islice(days, 0, None, step))
    axis.set_xticks([_place(day) for day in ticks], [str(day) for day in ticks])
    axis.set_xlim(_place(days[0]) - 0.7, _place(days[-1]) + 0.7)
    axis.tick_params(axis="x", rotation=30)


def _place(day: date) -> float:
    """Where a day is on the axis."""
    import matplotlib.dates

    return float(matplotlib.dates.date2num(day))  # type: ignore[no-untyped-call]


def _label(name: str) -> str:
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)
    if len(shown) > LABEL_CHARACTERS:
        shown = shown[: LABEL_CHARACTERS - 1] + "…"
    # matplotlib leaves a label out that begins with an underscore.
    return f"\u200b{shown}" if shown.startswith("_") else shown


def _short(number: float) -> str:
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.3g}{suffix}"
    return f"{number:g}"


def _duration(seconds: float) -> str:
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1000:.3g} ms"


PAINTERS: dict[str, Callable[[Figure, Report], None]] = {
    "activity": _draw_activity,
    "latency": _draw_latency,
    "tree": _draw_tree,
}

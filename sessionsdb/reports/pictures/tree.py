"""Draw trees of sessions, with tokens or turns of each subtree."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sessionsdb.reports.pictures.parts import COLOURS, label, short_number
from sessionsdb.reports.queries import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_SESSIONS = 60


def draw_tree(figure: Figure, report: Report) -> None:
    rows = report.dicts()
    measure = "tokens" if any(_subtree_tokens(row) for row in rows) else "turns"
    weight: Callable[[dict[str, Any]], int] = (
        _subtree_tokens if measure == "tokens" else lambda row: int(row["subtree_turns"])
    )
    drawn = _choose_trees(rows, weight)
    figure.set_size_inches(10.5, max(2.5, 0.9 + 0.34 * len(drawn)))
    heading = f"Sessions and what is below them, by {measure}"
    if len(drawn) < len(rows):
        heading += f"; {len(drawn)} of {len(rows)} sessions, the largest trees"
    figure.suptitle(heading, weight="bold")
    axis = figure.subplots()
    heaviest = max((weight(row) for row in drawn), default=0) or 1
    points = {row["session_id"]: (row["depth"], -line) for line, row in enumerate(drawn)}
    roots = list(dict.fromkeys(row["root_id"] for row in drawn))
    for row in drawn:
        x, y = points[row["session_id"]]
        colour = COLOURS[roots.index(row["root_id"]) % (len(COLOURS) - 1)]
        if row["parent_id"] in points:
            above, line = points[row["parent_id"]]
            axis.plot([above, above, x], [line, y, y], color="#b0b0b0", linewidth=1, zorder=1)
        axis.scatter(
            [x], [y], s=_dot_area(weight(row), heaviest), color=colour, alpha=0.85, zorder=2
        )
        axis.annotate(
            f"{label(row['session_id'])}   {short_number(weight(row))} {measure}",
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
    _add_legend(axis, measure, heaviest)
    for side in ("left", "bottom"):
        axis.spines[side].set_visible(False)
    axis.tick_params(length=0, colors="#606060")


def _add_legend(axis: Axes, measure: str, heaviest: int) -> None:
    """Explain the size of a dot and its colour."""
    from matplotlib.lines import Line2D

    sizes = sorted({heaviest, max(1, heaviest // 10)})
    dots = [
        Line2D(
            [], [], linestyle="", marker="o", color="#606060",
            markersize=_dot_area(size, heaviest) ** 0.5, label=f"{short_number(size)} {measure}",
        )
        for size in sizes
    ]  # fmt: skip
    axis.legend(
        handles=dots,
        title="the session and all below it\n(one colour a tree)",
        loc="upper right",
        frameon=False,
        fontsize=8,
        title_fontsize=8,
    )


def _dot_area(weight: int, heaviest: int) -> float:
    """Return the area of a dot in square points."""
    return 14 + 260 * weight / heaviest


def _subtree_tokens(row: dict[str, Any]) -> int:
    return int(row["subtree_input_tokens"] + row["subtree_output_tokens"])


def _choose_trees(
    rows: list[dict[str, Any]], weight: Callable[[dict[str, Any]], int]
) -> list[dict[str, Any]]:
    """Return the rows of whole trees: trees with children first, then the heaviest.

    Of a single tree with more than 60 sessions, the sessions near its root are returned.
    """
    trees: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        trees[row["root_id"]].append(row)
    ranked = sorted(
        trees.values(), key=lambda tree: (len(tree) > 1, max(map(weight, tree))), reverse=True
    )
    drawn: list[dict[str, Any]] = []
    for tree in ranked:
        if drawn and len(drawn) + len(tree) > MAX_SESSIONS:
            break
        kept = sorted(tree, key=lambda row: row["depth"])[:MAX_SESSIONS]
        drawn += sorted(kept, key=lambda row: row["path"])
    return drawn

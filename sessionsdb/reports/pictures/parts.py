"""Colours, labels and axes that the pictures share."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# The palette of Okabe and Ito, which people with colour blindness can tell apart.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#7f7f7f")
OTHERS = "others"
LABEL_CHARACTERS = 36


def all_days(rows: list[dict[str, Any]]) -> list[date]:
    """Return every day from the first to the last row, with the days between."""
    first, last = min(row["day"] for row in rows), max(row["day"] for row in rows)
    return [first + timedelta(days=n) for n in range((last - first).days + 1)]


def largest_channels(
    rows: list[dict[str, Any]],
    value: Callable[[dict[str, Any]], int],
    limit: int,
    *,
    others: bool = True,
) -> list[str]:
    """Return the channels with the largest sums, at most ``limit``.

    With ``others`` the last one stands for all channels beyond the limit.
    """
    sums: Counter[str] = Counter()
    for row in rows:
        sums[row["channel"]] += value(row)
    ranked = [channel for channel, _ in sums.most_common()]
    if len(ranked) <= limit:
        return ranked
    return [*ranked[: limit - 1], OTHERS] if others else ranked[:limit]


def title(name: str, days: Sequence[date]) -> str:
    span = f"{days[0]}" if len(days) == 1 else f"{days[0]} to {days[-1]}"
    return f"{name}, {span} (UTC)"


def add_legend(axis: Axes, heading: str) -> None:
    axis.legend(
        title=heading, loc="upper left", bbox_to_anchor=(1.005, 1.0), frameon=False, fontsize=8
    )


def format_date_axis(axis: Axes, days: Sequence[date]) -> None:
    step = max(1, -(-len(days) // 10))
    ticks = list(itertools.islice(days, 0, None, step))
    axis.set_xticks([day_number(day) for day in ticks], [str(day) for day in ticks])
    axis.set_xlim(day_number(days[0]) - 0.7, day_number(days[-1]) + 0.7)
    axis.tick_params(axis="x", rotation=30)


def day_number(day: date) -> float:
    """Return the place of a day on an axis of dates."""
    import matplotlib.dates

    return float(matplotlib.dates.date2num(day))  # type: ignore[no-untyped-call]


def label(name: str) -> str:
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)
    if len(text) > LABEL_CHARACTERS:
        text = text[: LABEL_CHARACTERS - 1] + "…"
    # matplotlib hides a label that begins with an underscore.
    return f"\u200b{text}" if text.startswith("_") else text


def short_number(number: float) -> str:
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.3g}{suffix}"
    return f"{number:g}"

"""Colours, labels and axes that the pictures share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Moment = date | datetime
"""A day, or the beginning of an hour in UTC."""

# The palette of Okabe and Ito, which people with colour blindness can tell apart.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#7f7f7f")
OTHERS = "others"
LABEL_CHARACTERS = 36


def all_moments(rows: list[dict[str, Any]]) -> list[Moment]:
    """Return every day from the first to the last row, with the days between.

    Of rows by hour these are hours.
    """
    first, last = min(row["day"] for row in rows), max(row["day"] for row in rows)
    step = timedelta(hours=1) if isinstance(first, datetime) else timedelta(days=1)
    return [first + n * step for n in range((last - first) // step + 1)]


def width_of(moments: Sequence[Moment]) -> float:
    """Return the width of a day or an hour on the axis of time, which counts in days."""
    return 1 / 24 if isinstance(moments[0], datetime) else 1.0


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


def title(name: str, moments: Sequence[Moment]) -> str:
    first, last = (str(moment)[:10] for moment in (moments[0], moments[-1]))
    by_hour = " by hour" if isinstance(moments[0], datetime) else ""
    return f"{name}{by_hour}, {first if first == last else f'{first} to {last}'} (UTC)"


def add_legend(axis: Axes, heading: str) -> None:
    axis.legend(
        title=heading, loc="upper left", bbox_to_anchor=(1.005, 1.0), frameon=False, fontsize=8
    )


def format_time_axis(axis: Axes, moments: Sequence[Moment]) -> None:
    """Mark at most 12 days or hours. The first hour of each day has its date."""
    step = next(step for step in _STEPS if len(moments) <= 12 * step)
    width = width_of(moments)
    ticks: list[Moment] = []
    labels = []
    for number, moment in enumerate(moments):
        if isinstance(moment, datetime):
            if moment.hour % step:
                continue
            is_first = not ticks or str(ticks[-1])[:10] != str(moment)[:10]
            labels.append(f"{moment:%H:%M}" + (f"\n{moment:%Y-%m-%d}" if is_first else ""))
        elif number % step:
            continue
        else:
            labels.append(str(moment))
        ticks.append(moment)
    axis.set_xticks([time_number(moment) for moment in ticks], labels)
    axis.set_xlim(time_number(moments[0]) - 0.7 * width, time_number(moments[-1]) + 0.7 * width)
    if not isinstance(moments[0], datetime):
        axis.tick_params(axis="x", rotation=30)


# Of hours those that divide a day. The last one is for any number of days.
_STEPS = (1, 2, 3, 4, 6, 7, 14, 28, 56, 91, 182, 365, 730, 3_650, 10**7)


def time_number(moment: Moment) -> float:
    """Return the place of a day or an hour on an axis of dates."""
    import matplotlib.dates

    return float(matplotlib.dates.date2num(moment))  # type: ignore[no-untyped-call]  # matplotlib's


def label(name: str) -> str:
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)
    if len(text) > LABEL_CHARACTERS:
        text = text[: LABEL_CHARACTERS - 1] + "…"
    # matplotlib hides a label that begins with an underscore.
    return f"\u200b{text}" if text.startswith("_") else text


ROUNDED_UP = 0.9995
"""From this part of a unit on three digits are the whole unit: 999.6 ms is 1 s, not 1e+03 ms."""


def short_number(number: float) -> str:
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= ROUNDED_UP * size:
            return f"{number / size:.3g}{suffix}"
    return f"{number:g}"

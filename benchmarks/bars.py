"""The bars of ``bars.toml``, and whether a run reaches them."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.results import OURS, SHOWN, Case, GroupResult, Measurement, Ratio

FILE = Path(__file__).with_name("bars.toml")


@dataclass(frozen=True)
class Bar:
    """One bar. ``bars.toml`` explains the keys."""

    group: str
    what: tuple[str, ...]
    against: str | None = None
    over: str | None = None
    tail: bool = False
    at_least: float | None = None
    at_most: float | None = None
    where: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    @property
    def limit(self) -> str:
        return f"≥ {self.at_least:g}" if self.at_least is not None else f"≤ {self.at_most:g}"

    def fits(self, case: Case) -> bool:
        places: dict[str, Any] = {"database": case.database, **dict(case.at)}
        return case.what in self.what and all(
            key in places and places[key] in wanted for key, wanted in self.where.items()
        )

    def reached_by(self, value: float) -> bool:
        if self.at_least is not None:
            return value >= self.at_least
        return self.at_most is not None and value <= self.at_most


class Verdict(NamedTuple):
    """The result of one bar for one case."""

    bar: Bar
    case: Case
    value: Ratio
    met: bool

    @property
    def against(self) -> str:
        if self.bar.against is not None:
            return f"× {SHOWN.get(self.bar.against, self.bar.against)}"
        if self.bar.over is not None:
            return f"greatest / least {self.bar.over}"
        return "p99 / median" if self.bar.tail else "as it is"


def load(path: Path = FILE) -> list[Bar]:
    return [_bar(**read) for read in tomllib.loads(path.read_text())["bars"]]


def verdicts(result: GroupResult, bars: list[Bar] | None = None) -> list[Verdict]:
    """Each bar of the group against each case it fits, where both sides were measured."""
    found = []
    for bar in load() if bars is None else bars:
        if bar.group != result.group:
            continue
        ours = [m for m in result.measurements if m.side == OURS and bar.fits(m.case)]
        if bar.over is not None:
            found += _flatness(bar, bar.over, ours)
            continue
        for measurement in ours:
            if bar.tail:
                if measurement.p99_ms is None or measurement.p50_ms is None:
                    continue
                tail = measurement.p99_ms / measurement.p50_ms
                value = Ratio(tail, tail, tail)
            elif bar.against is None:
                value = Ratio(measurement.median, min(figures := measurement.figures), max(figures))
            else:
                other = result.find(measurement.case, bar.against)
                if other is None:
                    continue
                value = Ratio.of(measurement, other)
            found.append(Verdict(bar, measurement.case, value, bar.reached_by(value.median)))
    return found


def _flatness(bar: Bar, over: str, ours: list[Measurement]) -> list[Verdict]:
    """Compare the cost at the greatest size with the cost at the least, for each case."""
    series: dict[Case, list[Measurement]] = {}
    for m in ours:
        if over in m.at:
            rest = tuple((key, value) for key, value in m.at.items() if key != over)
            series.setdefault(Case(m.what, m.database, rest), []).append(m)
    found = []
    for case, measured in series.items():
        measured.sort(key=lambda m: m.at[over])
        if len(measured) < 2:
            continue
        # As costs: above 1 is more expensive, for speeds and for times.
        value = Ratio.of(measured[0], measured[-1])
        found.append(Verdict(bar, case, value, bar.reached_by(value.median)))
    return found


def _bar(
    group: str,
    what: str | list[str],
    against: str | None = None,
    over: str | None = None,
    tail: bool = False,
    at_least: float | None = None,
    at_most: float | None = None,
    **where: Any,
) -> Bar:
    if (at_least is None) == (at_most is None):
        raise ValueError(f"the bar on {what} of {group} needs at_least or at_most")
    return Bar(
        group,
        (what,) if isinstance(what, str) else tuple(what),
        against,
        over,
        tail,
        at_least,
        at_most,
        {key: tuple(v) if isinstance(v, list) else (v,) for key, v in where.items()},
    )

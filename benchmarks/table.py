"""A group's results as tables, for the screen and for a page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from rich.table import Table as RichTable

from benchmarks import bars
from benchmarks.results import SHOWN, GroupResult, Measurement


class Table(NamedTuple):
    """The cells of a table. The first ``names`` columns are words, the others figures."""

    title: str
    names: int
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def for_screen(self) -> RichTable:
        shown = RichTable(title=self.title)
        for place, name in enumerate(self.header):
            shown.add_column(name, justify="left" if place < self.names else "right")
        for place, row in enumerate(self.rows):
            if place and row[0]:
                shown.add_section()
            shown.add_row(*(_STYLES.get(cell, cell) for cell in row))
        return shown

    def for_page(self) -> str:
        """In Markdown."""
        ruler = ["---" if place < self.names else "--:" for place in range(len(self.header))]
        lines = [self.header, ruler, *self.rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


_STYLES = {"met": "[green]met[/green]", "MISSED": "[bold red]MISSED[/bold red]"}


def tables(result: GroupResult) -> Iterator[Table]:
    """The tables of each database, then the bars."""
    for database in dict.fromkeys(case.database for case in result.cases()):
        yield _sides(result, database, "median (least to most)", _value)
        if any(m.p99_ms is not None for m in result.measurements if m.database == database):
            yield _sides(result, database, "the slowest hundredth takes at least, ms", _p99)
    judged = bars.verdicts(result)
    if judged:
        yield of_bars(judged)


def _sides(
    result: GroupResult, database: str, what: str, cell: Callable[[Measurement], str]
) -> Table:
    order = list(dict.fromkeys(case.what for case in result.cases()))
    cases = [case for case in result.cases() if case.database == database]
    cases.sort(key=lambda case: order.index(case.what))
    sides = [s for s in result.sides() if any(result.find(case, s) for case in cases)]
    keys = list(dict.fromkeys(key for case in cases for key, _ in case.at))
    rows = []
    before = None
    for case in cases:
        found = [result.find(case, side) for side in sides]
        cells = ["" if one is None else cell(one) for one in found]
        if not any(cells):
            continue
        at = dict(case.at)
        rows.append(
            [
                case.what if before != case.what else "",
                *(grouped(at.get(key, "")) for key in keys),
                *cells,
            ]
        )
        before = case.what
    return Table(
        f"{result.group}, {database}: {what}",
        1,
        ["", *keys, *(SHOWN.get(side, side) for side in sides)],
        rows,
    )


def of_bars(judged: list[bars.Verdict]) -> Table:
    """One row for each bar and case."""
    return Table(
        "bars: the median of the rounds' ratios (least to most)",
        4,
        ["", "database", "at", "against", "ratio", "bar", ""],
        [
            [
                verdict.case.what,
                verdict.case.database,
                ", ".join(f"{grouped(value)} {key}" for key, value in verdict.case.at),
                verdict.against,
                ranged(verdict.value.median, verdict.value.least, verdict.value.most),
                verdict.bar.limit,
                "met" if verdict.met else "MISSED",
            ]
            for verdict in judged
        ],
    )


def grouped(value: int | str) -> str:
    return f"{value:,}" if isinstance(value, int) else value


def significant(value: float) -> str:
    """Three figures, as people write them."""
    if value >= 100:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{float(f'{value:.3g}'):g}"


def ranged(median: float, least: float, most: float) -> str:
    return f"{significant(median)} ({significant(least)} to {significant(most)})"


def _value(measurement: Measurement) -> str:
    figures = measurement.figures
    least, most = min(figures), max(figures)
    text = f"{significant(measurement.median)} {measurement.unit}"
    if len(figures) > 1:
        text += f" ({significant(least)} to {significant(most)})"
    return text.replace(" /", "/")


def _p99(measurement: Measurement) -> str:
    return "" if measurement.p99_ms is None else significant(measurement.p99_ms)

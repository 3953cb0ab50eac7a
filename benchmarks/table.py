"""A group's results as tables for the screen."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from rich.table import Table

from benchmarks import bars
from benchmarks.results import SHOWN, Case, GroupResult, Measurement


def tables(result: GroupResult) -> Iterator[Table]:
    """What was measured, a table for each database, then the bars."""
    for database in dict.fromkeys(case.database for case in result.cases()):
        yield _measured(result, database)
    judged = bars.verdicts(result)
    if judged:
        yield _judged(judged)


def _measured(result: GroupResult, database: str) -> Table:
    cases = [case for case in result.cases() if case.database == database]
    sides = [s for s in result.sides() if any(result.find(case, s) for case in cases)]
    keys = list(dict.fromkeys(key for case in cases for key, _ in case.at))
    cases.sort(key=lambda case: [c.what for c in result.cases()].index(case.what))
    shown = Table(title=f"{result.group}, {database}: median (least to most)")
    shown.add_column("")
    for key in keys:
        shown.add_column(key, justify="right")
    for side in sides:
        shown.add_column(SHOWN.get(side, side), justify="right")
    before = None
    for case in cases:
        if before is not None and before != case.what:
            shown.add_section()
        at = dict(case.at)
        shown.add_row(
            case.what if before != case.what else "",
            *(grouped(at.get(key, "")) for key in keys),
            *(_cell(result.find(case, side)) for side in sides),
        )
        before = case.what
    return shown


def _judged(judged: list[bars.Verdict]) -> Table:
    shown = Table(title="bars: the median of the rounds' ratios (least to most)")
    for column in ("", "database", "at", "against"):
        shown.add_column(column)
    for column in ("ratio", "bar", ""):
        shown.add_column(column, justify="right")
    for verdict in judged:
        value = verdict.value
        shown.add_row(
            verdict.case.what,
            verdict.case.database,
            places(verdict.case),
            verdict.against,
            ranged(value.median, value.least, value.most),
            verdict.bar.limit,
            "[green]met[/green]" if verdict.met else "[red bold]MISSED[/red bold]",
        )
    return shown


def places(case: Case) -> str:
    return ", ".join(f"{grouped(value)} {key}" for key, value in case.at)


def grouped(value: int | str) -> str:
    return f"{value:,}" if isinstance(value, int) else value


def significant(value: float) -> str:
    """Three figures, as people write them."""
    if value >= 100:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{float(f'{value:.3g}'):g}"


def ranged(median: float, least: float, most: float) -> str:
    return f"{significant(median)} ({significant(least)} to {significant(most)})"


def _cell(measurement: Measurement | None) -> str:
    if measurement is None:
        return ""
    median = statistics.median(measurement.values)
    text = f"{significant(median)} {measurement.unit}"
    if len(measurement.values) > 1:
        least, most = min(measurement.values), max(measurement.values)
        text += f" [dim]({significant(least)} to {significant(most)})[/dim]"
    return text

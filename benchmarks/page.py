"""Write results into benchmarks/RESULTS.md and docs/performance.md, and draw their pictures.

    python -m benchmarks.page benchmarks/results.json

RESULTS.md has a place for each group, from ``<!-- results: NAME -->`` to ``<!-- end of results
-->``. docs/performance.md has one place, ``<!-- results: bars -->``, for the ten bars of
``HEADLINES``. The text in a place is replaced. The place of a group without results is left alone.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import bars, plot, results, table
from benchmarks.results import OURS, GroupResult

PAGE = Path(__file__).with_name("RESULTS.md")
OVERVIEW = Path(__file__).parents[1] / "docs" / "performance.md"

_PLACE = re.compile(r"(<!-- results: ([\w-]+) -->\n).*?(<!-- end of results -->)", re.DOTALL)


class Headline(NamedTuple):
    """One of the bars that docs/performance.md shows."""

    group: str
    what: str
    database: str
    against: str
    at: Mapping[str, Any]


HEADLINES = (
    Headline("store", "append two", "PostgreSQL", "× openai-agents", {"callers": 64}),
    Headline("store", "read the last 50", "PostgreSQL", "× openai-agents", {"callers": 64}),
    Headline("store", "save 1,000 with two more", "SQLite", "× openai-agents", {"callers": 1}),
    Headline("store", "list a page of 50", "PostgreSQL", "× google-adk", {"callers": 64}),
    Headline("queue", "send", "PostgreSQL", "× procrastinate", {"callers": 64}),
    Headline("queue", "work off", "PostgreSQL", "× procrastinate", {"callers": 64}),
    Headline("queue", "work off", "PostgreSQL", "× pgqueuer", {"callers": 64}),
    Headline("queue", "work off", "PostgreSQL", "× bare driver", {"callers": 64}),
    Headline("latency", "send to the handler", "PostgreSQL", "as it is",
             {"worker": "another process", "load": "idle"}),
    Headline("scale", "claim 8 sessions", "PostgreSQL", "greatest / least waiting",
             {"in": "10,000 sessions"}),
)  # fmt: skip


def main(*arguments: str) -> int:
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m benchmarks.page RESULTS.json\n")
        return 2
    measured = results.load(Path(arguments[0]))
    pictures = {
        name: picture.name
        for name, result in measured.items()
        if plot.draw(result, picture := PAGE.with_name(f"results-{name}.svg"))
    }
    PAGE.write_text(rewritten(PAGE.read_text(), measured, pictures))
    OVERVIEW.write_text(with_headlines(OVERVIEW.read_text(), measured))
    return 0


def rewritten(page: str, measured: Mapping[str, GroupResult], pictures: Mapping[str, str]) -> str:
    """The page with these results in their places."""

    def replaced(place: re.Match[str]) -> str:
        name = place[2]
        if name not in measured:
            return place[0]
        return f"{place[1]}{shown(measured[name], pictures.get(name))}{place[3]}"

    return _PLACE.sub(replaced, page)


def with_headlines(page: str, measured: Mapping[str, GroupResult]) -> str:
    """The page with the ten bars in their place, if the results have them all, and with all bars of
    a group in the place of this group."""

    def replaced(place: re.Match[str]) -> str:
        name = place[2]
        if name == "bars":
            shown = _headlines(measured)
        else:
            shown = table.of_bars(bars.verdicts(measured[name])) if name in measured else None
        return place[0] if shown is None else f"{place[1]}\n{shown.for_page()}\n\n{place[3]}"

    return _PLACE.sub(replaced, page)


def _headlines(measured: Mapping[str, GroupResult]) -> table.Table | None:
    rows = [row for headline in HEADLINES if (row := _headline_row(headline, measured))]
    if len(rows) < len(HEADLINES):
        return None
    header = ["", "database", "at", "sessionsdb", "against", "ratio", "bar", ""]
    return table.Table("bars", 3, header, rows)


def _headline_row(headline: Headline, measured: Mapping[str, GroupResult]) -> list[str] | None:
    result = measured.get(headline.group)
    if result is None:
        return None
    for verdict in bars.verdicts(result):
        case = verdict.case
        if (case.what, case.database, verdict.against) == (
            headline.what,
            headline.database,
            headline.against,
        ) and headline.at.items() <= dict(case.at).items():
            ours = result.find(case, OURS)
            at = ", ".join(f"{key}: {table.grouped(value)}" for key, value in case.at)
            rate = "" if ours is None else _rate(ours.median, ours.unit)
            is_alone = headline.against == "as it is"
            ratio = "" if is_alone else table.significant(verdict.value.median)
            met = "met" if verdict.met else "missed"
            against = "" if is_alone else headline.against
            return [case.what, case.database, at, rate, against, ratio, verdict.bar.limit, met]
    return None


def _rate(value: float, unit: str) -> str:
    return f"{table.significant(value)} {unit}".replace(" /", "/")


def shown(result: GroupResult, picture: str | None) -> str:
    """The part of the page for one group."""
    parts = [_circumstances(result)]
    if picture is not None:
        parts.append(f"![{result.group}: a panel for each operation and database]({picture})")
    for one in table.tables(result):
        parts.append(f"{one.title[0].upper()}{one.title[1:]}:\n\n{one.for_page()}")
    if result.notes:
        parts.append("\n".join(f"- {note}." for note in result.notes))
    return "\n" + "\n\n".join(parts) + "\n\n"


def _circumstances(result: GroupResult) -> str:
    machine = result.machine
    packages = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    quick = " A quick run: the figures are rough." if result.quick else ""
    runs = f" The medians of {result.runs} runs, with their range." if result.runs > 1 else ""
    return (
        f"{result.when[:10]}, {machine['cores']} cores ({machine['processor']}),"
        f" {machine['memory_gb']} GB, load {machine['load_before']} before it began.{quick}{runs}"
        f" {packages}."
    )


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

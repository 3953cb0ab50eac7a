"""Puts results into docs/performance.md and draws their pictures beside it.

    python -m benchmarks.page benchmarks/results.json

The page has a place for each group, from ``<!-- results: NAME -->`` to ``<!-- end of results -->``.
The content between is replaced. Groups without results stay unchanged.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path

from benchmarks import plot, results, table
from benchmarks.results import GroupResult

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"

_PLACE = re.compile(r"(<!-- results: ([\w-]+) -->\n).*?(<!-- end of results -->)", re.DOTALL)


def main(*arguments: str) -> int:
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m benchmarks.page RESULTS.json\n")
        return 2
    measured = results.load(Path(arguments[0]))
    pictures = {
        name: picture.name
        for name, result in measured.items()
        if plot.draw(result, picture := PAGE.with_name(f"performance-{name}.svg"))
    }
    PAGE.write_text(rewritten(PAGE.read_text(), measured, pictures))
    return 0


def rewritten(page: str, measured: Mapping[str, GroupResult], pictures: Mapping[str, str]) -> str:
    """The page with these results in their places."""

    def replaced(place: re.Match[str]) -> str:
        name = place[2]
        if name not in measured:
            return place[0]
        return f"{place[1]}{shown(measured[name], pictures.get(name))}{place[3]}"

    return _PLACE.sub(replaced, page)


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
    return (
        f"{result.when[:10]}, {machine['cores']} cores ({machine['processor']}),"
        f" {machine['memory_gb']} GB, load {machine['load_before']} before it began.{quick}"
        f" {packages}."
    )


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

"""python -m benchmarks: measure, show and store results."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks import bench, results, table
from benchmarks.groups import GROUPS

STORED_RUNS = 5
"""How often a group is measured for stored results: rates differ from run to run more than from
round to round."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--group",
        action="append",
        choices=sorted(GROUPS),
        help="only this group, repeatable",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="fewer rounds and sizes: two minutes for all groups",
    )
    parser.add_argument(
        "--only",
        metavar="SIDES",
        help="the sides to measure, with commas: ours,floor,openai-agents,…",
    )
    parser.add_argument(
        "--database",
        action="append",
        choices=(bench.SQLITE, bench.POSTGRESQL),
        help="only this database",
    )
    parser.add_argument(
        "--runs",
        type=int,
        help=f"how often each group is measured: {STORED_RUNS} times with --json, otherwise once. "
        "Figures are the medians of the runs",
    )
    parser.add_argument("--rounds", type=int, help="the number of rounds of a run")
    parser.add_argument("--seconds", type=float, help="the length of one sample")
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="write the results here; other groups stay",
    )
    chosen = parser.parse_args(arguments)
    runs = chosen.runs or (STORED_RUNS if chosen.json and not chosen.quick else 1)
    # SIGTERM raises, so that the PostgreSQL server is stopped.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    out = Console()
    if not out.is_terminal:
        out = Console(width=160)
    with bench.started(
        quick=chosen.quick,
        only=frozenset(chosen.only.split(",")) if chosen.only else None,
        databases=chosen.database or (bench.SQLITE, bench.POSTGRESQL),
        console=out,
        rounds=chosen.rounds,
        seconds=chosen.seconds,
    ) as running:
        measured = []
        for name in chosen.group or GROUPS:
            measured.append(running.run_often(name, GROUPS[name], runs=runs))
            if chosen.json is not None:  # at once: the next group may fail
                results.save(chosen.json, measured[-1:])
    for result in measured:
        for shown in table.tables(result):
            out.print(shown.for_screen())
    return 0


if __name__ == "__main__":
    sys.exit(main())

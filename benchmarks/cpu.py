"""python -m benchmarks.cpu OTHER_TREE: compare the CPU time of two versions of the package.

Throughput depends on the load of the machine. CPU time depends on it far less, so this comparison
is of use on a machine that does other work too. Both versions do the same fixed pieces of work in
turns, each in a process and a database of its own. The result is the median of the rounds, in CPU
microseconds for each operation, of the process and of the PostgreSQL server. Behind it in brackets
is the median of the ratios of a round: the other version's time by the time of this one. Wait times
are not in it, so the server does not wait for the disk here.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from devtools.databases import Database, PostgresServer, SqliteFiles

HERE = Path(__file__).resolve().parent
CASES = ("send", "work", "send", "reading", "append", "history", "update", "list")
"""In this order: the messages that are sent are worked off by the next case."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu", description=__doc__)
    parser.add_argument("trees", nargs="+", type=Path, help="checkouts to compare with this one")
    parser.add_argument("--database", choices=("sqlite", "postgresql"), action="append")
    parser.add_argument("--callers", type=int, action="append", help="default: 1, 16 and 64")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    chosen = parser.parse_args()
    trees = [*chosen.trees, HERE.parent]
    for kind in chosen.database or ("sqlite", "postgresql"):
        for callers in chosen.callers or (1, 16, 64):
            with contextlib.ExitStack() as stack:
                sides = stack.enter_context(_sides(kind, trees))
                _show(kind, callers, _measure(sides, callers, chosen.cases, chosen.rounds))


@contextlib.contextmanager
def _sides(kind: str, trees: Sequence[Path]) -> Iterator[list[subprocess.Popen[str]]]:
    """Start a process of each tree. It makes the tables of its own version."""
    with contextlib.ExitStack() as stack:
        maker: Any
        if kind == "sqlite":
            maker = SqliteFiles(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        else:
            maker = stack.enter_context(PostgresServer.started())
        sides = []
        for tree in trees:
            made: Database = stack.enter_context(maker.new_database(migrated=False))
            paths = [str(tree), *filter(None, [os.environ.get("PYTHONPATH")])]
            environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
            process = subprocess.Popen(
                [sys.executable, "-P", HERE / "cpu_process.py", kind, made.url],
                env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            stack.enter_context(process)
            stack.callback(process.terminate)
            assert process.stdout is not None
            assert json.loads(process.stdout.readline()) == "ready"
            sides.append(process)
        yield sides


def _ask(process: subprocess.Popen[str], case: str, callers: int) -> dict[str, float]:
    assert process.stdin is not None
    assert process.stdout is not None
    print(json.dumps([case, callers]), file=process.stdin, flush=True)
    answer: dict[str, float] = json.loads(process.stdout.readline())
    return answer


Taken = dict[tuple[str, str], list[list[float]]]


def _measure(
    sides: Sequence[subprocess.Popen[str]], callers: int, cases: Sequence[str], rounds: int
) -> Taken:
    """Return for each case and measure the values of each side, one a round."""
    taken: Taken = {}
    for number in range(rounds + 1):
        for side in sides:
            _ask(side, "vacuum", 1)
        for case in cases:
            order = list(enumerate(sides))
            for index, side in order if number % 2 else reversed(order):
                for measure, value in _ask(side, case, callers).items():
                    if number:  # the first round warms up
                        lists = taken.setdefault((case, measure), [[] for _ in sides])
                        lists[index].append(value)
    return taken


def _show(kind: str, callers: int, taken: Taken) -> None:
    for (case, measure), sides in taken.items():
        if any(map(sum, sides)):
            *others, ours = sides
            shown = "  ".join(
                f"{statistics.median(other):8.1f} ({_ratio(other, ours):.3f})" for other in others
            )
            median = statistics.median(ours)
            print(f"{kind:10} {callers:3} {case:8} {measure:8} {median:8.1f} {shown}", flush=True)


def _ratio(other: Sequence[float], ours: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(other, ours, strict=True))


if __name__ == "__main__":
    main()

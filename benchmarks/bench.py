"""One run: databases of its own, the sides that take part, and rounds in which they alternate."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import gc
import math
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rich.console import Console

from benchmarks import results
from benchmarks.results import GroupResult, Measurement
from devtools.databases import Database, PostgresServer, SqliteFiles

SQLITE, POSTGRESQL = "SQLite", "PostgreSQL"


class Sample(NamedTuple):
    """The result of one side in one round."""

    value: float
    times: Sequence[float] = ()
    """Seconds of single operations, where they were measured."""


Sampler = Callable[[], Awaitable[Sample]]


class Bench:
    """The environment of a group: settings, databases, ``compare`` and ``record`` for results."""

    def __init__(
        self,
        *,
        quick: bool,
        only: frozenset[str] | None,
        databases: Sequence[str],
        makers: Mapping[str, Any],
        console: Console,
        rounds: int | None = None,
        seconds: float | None = None,
        tiny: bool = False,
    ) -> None:
        self.quick = quick
        self.tiny = tiny
        """Use little data, to test the benchmarks and not to measure."""
        self.databases = databases
        """The databases to measure: ``SQLITE``, ``POSTGRESQL``."""
        self.console = console
        self.rounds = rounds or (3 if quick else 7)
        self.seconds = seconds or (0.12 if quick else 0.7)
        """The length of one sample of one side, where it can be chosen."""
        self.patience = 2.0 if quick else 60.0
        """The most seconds for all samples of one side in one comparison."""
        self._only = only
        self._makers = makers
        self._result: GroupResult

    def wants(self, side: str) -> bool:
        """Whether this side is measured (``--only``)."""
        return self._only is None or side in self._only

    @contextmanager
    def new_database(self, database: str, *, migrated: bool = True) -> Iterator[Database]:
        """A new database of that kind, dropped at the end of the block."""
        with self._makers[database].new_database(migrated=migrated) as made:
            yield made

    async def settle(self, databases: Sequence[Database]) -> None:
        """Vacuum, analyse and checkpoint PostgreSQL, as autovacuum does within a minute. This
        replaces the plans for young tables, and removes the dead rows of updates."""
        if self.tiny:
            return
        last = None
        for database in databases:
            if database.kind == "postgresql":
                await database.query("VACUUM ANALYZE")
                last = database
        if last is not None:
            await last.query("CHECKPOINT")

    async def compare(
        self,
        what: str,
        *,
        database: str,
        samplers: Mapping[str, Sampler],
        at: Mapping[str, int | str] | None = None,
        unit: str = "/s",
        better: Literal["more", "less"] = "more",
        warm_up: bool = True,
        rounds: int | None = None,
    ) -> None:
        """Measure all sides in each round, every other round in the opposite order, and record the
        results. The first sample of each side is dropped, unless it took too long to repeat.
        ``rounds`` replaces the number of rounds of the run."""
        # The modules of all sides are loaded. No side pays for the garbage of the others.
        gc.collect()
        gc.freeze()
        names = [name for name in samplers if self.wants(name)]
        taken: dict[str, list[Sample]] = {name: [] for name in names}
        wanted = self.rounds if rounds is None else rounds
        rounds_of = dict.fromkeys(names, wanted)
        for name in names if warm_up else ():
            began = time.monotonic()
            first = await samplers[name]()
            affordable = int(self.patience / (time.monotonic() - began))
            if affordable < 2:
                taken[name], rounds_of[name] = [first], 0
            else:
                rounds_of[name] = min(wanted, affordable)
        for number in range(wanted):
            for name in names if number % 2 == 0 else reversed(names):
                if number < rounds_of[name]:
                    gc.collect()
                    taken[name].append(await samplers[name]())
        for name in names:
            times = [t for sample in taken[name] for t in sample.times]
            self.record(
                what,
                database=database,
                side=name,
                unit=unit,
                values=[sample.value for sample in taken[name]],
                at=at,
                better=better,
                p99_ms=statistics.quantiles(times, n=100)[-1] * 1000 if len(times) >= 100 else None,
                p50_ms=statistics.median(times) * 1000 if len(times) >= 100 else None,
            )

    def record(
        self,
        what: str,
        *,
        database: str,
        side: str,
        unit: str,
        values: Sequence[float],
        at: Mapping[str, int | str] | None = None,
        better: Literal["more", "less"] = "more",
        p99_ms: float | None = None,
        p50_ms: float | None = None,
        note: str | None = None,
    ) -> None:
        """Record a measurement. ``values`` has one value a round, or all values. A table shows
        their median and range."""
        measurement = Measurement(
            what,
            database,
            side,
            unit,
            [float(value) for value in values],
            dict(at or {}),
            better,
            _rounded(p99_ms),
            _rounded(p50_ms),
            note,
        )
        self._result.measurements.append(measurement)
        places = "".join(f", {key} {value}" for key, value in measurement.at.items())
        shown = results.SHOWN.get(side, side)
        self.console.print(
            f"  [dim]{database}, {what}{places}: {shown} {measurement.median:,.4g} {unit}[/dim]",
            highlight=False,
        )

    def note(self, text: str) -> None:
        """Add a note for the readers of this group, once."""
        if text not in self._result.notes:
            self._result.notes.append(text)

    def run_often(self, name: str, measure: Callable[[Bench], None], *, runs: int) -> GroupResult:
        """Measure one group several times, each with new databases, and join the results."""
        return results.joined([self.run(name, measure) for _ in range(runs)])

    def run(self, name: str, measure: Callable[[Bench], None]) -> GroupResult:
        """Measure one group, and return its results."""
        self._result = GroupResult(
            name,
            datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            self.quick,
            results.machine(),
            results.versions(),
        )
        began = time.monotonic()
        self.console.print(f"[bold]{name}[/bold]")
        measure(self)
        self.console.print(f"  [dim]{time.monotonic() - began:.0f} s[/dim]")
        return self._result


def _rounded(figure: float | None) -> float | None:
    return None if figure is None else float(f"{figure:.3g}")


def calls(
    callers: int,
    operation: Callable[[int], Awaitable[object]],
    seconds: float,
    max_calls: float = math.inf,
) -> Sampler:
    """A sampler of operations a second. Each caller calls ``operation`` with its own number, one
    call after the other, until the time is over or ``max_calls`` are made."""

    async def sample() -> Sample:
        times: list[float] = []
        clock = time.perf_counter
        began = clock()
        until = began + seconds

        async def caller(number: int) -> None:
            now = clock()
            made = 0
            while now < until and made < max_calls:
                await operation(number)
                made += 1
                then, now = now, clock()
                times.append(now - then)

        await asyncio.gather(*(caller(number) for number in range(callers)))
        return Sample(len(times) / (clock() - began), times)

    return sample


@contextmanager
def started(
    *, quick: bool, only: frozenset[str] | None, databases: Sequence[str], console: Console,
    rounds: int | None = None, seconds: float | None = None,
) -> Iterator[Bench]:  # fmt: skip
    """A bench with new databases: SQLite files in a new folder, a durable PostgreSQL server on a
    Unix socket."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="sessionsdb-bench-"))
        makers: dict[str, Any] = {}
        if SQLITE in databases:
            makers[SQLITE] = SqliteFiles(Path(folder))
        if POSTGRESQL in databases:
            makers[POSTGRESQL] = stack.enter_context(PostgresServer.started(durable=True))
        for maker in makers.values():
            with maker.new_database():  # make the template here, outside of an event loop
                pass
        yield Bench(
            quick=quick, only=only, databases=databases, makers=makers, console=console,
            rounds=rounds, seconds=seconds,
        )  # fmt: skip

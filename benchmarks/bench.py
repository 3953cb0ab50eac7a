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
    """What one side did in one round."""

    value: float
    times: Sequence[float] = ()
    """Seconds of single operations, where they were taken."""


Sampler = Callable[[], Awaitable[Sample]]


class Bench:
    """What a group is given: settings, databases, and ``compare`` and ``record`` for results."""

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
        """Little data: to see that it runs, not to measure."""
        self.databases = databases
        """Which databases to measure: ``SQLITE``, ``POSTGRESQL``."""
        self.console = console
        self.rounds = rounds or (3 if quick else 7)
        self.seconds = seconds or (0.12 if quick else 0.7)
        """How long one sample of one side takes, where its length is free."""
        self.patience = 2.0 if quick else 60.0
        """How long all samples of one side in one comparison may take."""
        self._only = only
        self._makers = makers
        self._result: GroupResult

    def wants(self, side: str) -> bool:
        """Whether this side takes part (``--only``)."""
        return self._only is None or side in self._only

    @contextmanager
    def new_database(self, database: str, *, migrated: bool = True) -> Iterator[Database]:
        """A fresh one of that kind, dropped afterwards."""
        with self._makers[database].new_database(migrated=migrated) as made:
            yield made

    async def settle(self, databases: Sequence[Database]) -> None:
        """Do what autovacuum does within a minute: plans made for young tables go, and so do the
        rows that updates have left behind; and write down what that changed. PostgreSQL only."""
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
    ) -> None:
        """Let the sides take turns, in each round all of them, and every other round in the
        opposite order; record what each did. The first sample of each is thrown away, unless it
        took so long that it has to do."""
        # The modules of all sides are loaded: none of them shall pay for what the others brought.
        gc.collect()
        gc.freeze()
        names = [name for name in samplers if self.wants(name)]
        taken: dict[str, list[Sample]] = {name: [] for name in names}
        rounds = dict.fromkeys(names, self.rounds)
        for name in names if warm_up else ():
            began = time.monotonic()
            first = await samplers[name]()
            affordable = int(self.patience / (time.monotonic() - began))
            if affordable < 2:
                taken[name], rounds[name] = [first], 0
            else:
                rounds[name] = min(self.rounds, affordable)
        for number in range(self.rounds):
            for name in names if number % 2 == 0 else reversed(names):
                if number < rounds[name]:
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
        note: str | None = None,
    ) -> None:
        """Keep what was measured some other way. ``values`` has one value a round, or all there
        are; a table shows their median and range."""
        measurement = Measurement(
            what,
            database,
            side,
            unit,
            [float(value) for value in values],
            dict(at or {}),
            better,
            p99_ms if p99_ms is None else float(f"{p99_ms:.3g}"),
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
        """What a reader of this group's figures must know, once."""
        if text not in self._result.notes:
            self._result.notes.append(text)

    def run(self, name: str, measure: Callable[[Bench], None]) -> GroupResult:
        """Measure one group."""
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


def calls(
    callers: int,
    operation: Callable[[int], Awaitable[object]],
    seconds: float,
    most: float = math.inf,
) -> Sampler:
    """Samples of operations a second: each of so many callers calls ``operation`` with its own
    number, one call after the other, until the time is over or it has called ``most`` times."""

    async def sample() -> Sample:
        times: list[float] = []
        clock = time.perf_counter
        began = clock()
        until = began + seconds

        async def caller(number: int) -> None:
            now = clock()
            made = 0
            while now < until and made < most:
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
    """A bench with databases of its own: SQLite files in a new folder, a PostgreSQL server on a
    socket that writes to its disk as it should."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="sessionsdb-bench-"))
        makers: dict[str, Any] = {}
        if SQLITE in databases:
            makers[SQLITE] = SqliteFiles(Path(folder))
        if POSTGRESQL in databases:
            makers[POSTGRESQL] = stack.enter_context(PostgresServer.started(durable=True))
        for maker in makers.values():
            with maker.new_database():  # the template is made here, outside of any event loop
                pass
        yield Bench(
            quick=quick, only=only, databases=databases, makers=makers, console=console,
            rounds=rounds, seconds=seconds,
        )  # fmt: skip

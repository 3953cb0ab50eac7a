"""The instruments: name, unit and meaning of each, and how they are created on a meter.

docs/metrics.md lists them, and a test compares the two. Attributes have few values: ids and
namespaces are attributes of spans only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple, Protocol

from opentelemetry.metrics import CallbackOptions, Counter, Histogram, Meter, Observation

from sessionsdb.operations.stats import Load


class Described(NamedTuple):
    """An instrument as the documentation lists it."""

    name: str
    kind: Literal["counter", "histogram", "gauge"]
    unit: str
    description: str
    values: tuple[str, ...] = ()
    """The values of its attribute ``result``."""


SENDS = Described(
    "sessionsdb.sends",
    "counter",
    "{message}",
    "Messages given to send and spawn, and those a committed turn staged",
    ("queued", "duplicate", "refused"),
)
CLAIMS = Described("sessionsdb.claims", "counter", "{lease}", "Leases a worker was given")
TURNS = Described(
    "sessionsdb.turns",
    "counter",
    "{turn}",
    "Turns that came to an end",
    ("committed", "failed", "dead", "stopped", "rerun", "lost", "given_up", "released"),
)
TURN_SECONDS = Described(
    "sessionsdb.turn.duration",
    "histogram",
    "s",
    "From the handler's start to the end of the commit, or of what became of the turn instead",
    TURNS.values,
)
MESSAGE_WAIT = Described(
    "sessionsdb.message.wait",
    "histogram",
    "s",
    "From the send of a message to the start of a first turn over it",
)
WAITS = Described(
    "sessionsdb.waits",
    "counter",
    "{wait}",
    "Calls of wait that came to an end",
    ("answered", "timeout", "cancelled", "failed"),
)
LEASE_LOSSES = Described(
    "sessionsdb.lease.losses",
    "counter",
    "{lease}",
    "Leases that ended before their turn: refused at the commit (lost), cancelled in time "
    "(given_up), or taken back from a worker that died (expired)",
    ("lost", "given_up", "expired"),
)
PENDING = Described(
    "sessionsdb.inbox.pending", "gauge", "{message}", "Messages that wait for a turn"
)
RUNNING = Described("sessionsdb.inbox.running", "gauge", "{message}", "Messages that turns work on")
LAG = Described(
    "sessionsdb.inbox.lag",
    "gauge",
    "s",
    "How long the session that is ready longest has waited for a worker",
)
INSTRUMENTS = (
    *(SENDS, CLAIMS, TURNS, TURN_SECONDS, MESSAGE_WAIT),
    *(WAITS, LEASE_LOSSES, PENDING, RUNNING, LAG),
)

SECONDS_BUCKETS = (0.005, 0.025, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 3600)
"""A turn of an agent takes seconds to minutes. OpenTelemetry's default buckets are for
milliseconds."""

RESULT_ATTRIBUTES = {
    value: {"result": value} for described in INSTRUMENTS for value in described.values
}
"""The attributes of each result, built once."""


class LoadReader(Protocol):
    """A source of the gauges."""

    attributes: dict[str, str]

    def load(self) -> Load | None:
        """Return the load of a database, or ``None`` if it is unknown. Called on the thread of a
        metrics reader."""


class Metrics:
    """The instruments on one meter."""

    def __init__(self, meter: Meter) -> None:
        self._sources: list[LoadReader] = []
        self.sends, self.claims, self.turns, self.waits, self.lease_losses = (
            _counter(meter, described) for described in (SENDS, CLAIMS, TURNS, WAITS, LEASE_LOSSES)
        )
        self.turn_seconds, self.message_wait = (
            _histogram(meter, described) for described in (TURN_SECONDS, MESSAGE_WAIT)
        )
        self._create_gauge(meter, PENDING, lambda load: load.pending)
        self._create_gauge(meter, RUNNING, lambda load: load.running)
        self._create_gauge(meter, LAG, lambda load: load.ready_seconds)

    def add_source(self, source: LoadReader) -> Callable[[], None]:
        """Read the gauges from ``source`` too. Returns a function that ends this."""
        self._sources.append(source)
        return lambda: self._sources.remove(source)

    def _create_gauge(
        self, meter: Meter, described: Described, figure: Callable[[Load], float]
    ) -> None:
        def observe(_: CallbackOptions) -> Iterable[Observation]:
            for source in list(self._sources):
                if (load := source.load()) is not None:
                    yield Observation(figure(load), source.attributes)

        meter.create_observable_gauge(
            described.name, [observe], described.unit, described.description
        )


def _counter(meter: Meter, described: Described) -> Counter:
    return meter.create_counter(described.name, described.unit, described.description)


def _histogram(meter: Meter, described: Described) -> Histogram:
    return meter.create_histogram(
        described.name,
        described.unit,
        described.description,
        explicit_bucket_boundaries_advisory=SECONDS_BUCKETS,
    )

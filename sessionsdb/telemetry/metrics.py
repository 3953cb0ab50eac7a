"""Every instrument: its name, its unit, and what it counts. docs/metrics.md is checked against it.

Attributes are few and have few values: ids and namespaces stand on spans only.
"""

from __future__ import annotations

from typing import Literal, NamedTuple


class Described(NamedTuple):
    """An instrument."""

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
    ("committed", "failed", "dead", "lost", "given_up", "released"),
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
"""An agent's turn takes seconds to minutes; OpenTelemetry's default buckets are milliseconds."""

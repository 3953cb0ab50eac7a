"""How a soak is made up: who takes part, and for how long."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """One run over one database. Times are in seconds."""

    seconds: float = 0.0
    """How long faults go on; 0 for exactly ``rounds`` of them."""
    rounds: int = 1
    """How often every kind of fault happens, at least."""
    calls: int | None = None
    """How many calls each client makes at most; ``None`` for as many as there is time for."""
    seed: int = 1
    senders: int = 2
    """Processes of clients."""
    clients: int = 6
    """Clients in each of them, concurrently."""
    workers: int = 3
    """Processes of workers."""
    chats: int = 24
    """Sessions that workers run, made at the start; more are spawned."""
    ledgers: int = 3
    """Transcripts that are rewritten by compare-and-set."""
    notebooks: int = 4
    """Transcripts that everybody appends to."""
    pace: float = 0.02
    """How long a client pauses between two calls, on average."""
    between_faults: float = 2.5
    """The longest pause between the beginnings of two faults."""
    lease: float = 2.0
    freeze: float = 5.0
    """The longest freeze: more than two leases, and less than a write on SQLite waits."""
    hold: float = 4.0
    """The longest transaction that is held open."""
    long: float = 12.0
    """How long the few are that outlast what a write on SQLite waits for a lock."""
    long_odds: float = 0.1
    """How many freezes and held locks are that long."""
    shift: float = 15.0
    """How far a worker's wall clock is set forward or back."""
    max_attempts: int = 25
    """High, since every kill and freeze costs the messages it hits an attempt."""
    pending: int = 20
    children: int = 20
    drain: float = 60.0
    """Within this time after the last fault nothing may be unfinished any more, beside what a
    shifted clock may have put off."""

    @property
    def drained_within(self) -> float:
        return self.drain + self.shift

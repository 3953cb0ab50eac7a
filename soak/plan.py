"""The plan of a soak: the number of processes, and the times."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """One run over one database. Times are in seconds."""

    seconds: float = 0.0
    """The duration of the faults. 0 for exactly ``rounds`` of them."""
    rounds: int = 1
    """The least number of faults of every kind."""
    calls: int | None = None
    """The most calls of each client. ``None`` for no limit."""
    seed: int = 1
    senders: int = 2
    """Processes of clients."""
    clients: int = 6
    """Clients in each of them, concurrently."""
    workers: int = 3
    """Processes of workers."""
    chats: int = 24
    """Sessions that workers run, made at the start. Clients spawn more."""
    drafts: int = 3
    """Sessions that workers run, and whose transcripts clients cut."""
    desks: int = 4
    """Sessions that workers run, with questions to people, schedules and children that report."""
    ledgers: int = 3
    """Transcripts that are rewritten by compare-and-set."""
    notebooks: int = 4
    """Transcripts that all clients append to."""
    pace: float = 0.02
    """The average pause of a client between two calls."""
    between_faults: float = 2.5
    """The longest pause between the beginnings of two faults."""
    lease: float = 2.0
    freeze: float = 5.0
    """The longest freeze: more than two leases, and less than the busy timeout of SQLite."""
    hold: float = 4.0
    """The longest transaction that is held open."""
    long: float = 12.0
    """The length of the few faults that outlast the busy timeout of SQLite."""
    long_odds: float = 0.1
    """The fraction of freezes and held locks that are ``long``."""
    expiry: float = 3.0
    """The most seconds until a question expires."""
    later: float = 3.0
    """The most seconds from a call of ``schedule`` to its due time."""
    shift: float = 15.0
    """The most that the wall clock of a worker is set forward or back."""
    max_attempts: int = 25
    """High, since every kill and freeze costs the messages it hits an attempt."""
    pending: int = 20
    children: int = 20
    drain: float = 60.0
    """Within this time after the last fault no message may be unfinished, except messages that a
    shifted clock has delayed."""

    @property
    def drained_within(self) -> float:
        return self.drain + self.shift

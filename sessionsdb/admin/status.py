"""What ``top`` shows: one look at the workers, the inboxes and the rates."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection

from sessionsdb.database import SessionsDB, open_database_of
from sessionsdb.operations import stats
from sessionsdb.types import SessionId, Value

RATE_SECONDS = 60.0
"""Rates are those of the last minute."""


class WorkerLoad(Value):
    """A worker that holds leases now. One that is idle holds none, and is not seen."""

    worker: str
    turns: int
    """Turns that it runs."""


class RunningTurn(Value):
    """A turn that runs."""

    worker: str
    namespace: str
    session_id: SessionId
    messages: int
    attempt: int
    seconds: float
    """Since it was claimed."""
    lease_seconds: float
    """What is left of its lease without another heartbeat; negative if it is overdue."""


class Status(Value):
    """What goes on at one moment, in one namespace or all."""

    at: datetime
    """By the database's clock."""
    namespace: str | None = None
    pending: int
    """Messages that wait."""
    running: int
    """Messages that turns work on."""
    dead: int
    """Dead letters, of all time."""
    oldest_seconds: float | None = None
    """How long the oldest of those that wait has waited."""
    ready: int
    """Sessions that wait for a worker."""
    retrying: int
    """Sessions that wait for another attempt."""
    leased: int
    """Sessions that a worker holds."""
    overdue: int
    """Those of them whose lease has run out."""
    sends_per_minute: int
    turns_per_minute: int
    """Turns that committed."""
    dead_per_minute: int
    workers: list[WorkerLoad]
    turns: list[RunningTurn]
    """Those that run longest come first."""


async def read_status(db: SessionsDB, *, everywhere: bool = False, turns: int = 50) -> Status:
    """What goes on now in the handle's namespace, or ``everywhere``, with at most so many of the
    running turns."""
    namespace = None if everywhere else db.namespace

    def read(connection: Connection) -> Status:
        present = stats.database_time(connection)
        sums = stats.queue_depths(connection, namespace)
        lately = stats.recent_rates(connection, namespace, RATE_SECONDS)
        workers = stats.workers(connection, namespace)
        held = stats.leases(connection, namespace, turns)
        return Status(
            at=present,
            namespace=namespace,
            pending=sums.pending,
            running=sums.running,
            dead=sums.dead,
            oldest_seconds=None if sums.oldest_at is None else _seconds(present, sums.oldest_at),
            ready=sums.ready,
            retrying=sums.retrying,
            leased=sums.leased,
            overdue=sums.overdue,
            sends_per_minute=lately.sends,
            turns_per_minute=lately.turns,
            dead_per_minute=lately.dead,
            workers=[WorkerLoad(worker=name, turns=count) for name, count in workers.items()],
            turns=[_turn(one, present) for one in held],
        )

    return await open_database_of(db).read(read)


def _turn(held: stats.ActiveLease, present: datetime) -> RunningTurn:
    return RunningTurn(
        worker=held.worker,
        namespace=held.namespace,
        session_id=SessionId(held.session_id),
        messages=held.messages,
        attempt=held.attempt,
        seconds=0.0 if held.claimed_at is None else _seconds(present, held.claimed_at),
        lease_seconds=round((held.lease_until - present).total_seconds(), 3),
    )


def _seconds(present: datetime, since: datetime) -> float:
    return round(max(0.0, (present - since).total_seconds()), 3)

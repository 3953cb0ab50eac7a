"""Read the workers, the inboxes and the rates of one moment, for ``top``."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection

from sessionsdb.database import SessionsDB, open_database_of
from sessionsdb.operations import stats
from sessionsdb.types import SessionId, Value

RATE_SECONDS = 60.0
"""Rates are counts over the last minute."""


class WorkerLoad(Value):
    """A worker that holds leases now. An idle worker holds none, and is not listed."""

    worker: str
    turns: int
    """The number of turns that it runs."""


class RunningTurn(Value):
    """A turn that a worker runs."""

    worker: str
    namespace: str
    session_id: SessionId
    messages: int
    attempt: int
    seconds: float
    """Seconds since the claim."""
    lease_seconds: float
    """Seconds until the lease expires without another heartbeat. Negative if it has expired."""


class StatusReport(Value):
    """The work of one moment, in one namespace or in all."""

    at: datetime
    """The time of the database's clock."""
    namespace: str | None = None
    """``None`` for all namespaces."""
    pending: int
    """Messages that wait for a turn."""
    running: int
    """Messages of running turns."""
    dead: int
    """Dead messages, without a limit of time."""
    oldest_seconds: float | None = None
    """The age of the oldest waiting message, ``None`` if no message waits."""
    ready: int
    """Sessions that wait for a worker."""
    retrying: int
    """Sessions that wait for the next attempt."""
    leased: int
    """Sessions that a worker holds."""
    overdue: int
    """Leased sessions whose lease has expired."""
    held: int
    """Sessions that an open question holds."""
    due: int
    """Scheduled messages whose time has come, and that no worker has sent yet."""
    sends_per_minute: int
    turns_per_minute: int
    """Committed turns."""
    dead_per_minute: int
    workers: list[WorkerLoad]
    turns: list[RunningTurn]
    """Running turns, the longest first."""


async def read_status(
    db: SessionsDB, *, all_namespaces: bool = False, limit: int = 50
) -> StatusReport:
    """Return the status of the handle's namespace, or of all, with at most ``limit`` turns."""
    namespace = None if all_namespaces else db.namespace

    def read(connection: Connection) -> StatusReport:
        present = stats.database_time(connection)
        depth = stats.queue_depths(connection, namespace)
        rates = stats.recent_rates(connection, namespace, RATE_SECONDS)
        workers = stats.workers(connection, namespace)
        leases = stats.leases(connection, namespace, limit)
        return StatusReport(
            at=present,
            namespace=namespace,
            pending=depth.pending,
            running=depth.running,
            dead=depth.dead,
            oldest_seconds=None if depth.oldest_at is None else _seconds(present, depth.oldest_at),
            ready=depth.ready,
            retrying=depth.retrying,
            leased=depth.leased,
            overdue=depth.overdue,
            held=depth.held,
            due=depth.due,
            sends_per_minute=rates.sends,
            turns_per_minute=rates.turns,
            dead_per_minute=rates.dead,
            workers=[WorkerLoad(worker=name, turns=count) for name, count in workers.items()],
            turns=[_turn(lease, present) for lease in leases],
        )

    return await open_database_of(db).read(read)


def _turn(lease: stats.ActiveLease, present: datetime) -> RunningTurn:
    return RunningTurn(
        worker=lease.worker,
        namespace=lease.namespace,
        session_id=SessionId(lease.session_id),
        messages=lease.messages,
        attempt=lease.attempt,
        seconds=0.0 if lease.claimed_at is None else _seconds(present, lease.claimed_at),
        lease_seconds=round((lease.lease_until - present).total_seconds(), 3),
    )


def _seconds(present: datetime, since: datetime) -> float:
    return round(max(0.0, (present - since).total_seconds()), 3)

"""The work that is due in the namespaces of a worker, whether it has free slots or not."""

from __future__ import annotations

import logging
from collections.abc import Collection
from functools import partial

from sessionsdb.operations import expiry, firing
from sessionsdb.runtime.database_access import DONE, WORK
from sessionsdb.runtime.open_database import OpenDatabase
from sessionsdb.telemetry import observed

log = logging.getLogger("sessionsdb.worker")


async def wake_and_reap(
    database: OpenDatabase, namespaces: Collection[str] | None, *, max_attempts: int
) -> int:
    """Make sessions ready again whose backoff is over or whose worker died.

    Return how many messages are dead after their last attempt.
    """
    # No wake-up: this worker claims next, and all others poll at the end of the same backoff.
    await database.write(partial(expiry.wake, namespaces=namespaces), wakes=())
    reaped = await database.write(
        partial(expiry.reap, namespaces=namespaces, max_attempts=max_attempts),
        wakes=lambda reaped: (DONE,) if reaped.dead else (),
    )
    leases, dead = reaped.leases, reaped.dead
    for key in reaped.reporting:
        one = await database.write(
            partial(expiry.reap_reporting, key=key, max_attempts=max_attempts),
            wakes=lambda one: (WORK, DONE) if one.dead else (),
        )
        leases, dead = leases + one.leases, dead + one.dead
    if leases:
        log.warning(
            "took back %s", "1 expired lease" if leases == 1 else f"{leases} expired leases"
        )
        observed.telemetry.record_expired_leases(leases)
    return dead


async def fire_schedules(database: OpenDatabase, namespaces: Collection[str] | None) -> None:
    """Send the scheduled messages that are due.

    A worker without a free slot sends them too: another worker may have one.
    """
    fired = await database.write(
        partial(firing.fire, namespaces=namespaces, limits=database.limits),
        wakes=lambda fired: (WORK,) if fired.messages else (),
    )
    if fired.messages or fired.refused:
        log.debug("sent %d scheduled messages, %d inboxes are full", *fired)

"""Schedules that no worker fires: the part of the doctor on messages that are sent later."""

from __future__ import annotations

from functools import partial

from sessionsdb.admin.findings import Finding, make_finding
from sessionsdb.cron import InvalidCron, zone_of
from sessionsdb.database import SessionsDB, open_database_of
from sessionsdb.operations import schedule_stats
from sessionsdb.operations.schedule_stats import LateSchedule, Zone

LATE_SECONDS = 60.0
"""An idle worker fires a schedule within a second. After this time none does."""


async def check(db: SessionsDB) -> list[Finding]:
    """Return the findings on late schedules and on unknown zones."""
    read = open_database_of(db).read
    late = await read(partial(schedule_stats.late, seconds=LATE_SECONDS))
    unknown = [zone for zone in await read(schedule_stats.zones) if not _is_known(zone.tz)]
    readable = [one for one in late if one.tz not in {zone.tz for zone in unknown}]
    return [*_served(readable), *_unserved(readable), *_full(readable), *_unknown(unknown)]


def _is_known(tz: str) -> bool:
    try:
        zone_of(tz)
    except InvalidCron:
        return False
    return True


def _served(late: list[LateSchedule]) -> list[Finding]:
    return make_finding(
        "late-schedules",
        [_example(one) for one in late if one.is_served and not one.is_refused],
        meaning="scheduled messages have been due for more than "
        f"{LATE_SECONDS:.0f} s, although a worker runs turns in their namespaces",
        action="look at the log of the workers, and at other transactions that hold the mailboxes "
        "of these sessions",
    )


def _unserved(late: list[LateSchedule]) -> list[Finding]:
    return make_finding(
        "waiting-schedules",
        [_example(one) for one in late if not one.is_served and not one.is_refused],
        level="note",
        meaning="scheduled messages are due, and no worker runs a turn in their namespaces now",
        action="start a worker: it sends one message for the missed times of a schedule, or one "
        "each, as catch_up says",
    )


def _full(late: list[LateSchedule]) -> list[Finding]:
    return make_finding(
        "refused-schedules",
        [_example(one) for one in late if one.is_refused],
        level="note",
        meaning="scheduled messages are due, and the inboxes of their sessions are full",
        action="see why the sessions do not handle their messages: `sessionsdb inbox ID`",
    )


def _unknown(zones: list[Zone]) -> list[Finding]:
    return make_finding(
        "unknown-zones",
        [f"{zone.tz}: of {zone.example}, schedules in it: {zone.schedules}" for zone in zones],
        meaning="this host does not know the time zones of these schedules, so a worker here can't "
        "send their messages",
        action="upgrade the package tzdata on all hosts with workers, or schedule the messages "
        "again in another zone",
    )


def _example(one: LateSchedule) -> str:
    return f"{one.namespace}/{one.session_id}: {one.id}, due for {one.seconds:.0f} s"

"""The due times of a cron expression in a time zone, through both changes of daylight saving time.

``cronsim`` steps through the days and the hours of a clock without a zone. This module maps each
local time to a moment. A local time that the change in spring skips is due at the first moment
after the gap. A local time that comes twice in autumn is due the first time only. The hour ``*``
means every hour that passes, so such an expression is due in the repeated hour too.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import NamedTuple
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

FIELDS = 5

_SECOND = timedelta(seconds=1)


class InvalidCron(ValueError):
    """An expression that is no cron expression, one without a due time, or an unknown zone."""


class Cron(NamedTuple):
    """A cron expression of five fields, and the zone whose clock it reads."""

    expression: str
    zone: ZoneInfo

    @classmethod
    def parse(cls, expression: str, tz: str) -> Cron:
        """Check an expression and a zone of the IANA database. Raises ``InvalidCron``."""
        fields = expression.split()
        if len(fields) != FIELDS:
            raise InvalidCron(
                f"cron {expression[:60]!r} has {len(fields)} fields, and needs {FIELDS}: minute, "
                'hour, day of the month, month, day of the week, like "0 9 * * MON-FRI"'
            )
        cron = cls(" ".join(fields), zone_of(tz))
        try:
            CronSim(cron.expression, datetime(2000, 1, 1, tzinfo=UTC))
        except CronSimError as error:
            raise InvalidCron(f"cron {expression[:60]!r} is wrong: {error}") from None
        return cron

    def next_after(self, moment: datetime) -> datetime:
        """Return the first due time after an aware moment, in UTC. Raises ``InvalidCron``."""
        local = moment.astimezone(self.zone).replace(tzinfo=None)
        try:
            due = next(
                due
                for clock_time in _clock_times(self.expression, local - _SECOND)
                if (due := _moment_of(clock_time, self.zone)) > moment
            )
            if self._is_every_hour:
                steady = CronSim(self.expression, moment.astimezone(self.zone))
                due = min(due, next(steady).astimezone(UTC))
        except (StopIteration, OverflowError, CronSimError):
            raise InvalidCron(f"cron {self.expression!r} is due in no year to come") from None
        return due

    @property
    def _is_every_hour(self) -> bool:
        return self.expression.split()[1] == "*"


@lru_cache(maxsize=256)
def zone_of(tz: str) -> ZoneInfo:
    """Return a zone by its name. Raises ``InvalidCron``."""
    try:
        return ZoneInfo(tz)
    except (KeyError, ValueError, OSError):
        raise InvalidCron(
            f"tz {tz[:60]!r} is no time zone of this host: use a name of the IANA database, like "
            '"Europe/Berlin"'
        ) from None


def read_moment(text: str, tz: str) -> datetime:
    """Return the moment of a time in ISO 8601. One without an offset is read in the zone.

    Raises ``ValueError``, and ``InvalidCron`` for an unknown zone.
    """
    moment = datetime.fromisoformat(text.strip())
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=zone_of(tz))


def _clock_times(expression: str, after: datetime) -> Iterator[datetime]:
    """Return the times of a clock that no zone changes, each after the one before."""
    return CronSim(expression, after)


def _moment_of(clock_time: datetime, zone: ZoneInfo) -> datetime:
    """Return the first moment in UTC at which the clock of a zone shows this time or later."""
    first = clock_time.replace(tzinfo=zone)
    moment = first.astimezone(UTC)
    if moment.astimezone(zone).replace(tzinfo=None) == clock_time:
        return moment
    # The clock skips this time. With the offset before the gap the moment lies behind the change,
    # with the offset after the gap it lies before.
    return _change_between(first.replace(fold=1).astimezone(UTC), moment, zone)


def _change_between(before: datetime, after: datetime, zone: ZoneInfo) -> datetime:
    """Return the moment at which the offset of a zone changes, to the second."""
    offset = before.astimezone(zone).utcoffset()
    while after - before > _SECOND:
        middle = before + timedelta(seconds=int((after - before).total_seconds()) // 2)
        if middle.astimezone(zone).utcoffset() == offset:
            before = middle
        else:
            after = middle
    return after

"""Checks of numbers, truth values and times."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sessionsdb.cron import Cron, InvalidCron, zone_of
from sessionsdb.errors import InvalidArgument
from sessionsdb.untrusted_values import (
    FIRST_YEAR,
    LAST_YEAR,
    is_instance,
    is_storable_time,
    short_repr,
    type_name,
)
from sessionsdb.validation.bounds import (
    MAX_CRON_CHARACTERS,
    MAX_INTEGER,
    MAX_SECONDS,
    MAX_TAIL,
    MAX_ZONE_CHARACTERS,
)
from sessionsdb.validation.checks import bounded_list, bounded_text
from sessionsdb.validation.names import name


def integer(value: Any, field: str, *, minimum: int = 0, maximum: int | None = None) -> int:
    """Check a whole number of at least ``minimum``.

    A number above ``maximum`` is refused. Without ``maximum``, a number that databases can't hold
    becomes the largest that they can.
    """
    if not is_instance(value, int) or type(value) is bool:
        raise InvalidArgument(f"{field} must be a whole number, not {short_repr(value)}")
    number = int.__int__(value)
    if number < minimum:
        raise InvalidArgument(f"{field} must be {minimum} or more, not {short_repr(number)}")
    if maximum is not None and number > maximum:
        raise InvalidArgument(f"{field} must be at most {maximum}, not {short_repr(number)}")
    return min(number, MAX_INTEGER)


def stored_number(value: Any, field: str) -> int:
    """Check the number of a message or a version: 0 or more, and at most what databases hold."""
    return integer(value, field, maximum=MAX_INTEGER)


def seqs(value: Any, field: str) -> list[int] | None:
    """Check a list of at most 1,000 ``seq``s, or ``None``."""
    if value is None:
        return None
    return [integer(seq, field) for seq in bounded_list(value, field, MAX_TAIL, of="numbers")]


def version(value: Any, field: str = "expected_version") -> int | None:
    """Check an expected version, which may be ``None``."""
    return None if value is None else stored_number(value, field)


def optional_integer(
    value: Any, field: str, *, minimum: int = 0, maximum: int | None = None
) -> int | None:
    return None if value is None else integer(value, field, minimum=minimum, maximum=maximum)


def cursor(value: Any, field: str) -> int | None:
    """Check a cursor of ``history``: a ``seq``, which may lie outside of the transcript."""
    if value is None:
        return None
    if not is_instance(value, int) or type(value) is bool:
        raise InvalidArgument(
            f"{field} must be a message's seq, a whole number, not {short_repr(value)}"
        )
    return max(-1, min(int.__int__(value), MAX_INTEGER))


def seconds(value: Any, field: str) -> float:
    """Check a duration in seconds, 0 or more. Above ``MAX_SECONDS`` it becomes ``MAX_SECONDS``."""
    number: float | None = None
    if is_instance(value, float):
        number = float.__float__(value)
    elif is_instance(value, int) and type(value) is not bool:
        number = min(int.__int__(value), MAX_SECONDS)
    if number is None or not number >= 0:
        raise InvalidArgument(
            f"{field} must be a number of seconds, 0 or more, not {short_repr(value)}"
        )
    return float(min(number, MAX_SECONDS))


def positive_seconds(value: Any, field: str) -> float:
    """Check a duration in seconds, more than 0 and finite."""
    duration = seconds(value, field)
    if not 0 < duration < MAX_SECONDS:
        raise InvalidArgument(
            f"{field} must be more than 0 seconds, and finite, not {short_repr(value)}"
        )
    return duration


def boolean(value: Any, field: str) -> bool:
    """Check that the value is ``True`` or ``False``. The text "no" would count as true."""
    if type(value) is not bool:
        raise InvalidArgument(f"{field} must be True or False, not {short_repr(value)}")
    return value


def aware_datetime(value: Any, field: str) -> datetime:
    """Check a time with a time zone, and return it in UTC.

    A time without a zone would mean different moments on different hosts.
    """
    if not is_instance(value, datetime):
        raise InvalidArgument(f"{field} must be a datetime, not {type_name(value)}")
    try:
        has_zone = datetime.utcoffset(value) is not None
        utc = datetime.astimezone(value, UTC) if has_zone else None
        if utc is not None:
            time = (utc.hour, utc.minute, utc.second, utc.microsecond)
            return datetime(utc.year, utc.month, utc.day, *time, tzinfo=UTC)
    except (ValueError, OverflowError):
        raise InvalidArgument(
            f"{field} is out of range: {datetime.isoformat(value)} has no equal in UTC"
        ) from None
    except Exception as error:
        raise InvalidArgument(f"{field} can't be read: its {type_name(error)}") from error
    raise InvalidArgument(f"{field} must have a time zone: {datetime.isoformat(value)} has none")


def stored_time(value: Any, field: str) -> datetime:
    """Check a time with a time zone that is stored, and return it in UTC."""
    moment = aware_datetime(value, field)
    if not is_storable_time(moment):
        raise InvalidArgument(f"{field} must lie in the years {FIRST_YEAR} to {LAST_YEAR}")
    return moment


def schedule_times(at: Any, cron: Any, tz: Any) -> tuple[datetime | None, Cron | None, str]:
    """Check that exactly one of a moment and a cron expression is given, and check the zone."""
    if (at is None) == (cron is None):
        raise InvalidArgument("give exactly one of at and cron")
    zone = bounded_text(name(tz, "tz"), "tz", MAX_ZONE_CHARACTERS)
    try:
        if at is not None:
            zone_of(zone)
            return stored_time(at, "at"), None, zone
        expression = bounded_text(name(cron, "cron"), "cron", MAX_CRON_CHARACTERS)
        parsed = Cron.parse(expression, zone)
        parsed.next_after(datetime.now(UTC))
        return None, parsed, zone
    except InvalidCron as error:
        raise InvalidArgument(str(error)) from None

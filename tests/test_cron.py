"""Cron expressions: due times in a zone, through both changes of daylight saving time."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sessionsdb.cron import Cron, InvalidCron

BERLIN = "Europe/Berlin"
NEW_YORK = "America/New_York"
LORD_HOWE = "Australia/Lord_Howe"  # its clock moves by half an hour


def due(expression: str, tz: str, after: str, count: int) -> list[str]:
    """The next due times after a local time, each as local time with its offset."""
    cron, zone = Cron.parse(expression, tz), ZoneInfo(tz)
    moment = datetime.fromisoformat(after).replace(tzinfo=zone)
    found = []
    for _ in range(count):
        moment = cron.next_after(moment)
        assert moment.tzinfo is UTC
        found.append(moment.astimezone(zone).strftime("%d %H:%M %z"))
    return found


@pytest.mark.parametrize(
    ("expression", "tz", "after", "expected"),
    [
        # 29 March, 02:00 to 03:00 does not exist.
        (
            "30 2 * * *",
            BERLIN,
            "2026-03-28 12:00",
            ["29 03:00 +0200", "30 02:30 +0200", "31 02:30 +0200"],
        ),
        ("*/15 2 * * *", BERLIN, "2026-03-28 12:00", ["29 03:00 +0200", "30 02:00 +0200"]),
        ("0 2,3 * * *", BERLIN, "2026-03-28 12:00", ["29 03:00 +0200", "30 02:00 +0200"]),
        ("0 */2 * * *", BERLIN, "2026-03-29 00:30", ["29 03:00 +0200", "29 04:00 +0200"]),
        ("0 * * * *", BERLIN, "2026-03-29 01:30", ["29 03:00 +0200", "29 04:00 +0200"]),
        ("59 1 * * *", NEW_YORK, "2026-03-07 12:00", ["08 01:59 -0500", "09 01:59 -0400"]),
        ("0 2 * * *", NEW_YORK, "2026-03-07 12:00", ["08 03:00 -0400", "09 02:00 -0400"]),
        ("15 2 * * *", LORD_HOWE, "2026-10-03 12:00", ["04 02:30 +1100", "05 02:15 +1100"]),
    ],
)
def test_a_skipped_local_time_is_due_at_the_first_moment_after(
    expression: str, tz: str, after: str, expected: list[str]
) -> None:
    assert due(expression, tz, after, len(expected)) == expected


@pytest.mark.parametrize(
    ("expression", "tz", "after", "expected"),
    [
        # 25 October, 02:00 to 03:00 comes twice.
        ("30 2 * * *", BERLIN, "2026-10-24 12:00", ["25 02:30 +0200", "26 02:30 +0100"]),
        (
            "*/30 2 * * *",
            BERLIN,
            "2026-10-24 12:00",
            ["25 02:00 +0200", "25 02:30 +0200", "26 02:00 +0100"],
        ),
        (
            "0 */2 * * *",
            BERLIN,
            "2026-10-24 23:00",
            ["25 00:00 +0200", "25 02:00 +0200", "25 04:00 +0100"],
        ),
        ("0 3 * * *", BERLIN, "2026-10-24 12:00", ["25 03:00 +0100", "26 03:00 +0100"]),
        ("30 1 * * *", NEW_YORK, "2026-10-31 12:00", ["01 01:30 -0400", "02 01:30 -0500"]),
        ("45 1 * * *", LORD_HOWE, "2026-04-04 12:00", ["05 01:45 +1100", "06 01:45 +1030"]),
    ],
)
def test_a_repeated_local_time_is_due_the_first_time_only(
    expression: str, tz: str, after: str, expected: list[str]
) -> None:
    assert due(expression, tz, after, len(expected)) == expected


def test_after_the_first_of_two_equal_local_times_the_second_is_not_due() -> None:
    cron = Cron.parse("30 2 * * *", BERLIN)
    second = datetime(2026, 10, 25, 1, 10, tzinfo=UTC)  # 02:10 in Berlin, for the second time
    assert cron.next_after(second) == datetime(2026, 10, 26, 1, 30, tzinfo=UTC)


def test_every_hour_is_due_in_the_repeated_hour_too() -> None:
    assert due("0 * * * *", BERLIN, "2026-10-25 01:30", 3) == [
        "25 02:00 +0200",
        "25 02:00 +0100",
        "25 03:00 +0100",
    ]
    minutes = due("*/20 * * * *", BERLIN, "2026-10-25 02:30", 3)
    assert minutes == ["25 02:40 +0200", "25 02:00 +0100", "25 02:20 +0100"]


@settings(deadline=None, max_examples=60)
@given(
    st.datetimes(datetime.fromisoformat("2024-01-01"), datetime.fromisoformat("2028-01-01")),
    st.sampled_from(("30 2 * * *", "*/15 1-3 * * *", "0 * * * *", "7 */3 * * 1", "0 0 1 * *")),
    st.sampled_from((BERLIN, NEW_YORK, LORD_HOWE, "UTC", "America/Sao_Paulo", "Africa/Casablanca")),
)
def test_due_times_grow_and_none_lies_between(start: datetime, expression: str, tz: str) -> None:
    cron = Cron.parse(expression, tz)
    moment = start.replace(tzinfo=UTC)
    first = cron.next_after(moment)
    assert first > moment
    assert cron.next_after(first) > first
    between = moment + (first - moment) / 2
    assert cron.next_after(between) == first
    assert cron.next_after(first - timedelta(microseconds=1)) == first


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "* * * *",
        "* * * * * *",
        "@daily",
        "60 * * * *",
        "a * * * *",
        "0 0 31 2 *",
        "*/0 * * * *",
    ],
)
def test_a_wrong_expression_is_refused(expression: str) -> None:
    with pytest.raises(InvalidCron, match="cron"):
        Cron.parse(expression, "UTC")


@pytest.mark.parametrize("tz", ["", "Mars/Olympus", "../UTC", "/etc/localtime", "Europe", "\0"])
def test_an_unknown_zone_is_refused(tz: str) -> None:
    with pytest.raises(InvalidCron, match="no time zone"):
        Cron.parse("* * * * *", tz)


def test_a_rare_expression_is_found_in_a_few_milliseconds() -> None:
    leap_day = Cron.parse("0 0 29 2 *", BERLIN)
    began = time.perf_counter()
    assert leap_day.next_after(datetime(2026, 1, 1, tzinfo=UTC)).year == 2028
    assert time.perf_counter() - began < 1

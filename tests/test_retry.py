"""The backoff policy, computed without waiting."""

from __future__ import annotations

import random

import pytest

from sessionsdb import Backoff, InvalidArgument


def test_delays_double_up_to_the_most() -> None:
    plain = Backoff(first=1, factor=2, most=10, jitter=0)
    assert [plain.delay(attempt) for attempt in range(1, 7)] == [1, 2, 4, 8, 10, 10]


def test_jitter_spreads_the_retries_around_the_planned_delay() -> None:
    policy = Backoff(first=10, factor=1, jitter=0.2, rng=random.Random(1))
    delays = [policy.delay(1) for _ in range(1_000)]
    assert min(delays) >= 8
    assert max(delays) <= 12
    assert len(set(delays)) > 900
    assert 9.8 < sum(delays) / len(delays) < 10.2


def test_no_delay_is_longer_than_the_most_however_many_attempts_there_were() -> None:
    assert 240 <= Backoff().delay(10_000) <= 300
    assert len({Backoff().delay(50) for _ in range(100)}) > 10, "spread at the top as well"
    assert all(Backoff(most=7).delay(attempt) <= 7 for attempt in range(1, 100))


@pytest.mark.parametrize(
    "wrong",
    [{"first": -1}, {"factor": 0.5}, {"most": -1}, {"jitter": 1.5}, {"first": float("nan")}],
)
def test_a_policy_that_makes_no_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidArgument, match="is no backoff"):
        Backoff(**wrong)

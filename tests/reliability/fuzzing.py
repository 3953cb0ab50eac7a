"""Settings of the fuzz tests: short and repeatable, or long and random."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings

from tests.support.scale import SCALE


def fuzzed(examples: int) -> Callable[[Any], Any]:
    """Settings for a test with ``examples`` examples in the short form. The short form draws the
    same examples every time. The long form draws others, and prints how to repeat a failing one."""
    return settings(
        deadline=None,
        max_examples=examples * SCALE,
        derandomize=SCALE == 1,
        print_blob=SCALE > 1,
        suppress_health_check=list(HealthCheck),
    )

"""How the tests of bad input are run: briefly and always the same, or long and at random."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings

from tests.support.scale import SCALE


def fuzzed(examples: int) -> Callable[[Any], Any]:
    """Settings for a test that makes so many examples in the short form. The short form draws the
    same ones every time; the long form draws others, and prints how to repeat one that fails."""
    return settings(
        deadline=None,
        max_examples=examples * SCALE,
        derandomize=SCALE == 1,
        print_blob=SCALE > 1,
        suppress_health_check=list(HealthCheck),
    )

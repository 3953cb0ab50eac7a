"""When a failed turn is tried again."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Protocol

from sessionsdb import validation
from sessionsdb.errors import InvalidArgument


class Retry(Protocol):
    """Decides how long a message waits after a failed attempt."""

    def delay(self, attempt: int) -> float:
        """Seconds from the failure of attempt number ``attempt`` (1 is the first) to the next."""


@dataclass(frozen=True)
class Backoff:
    """Exponential backoff with jitter.

    With the defaults about 1 second after the first failure, 2 after the second, 4 after the
    third, and so on up to 5 minutes. Each delay is drawn from ``jitter`` around that: between
    80 % and 120 % of it, so that what failed together does not come back together.
    """

    first: float = 1.0
    """Seconds after the first failure."""
    factor: float = 2.0
    most: float = 300.0
    """Seconds; no delay is longer, jitter included."""
    jitter: float = 0.2
    """Between 0 (none) and 1 (from nothing to the double)."""
    rng: random.Random = field(default_factory=random.Random, repr=False, compare=False)

    def __post_init__(self) -> None:
        try:
            for name in ("first", "factor", "most", "jitter"):
                object.__setattr__(self, name, validation.seconds(getattr(self, name), name))
            validation.strict_instance(self.rng, random.Random, "rng")
        except InvalidArgument as error:
            raise InvalidArgument(f"that is no backoff: {error}") from None
        if not (self.factor >= 1 and self.jitter <= 1):
            raise InvalidArgument(
                f"{self} is no backoff: factor must be 1 or more, jitter between 0 and 1"
            )

    def delay(self, attempt: int) -> float:
        try:
            planned = min(self.most, self.first * self.factor ** (attempt - 1))
        except OverflowError:
            planned = self.most
        spread = self.rng.uniform(1 - self.jitter, 1 + self.jitter)
        return min(self.most, planned * spread)

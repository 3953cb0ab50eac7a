"""The delay before a failed turn is tried again."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Protocol

from sessionsdb import validation
from sessionsdb.errors import InvalidArgument


class Retry(Protocol):
    """Decides how long a message waits after a failed attempt.

    Any object with this method will do. If ``delay`` raises or returns no valid number of seconds,
    the worker logs it and uses ``Backoff()``.
    """

    def delay(self, attempt: int) -> float:
        """Return the seconds from the failure of an attempt to the next one.

        ``attempt`` is the number of the failed attempt, 1 for the first.
        """


@dataclass(frozen=True)
class Backoff:
    """Exponential backoff with jitter.

    With the defaults a message waits about 1 second after its first failure, 2 after the second,
    4 after the third, and so on up to 5 minutes. Each delay is multiplied by a random factor
    between ``1 - jitter`` and ``1 + jitter``, by default 0.8 to 1.2. So messages that failed
    together are not retried together.

    Raises ``InvalidArgument`` for negative numbers, a ``factor`` below 1 or a ``jitter`` above 1.
    """

    first: float = 1.0
    """Seconds after the first failure."""
    factor: float = 2.0
    """Each delay is this many times the one before."""
    most: float = 300.0
    """The longest delay in seconds, jitter included."""
    jitter: float = 0.2
    """Between 0 (no jitter) and 1 (from no delay to the double)."""
    rng: random.Random = field(default_factory=random.Random, repr=False, compare=False)
    """The source of the jitter."""

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

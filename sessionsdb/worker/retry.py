"""The delay before a failed turn is tried again."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Protocol

from sessionsdb import validation
from sessionsdb.errors import InvalidArgument
from sessionsdb.untrusted_values import short_repr
from sessionsdb.worker.signatures import signature_of


class Retry(Protocol):
    """Decides how long a message waits after a failed attempt.

    Any object with this method will do. If ``delay`` raises or returns no valid number of seconds,
    the worker logs it and uses ``Backoff()``. A method that takes only ``attempt`` will do too: it
    is not given the error.
    """

    def delay(self, attempt: int, error: BaseException | None = None) -> float:
        """Return the seconds from the failure of an attempt to the next one.

        ``attempt`` is the number of the failed attempt, 1 for the first. ``error`` is the exception
        that it failed with.
        """


class AttemptRetry:
    """A ``Retry`` over an object whose ``delay`` takes only the attempt."""

    def __init__(self, retry: Any) -> None:
        self._retry = retry

    def delay(self, attempt: int, error: BaseException | None = None) -> float:
        seconds: float = self._retry.delay(attempt)
        return seconds


def checked_retry(retry: Any) -> Retry:
    """Return a retry whose ``delay`` takes the attempt and the error.

    Raises ``InvalidArgument`` if the object has no such method.
    """
    delay = getattr(retry, "delay", None)
    if isinstance(retry, type) or not callable(getattr(type(retry), "delay", None)):
        delay = None
    if delay is None:
        raise InvalidArgument(
            "retry must be a Retry, which has a method delay(attempt, error), not "
            f"{short_repr(retry)}"
        )
    takes_error = _accepts(delay, 1, None)
    if not takes_error and not _accepts(delay, 1):
        raise InvalidArgument(
            "the method delay of a retry must take the attempt and the error: "
            f"{short_repr(retry)} takes neither (attempt, error) nor (attempt)"
        )
    checked: Retry = retry if takes_error else AttemptRetry(retry)
    return checked


def _accepts(function: Callable[..., object], *arguments: object) -> bool:
    try:
        signature_of(function).bind(*arguments)
    except TypeError:
        return False
    except ValueError:  # a function of an extension module, which tells no parameters
        return True
    return True


LONGEST_RETRY_AFTER = 86_400.0
"""A ``retry_after`` of more seconds counts as this many: one day."""


def retry_after_of(error: BaseException | None) -> float | None:
    """Return the seconds that an error asks to wait: its attribute ``retry_after``, or that of the
    errors that caused it. ``None`` if it has none that is a number of seconds.

    An attribute that can't be read is none.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        try:
            asked = _seconds(getattr(error, "retry_after", None))
        except Exception:  # a property that looks for a header of the answer, which has none
            asked = None
        if asked is not None:
            return asked
        error = error.__cause__
    return None


def _seconds(asked: object) -> float | None:
    if isinstance(asked, timedelta):
        asked = asked.total_seconds()
    if isinstance(asked, int | float) and not isinstance(asked, bool) and asked >= 0:
        return float(min(asked, LONGEST_RETRY_AFTER))
    return None


@dataclass(frozen=True)
class Backoff:
    """Exponential backoff with jitter.

    With the defaults a message waits about 1 second after its first failure. It waits 2 after the
    second, 4 after the third, and so on up to 5 minutes. Each delay is multiplied by a random
    factor between ``1 - jitter`` and ``1 + jitter``, by default 0.8 to 1.2. So messages that failed
    together are not retried together.

    An error that has a ``retry_after`` in seconds, such as ``RetryAfter``, decides itself: the
    message waits that long, at most one day. The attempt counts as any other.

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

    def delay(self, attempt: int, error: BaseException | None = None) -> float:
        asked = retry_after_of(error)
        if asked is not None:
            return asked
        try:
            planned = min(self.most, self.first * self.factor ** (attempt - 1))
        except OverflowError:
            planned = self.most
        spread = self.rng.uniform(1 - self.jitter, 1 + self.jitter)
        return min(self.most, planned * spread)

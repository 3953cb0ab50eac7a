"""The options of a worker, and their checks."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from dataclasses import dataclass

from sessionsdb import validation
from sessionsdb.errors import InvalidArgument
from sessionsdb.worker.retry import Backoff, Retry
from sessionsdb.worker.turn import Handler


@dataclass(frozen=True)
class WorkerOptions:
    """The checked options of one worker. ``SessionsDB.worker`` describes each of them."""

    handler: Handler
    concurrency: int
    batch: int
    lease_seconds: float
    poll_interval: float
    max_attempts: int
    retry: Retry
    turn_timeout: float | None
    name: str | None
    namespaces: Collection[str] | None
    """``None`` for all namespaces of the database."""

    @classmethod
    def checked(
        cls,
        handler: Handler,
        *,
        concurrency: int,
        batch: int,
        lease_seconds: float,
        poll_interval: float,
        max_attempts: int,
        retry: Retry | None,
        turn_timeout: float | None,
        name: str | None,
        namespaces: Collection[str] | None,
    ) -> WorkerOptions:
        """Check each value, and return the options. Raises ``InvalidArgument``."""
        if not callable(handler) or inspect.isclass(handler):
            raise InvalidArgument(
                "handler must be an async function that takes a turn, not "
                f"{validation.short_repr(handler)}"
            )
        if retry is not None and not callable(getattr(type(retry), "delay", None)):
            raise InvalidArgument(
                "retry must be a Retry, which has a method delay(attempt), not "
                f"{validation.short_repr(retry)}"
            )
        return cls(
            handler,
            validation.integer(concurrency, "concurrency", minimum=1),
            validation.integer(batch, "batch", minimum=1),
            validation.positive_seconds(lease_seconds, "lease_seconds"),
            validation.positive_seconds(poll_interval, "poll_interval"),
            validation.integer(max_attempts, "max_attempts", minimum=1),
            Backoff() if retry is None else retry,
            None
            if turn_timeout is None
            else validation.positive_seconds(turn_timeout, "turn_timeout"),
            validation.optional_name(name, "name"),
            namespaces,
        )

"""The options of a worker, and their checks."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from sessionsdb import validation
from sessionsdb.protocols import SessionBroker
from sessionsdb.worker.handler import Handler, checked_handler
from sessionsdb.worker.retry import Backoff, Retry, checked_retry


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
    index_search: bool
    broker_of: Callable[[str], SessionBroker]
    """Makes the broker of a namespace."""

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
        index_search: bool,
        broker_of: Callable[[str], SessionBroker],
    ) -> WorkerOptions:
        """Check each value, and return the options. Raises ``InvalidArgument``."""
        return cls(
            checked_handler(handler),
            validation.integer(concurrency, "concurrency", minimum=1),
            validation.integer(batch, "batch", minimum=1),
            validation.positive_seconds(lease_seconds, "lease_seconds"),
            validation.positive_seconds(poll_interval, "poll_interval"),
            validation.integer(max_attempts, "max_attempts", minimum=1),
            Backoff() if retry is None else checked_retry(retry),
            None
            if turn_timeout is None
            else validation.positive_seconds(turn_timeout, "turn_timeout"),
            validation.optional_name(name, "name"),
            namespaces,
            validation.boolean(index_search, "index_search"),
            broker_of,
        )

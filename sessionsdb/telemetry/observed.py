"""Observe sends, waits and turns through OpenTelemetry's API. Without its SDK this does nothing."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from types import TracebackType
from typing import Literal, Protocol

from opentelemetry import metrics, trace
from opentelemetry.metrics import Counter, Meter
from opentelemetry.trace import Span, SpanKind, Tracer

from sessionsdb._version import __version__
from sessionsdb.private_apis import has_no_provider
from sessionsdb.telemetry.metrics import RESULT_ATTRIBUTES, LoadReader, Metrics
from sessionsdb.telemetry.spans import (
    SCOPE,
    is_tracing_off,
    link_to,
    record_error,
    start_span,
    trace_of,
)

log = logging.getLogger("sessionsdb.telemetry")

_NO_SPAN = nullcontext()

TurnResult = Literal[
    "committed", "failed", "dead", "stopped", "rerun", "lost", "given_up", "released"
]
"""How a turn ended. ``stopped``: by ``cancel``, ``interrupt``, ``end`` or ``delete``. ``given_up``:
this worker cancelled it because it lost the lease. ``lost``: its commit was refused."""


class Telemetry:
    """The spans of one tracer and the instruments of one meter."""

    def __init__(self, meter: Meter, tracer: Tracer) -> None:
        self.metrics = Metrics(meter)
        self.tracer = tracer
        self._meter = meter

    def sending(self, namespace: str, session_id: str) -> ObservedSend:
        return ObservedSend(self, namespace, session_id)

    def waiting(self) -> ObservedWait:
        return ObservedWait(self)

    def turn(
        self, namespace: str, session_id: str, messages: Sequence[ArrivedMessage]
    ) -> TurnObservation:
        if is_tracing_off(self.tracer) and has_no_provider(self._meter):
            return _UNOBSERVED
        try:
            return ObservedTurn(self, namespace, session_id, messages)
        except Exception:  # of the application's SDK: the turn goes on without its telemetry
            log.exception("a turn could not be observed")
            return _UNOBSERVED

    def observe_load(self, source: LoadReader) -> Callable[[], None]:
        """Read the load gauges from ``source`` too. Returns a function that ends this."""
        return self.metrics.add_source(source)

    def record_claimed_leases(self, count: int) -> None:
        _add(self.metrics.claims, count)

    def record_expired_leases(self, count: int) -> None:
        """Count leases that were taken back from dead workers."""
        _add(self.metrics.lease_losses, count, "expired")

    def record_staged_sends(self, count: int) -> None:
        """Count the sends and spawns that a turn has committed."""
        _add(self.metrics.sends, count, "queued")


def _add(counter: Counter, count: int, result: str | None = None) -> None:
    """Add to a counter. What is counted stands, so an error of the application's SDK is logged."""
    try:
        counter.add(count, None if result is None else RESULT_ATTRIBUTES[result])
    except Exception:
        log.exception("%s could not be counted", result or "claims")


class ObservedSend:
    """A call of ``send``, ``spawn`` or ``answer``: a span and a count.

    At its end the message is stored, or refused. So a part of the application's SDK that fails,
    such as a span processor, is logged: a caller that saw its error would send once more.
    """

    __slots__ = ("_telemetry", "duplicate", "span", "trace")

    def __init__(self, telemetry: Telemetry, namespace: str, session_id: str) -> None:
        self._telemetry = telemetry
        self.duplicate = False
        self.span: Span = trace.INVALID_SPAN
        self.trace: str | None = None
        """The ``traceparent`` that is stored with the message."""
        try:
            self.span = start_span(
                telemetry.tracer, "sessionsdb.send", SpanKind.PRODUCER, namespace, session_id
            )
            self.trace = trace_of(self.span)
        except Exception:
            log.exception("a send could not be observed")

    def __enter__(self) -> ObservedSend:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        result = "duplicate" if self.duplicate else "queued"
        if error is not None:
            result = "refused"
        _add(self._telemetry.metrics.sends, 1, result)
        try:
            if error is not None:
                record_error(self.span, error)
            self.span.end()
        except Exception:
            log.exception("a send could not be observed")


class ObservedWait:
    """A call of ``wait``: a count."""

    __slots__ = ("_telemetry", "answered")

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry
        self.answered = False

    def __enter__(self) -> ObservedWait:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        result = "answered" if self.answered else "timeout"
        if error is not None:
            result = "failed" if isinstance(error, Exception) else "cancelled"
        _add(self._telemetry.metrics.waits, 1, result)


class ArrivedMessage(Protocol):
    """A message that was handed to a turn."""

    @property
    def enqueued_at(self) -> datetime: ...
    @property
    def attempt(self) -> int: ...
    @property
    def trace(self) -> str | None: ...


class ObservedTurn:
    """A turn: a span that links to the spans of its sends, a count and a duration."""

    def __init__(
        self,
        telemetry: Telemetry,
        namespace: str,
        session_id: str,
        messages: Sequence[ArrivedMessage],
    ) -> None:
        self._metrics = telemetry.metrics
        links = [link for one in messages if one.trace and (link := link_to(one.trace))]
        self.span = start_span(
            telemetry.tracer, "sessionsdb.turn", SpanKind.CONSUMER, namespace, session_id, links
        )
        self._current_span: AbstractContextManager[object] = _NO_SPAN
        if self.span.is_recording():
            self.span.set_attribute("messaging.batch.message_count", len(messages))
            self.span.set_attribute("sessionsdb.attempt", max(one.attempt for one in messages))
            # Spans that the handler starts are children of this one. Turns over the messages that
            # it sends link to it.
            self._current_span = trace.use_span(
                self.span, record_exception=False, set_status_on_exception=False
            )
        now = datetime.now(UTC)
        for one in messages:
            if one.attempt == 1:
                wait_seconds = max(0.0, (now - one.enqueued_at).total_seconds())
                self._metrics.message_wait.record(wait_seconds)
        self._started_at = time.monotonic()

    def current(self) -> AbstractContextManager[object]:
        """Return a context in which the handler runs: its spans are children of the turn's."""
        return self._current_span

    def end(self, result: TurnResult, error: BaseException | None = None) -> None:
        """Record the result. It may be called in another task than the handler's.

        What came of the turn stands when this is called. So a part of the application's SDK that
        fails, such as a span processor, is logged.
        """
        try:
            self._record(result, error)
        except Exception:
            log.exception("a turn could not be observed")

    def _record(self, result: TurnResult, error: BaseException | None) -> None:
        attributes = RESULT_ATTRIBUTES[result]
        self._metrics.turns.add(1, attributes)
        self._metrics.turn_seconds.record(time.monotonic() - self._started_at, attributes)
        if result in ("lost", "given_up"):
            self._metrics.lease_losses.add(1, attributes)
        if self.span.is_recording():
            self.span.set_attribute("sessionsdb.result", result)
            if error is not None:
                record_error(self.span, error)
        self.span.end()


class UnobservedTurn:
    """A turn of a process that has neither a tracer provider nor a meter provider."""

    def current(self) -> AbstractContextManager[object]:
        return _NO_SPAN

    def end(self, result: TurnResult, error: BaseException | None = None) -> None:
        """Record nothing."""


TurnObservation = ObservedTurn | UnobservedTurn
_UNOBSERVED = UnobservedTurn()

telemetry = Telemetry(metrics.get_meter(SCOPE, __version__), trace.get_tracer(SCOPE, __version__))
"""The telemetry of this process. It follows the providers that the application sets."""

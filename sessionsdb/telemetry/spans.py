"""Metrics and spans, through OpenTelemetry's API alone: without its SDK they do nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from types import TracebackType
from typing import Literal, Protocol

from opentelemetry import metrics, trace
from opentelemetry.metrics import CallbackOptions, Meter, Observation
from opentelemetry.trace import Link, Span, SpanKind, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from sessionsdb._version import __version__
from sessionsdb.operations.stats import Load
from sessionsdb.private_apis import has_tracer_provider
from sessionsdb.telemetry.metrics import (
    CLAIMS,
    INSTRUMENTS,
    LAG,
    LEASE_LOSSES,
    MESSAGE_WAIT,
    PENDING,
    RUNNING,
    SECONDS_BUCKETS,
    SENDS,
    TURN_SECONDS,
    TURNS,
    WAITS,
)

SCOPE = "sessionsdb"
"""The instrumentation scope of all of it."""


Result = Literal["committed", "failed", "dead", "lost", "given_up", "released"]

_BY_RESULT = {value: {"result": value} for described in INSTRUMENTS for value in described.values}
_PROPAGATOR = TraceContextTextMapPropagator()
_TRACE = "traceparent"


class LoadReader(Protocol):
    """What the gauges are read from."""

    attributes: dict[str, str]

    def load(self) -> Load | None:
        """The load of a database, if it is known; called on a reader's thread."""


class Telemetry:
    """All instruments, on one meter and one tracer."""

    def __init__(self, meter: Meter, tracer: Tracer) -> None:
        self._tracer = tracer
        self._sources: list[LoadReader] = []
        self.sends, self.claims, self.turns, self.waits, self.lease_losses = (
            meter.create_counter(one.name, one.unit, one.description)
            for one in (SENDS, CLAIMS, TURNS, WAITS, LEASE_LOSSES)
        )
        self.turn_seconds, self.message_wait = (
            meter.create_histogram(
                one.name,
                one.unit,
                one.description,
                explicit_bucket_boundaries_advisory=SECONDS_BUCKETS,
            )
            for one in (TURN_SECONDS, MESSAGE_WAIT)
        )
        for described, figure in (
            (PENDING, lambda load: load.pending),
            (RUNNING, lambda load: load.running),
            (LAG, lambda load: load.ready_seconds),
        ):
            meter.create_observable_gauge(
                described.name, [self._observer(figure)], described.unit, described.description
            )

    def _observer(
        self, figure: Callable[[Load], float]
    ) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(_: CallbackOptions) -> Iterable[Observation]:
            for source in list(self._sources):
                if (load := source.load()) is not None:
                    yield Observation(figure(load), source.attributes)

        return observe

    def observe(self, source: LoadReader) -> Callable[[], None]:
        """Read gauges from ``source``, until what is returned is called."""
        self._sources.append(source)
        return lambda: self._sources.remove(source)

    def sending(self, namespace: str, session_id: str) -> ObservedSend:
        return ObservedSend(self, namespace, session_id)

    def waiting(self) -> ObservedWait:
        return ObservedWait(self)

    def turn(
        self, namespace: str, session_id: str, messages: Sequence[ArrivedMessage]
    ) -> ObservedTurn:
        return ObservedTurn(self, namespace, session_id, messages)

    def start_span(
        self, name: str, kind: SpanKind, namespace: str, session_id: str, links: Sequence[Link] = ()
    ) -> Span:
        if _is_tracing_off(self._tracer):
            return trace.INVALID_SPAN
        span = self._tracer.start_span(name, kind=kind, links=links)
        if span.is_recording():
            span.set_attributes(
                {
                    "messaging.system": SCOPE,
                    "sessionsdb.namespace": namespace,
                    "sessionsdb.session": session_id,
                }
            )
        return span


class ObservedSend:
    """A call of ``send`` or ``spawn``: a span, and a count."""

    __slots__ = ("_on", "duplicate", "span")

    def __init__(self, on: Telemetry, namespace: str, session_id: str) -> None:
        self._on = on
        self.duplicate = False
        self.span = on.start_span("sessionsdb.send", SpanKind.PRODUCER, namespace, session_id)

    @property
    def trace(self) -> str | None:
        return trace_of(self.span)

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
            _failed(self.span, error)
        self._on.sends.add(1, _BY_RESULT[result])
        self.span.end()


class ObservedWait:
    """A call of ``wait``: a count."""

    __slots__ = ("_on", "answered")

    def __init__(self, on: Telemetry) -> None:
        self._on = on
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
        self._on.waits.add(1, _BY_RESULT[result])


class ArrivedMessage(Protocol):
    """A message that was handed to a turn."""

    @property
    def enqueued_at(self) -> datetime: ...
    @property
    def attempt(self) -> int: ...
    @property
    def trace(self) -> str | None: ...


class ObservedTurn:
    """A turn: a span that links to those of its sends, a count, and its duration."""

    def __init__(
        self, on: Telemetry, namespace: str, session_id: str, messages: Sequence[ArrivedMessage]
    ) -> None:
        self._on = on
        self.result: Result = "released"
        self.error: BaseException | None = None
        links = [link for one in messages if one.trace and (link := _link(one.trace))]
        self.span = on.start_span(
            "sessionsdb.turn", SpanKind.CONSUMER, namespace, session_id, links
        )
        self._current: AbstractContextManager[Span] | None = None
        if self.span.is_recording():
            self.span.set_attribute("messaging.batch.message_count", len(messages))
            self.span.set_attribute("sessionsdb.attempt", max(one.attempt for one in messages))
            # What the handler starts is below it; what it sends is linked to it.
            self._current = trace.use_span(
                self.span, record_exception=False, set_status_on_exception=False
            )
        present = datetime.now(UTC)
        for one in messages:
            if one.attempt == 1:
                on.message_wait.record(max(0.0, (present - one.enqueued_at).total_seconds()))
        self._begun = time.monotonic()

    def __enter__(self) -> ObservedTurn:
        if self._current is not None:
            self._current.__enter__()
        return self

    def __exit__(
        self,
        type_: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._current is not None:
            self._current.__exit__(None, None, None)
            self.span.set_attribute("sessionsdb.result", self.result)
            if (why := self.error or error) is not None:
                _failed(self.span, why)
        attributes = _BY_RESULT[self.result]
        self._on.turns.add(1, attributes)
        self._on.turn_seconds.record(time.monotonic() - self._begun, attributes)
        if self.result in ("lost", "given_up"):
            self._on.lease_losses.add(1, attributes)
        self.span.end()


def _is_tracing_off(tracer: Tracer) -> bool:
    """Whether no provider has been set: then there is no span to start, at a tenth of the cost."""
    return isinstance(tracer, trace.ProxyTracer) and not has_tracer_provider()


def record_expired_leases(count: int) -> None:
    """Leases were taken back from workers that died."""
    instruments.lease_losses.add(count, _BY_RESULT["expired"])


def record_staged_sends(count: int) -> None:
    """Sends and spawns of a turn have been committed."""
    instruments.sends.add(count, _BY_RESULT["queued"])


def current_trace() -> str | None:
    """What links to the span that is current; ``None`` unless one is recorded."""
    return trace_of(trace.get_current_span())


def trace_of(span: Span) -> str | None:
    """The span's place in its trace, as W3C's ``traceparent``; ``None`` unless it is recorded."""
    if not span.is_recording():
        return None
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier, trace.set_span_in_context(span))
    return carrier.get(_TRACE)


def _link(traceparent: str) -> Link | None:
    context = _PROPAGATOR.extract({_TRACE: traceparent})
    sent = trace.get_current_span(context).get_span_context()
    return Link(sent) if sent.is_valid else None


def _failed(span: Span, error: BaseException) -> None:
    if span.is_recording():
        span.record_exception(error)
        span.set_status(StatusCode.ERROR, f"{type(error).__name__}: {error}"[:500])


instruments = Telemetry(metrics.get_meter(SCOPE, __version__), trace.get_tracer(SCOPE, __version__))
"""The instruments of this process: they follow the providers that the application sets."""

"""Start spans, and link the span of a turn to the spans of its sends."""

from __future__ import annotations

from collections.abc import Sequence

from opentelemetry import trace
from opentelemetry.trace import Link, Span, SpanKind, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from sessionsdb.private_apis import has_tracer_provider

SCOPE = "sessionsdb"
"""The instrumentation scope of all spans and instruments."""

ERROR_CHARACTERS = 500
"""The description of a span's error status is cut to this length."""

_PROPAGATOR = TraceContextTextMapPropagator()
_TRACEPARENT = "traceparent"


def start_span(
    tracer: Tracer,
    name: str,
    kind: SpanKind,
    namespace: str,
    session_id: str,
    links: Sequence[Link] = (),
) -> Span:
    if is_tracing_off(tracer):
        return trace.INVALID_SPAN
    span = tracer.start_span(name, kind=kind, links=links)
    if span.is_recording():
        span.set_attributes(
            {
                "messaging.system": SCOPE,
                "sessionsdb.namespace": namespace,
                "sessionsdb.session": session_id,
            }
        )
    return span


def record_error(span: Span, error: BaseException) -> None:
    """Record an error, by its type alone if it fails to make its text."""
    if not span.is_recording():
        return
    name = type(error).__name__
    try:
        description = f"{name}: {error}"[:ERROR_CHARACTERS]
        span.record_exception(error)
    except Exception:
        description = name
        span.add_event("exception", {"exception.type": name})
    span.set_status(StatusCode.ERROR, description)


def current_trace() -> str | None:
    """Return ``trace_of`` the current span."""
    return trace_of(trace.get_current_span())


def trace_of(span: Span) -> str | None:
    """Return the span's trace id and span id as a W3C ``traceparent``, or ``None`` unless the span
    is recorded."""
    if not span.is_recording():
        return None
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier, trace.set_span_in_context(span))
    return carrier.get(_TRACEPARENT)


def link_to(traceparent: str) -> Link | None:
    """Return a link to the span of a ``traceparent``, or ``None`` if the text is no valid one."""
    context = _PROPAGATOR.extract({_TRACEPARENT: traceparent})
    span_context = trace.get_current_span(context).get_span_context()
    return Link(span_context) if span_context.is_valid else None


def is_tracing_off(tracer: Tracer) -> bool:
    """Return whether the application has set no tracer provider. Then no span is started, which
    saves nine tenths of its cost."""
    return isinstance(tracer, trace.ProxyTracer) and not has_tracer_provider(trace)

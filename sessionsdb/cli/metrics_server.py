"""An HTTP server that offers a worker's metrics to Prometheus."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sessionsdb.cli.console import output
from sessionsdb.errors import InvalidArgument

EXTRA = "sessionsdb[metrics]"


@contextmanager
def serve_metrics(port: int | None, host: str) -> Iterator[None]:
    """Collect metrics and serve them at ``http://host:port/metrics``. Without a port do nothing.

    Port 0 takes a free port. The address is printed on standard error. Raises ``InvalidArgument``
    if the extra is not installed, and ``OSError`` if the port is taken.
    """
    if port is None:
        yield
        return
    try:
        from opentelemetry import metrics
        from opentelemetry.exporter.prometheus import PrometheusMetricReader
        from opentelemetry.sdk.metrics import MeterProvider
        from prometheus_client import CollectorRegistry, start_http_server
    except ImportError as error:
        raise InvalidArgument(
            f"--prometheus-port needs packages that are not installed: pip install '{EXTRA}'"
        ) from error
    registry = CollectorRegistry()
    provider = MeterProvider([PrometheusMetricReader(registry=registry, scope_info_enabled=False)])
    metrics.set_meter_provider(provider)
    try:
        server, thread = start_http_server(port, host, registry)
    except UnicodeError as error:  # the text can't be a host name
        raise InvalidArgument(f"can't listen on {host}: {error}") from error
    output.note(f"metrics: http://{host}:{server.server_port}/metrics")
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        provider.shutdown()

"""Spans and metrics by the API of OpenTelemetry.

``observed`` is imported at its first use (PEP 562): a command that only reads does not wait 30 ms
for OpenTelemetry.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sessionsdb.telemetry import observed as observed


def __getattr__(name: str) -> Any:
    if name == "observed":
        return import_module(f"{__name__}.{name}")  # which makes it an attribute of the package
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

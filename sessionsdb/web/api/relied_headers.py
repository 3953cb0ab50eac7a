"""Refuse a header that its sender relies on, where a call does not take it.

A write with ``If-Match`` must not be made at any version, and a ``POST`` with ``Idempotency-Key``
must not be made twice.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from fastapi import Request
from fastapi.dependencies.models import Dependant

from sessionsdb.errors import InvalidArgument

_RELIED_ON = {
    "If-Match": ("POST", "PUT", "PATCH", "DELETE"),
    "If-None-Match": ("POST", "PUT", "PATCH", "DELETE"),
    "Idempotency-Key": ("POST",),
}
"""The headers, and the methods that they matter for. The other calls can be repeated."""


def headers_of(dependant: Dependant) -> Iterator[str]:
    """Yield the headers that a route takes, in lower case."""
    yield from (parameter.alias for parameter in dependant.header_params)
    for one in dependant.dependencies:
        yield from headers_of(one)


def refuse_others(request: Request, taken: Collection[str]) -> None:
    """Raise ``InvalidArgument`` for a header that is not in ``taken`` and is relied on."""
    for name, methods in _RELIED_ON.items():
        if name in request.headers and request.method in methods and name.lower() not in taken:
            raise InvalidArgument(f"this call takes no {name}; send it without")

"""The proxies before the server, whose header ``X-Forwarded-For`` names the caller."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from typing import Any, cast

from starlette.types import ASGIApp
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from sessionsdb.errors import InvalidArgument


def behind_proxies(app: ASGIApp, proxies: Collection[str]) -> ASGIApp:
    """Return an application that sees the address of the caller instead of that of a proxy.

    ``proxies``: addresses, or networks such as ``10.0.0.0/8``. The header of any other peer is not
    read, because everyone can send it. Of a chain the last address that is no proxy counts: a proxy
    adds at the end. Raises ``InvalidArgument`` for a value that is no address.
    """
    for proxy in proxies:
        try:
            ipaddress.ip_network(proxy)
        except ValueError as error:
            raise InvalidArgument(
                f"proxies has {proxy!r}, which is no address; give an address, or a network such "
                "as 10.0.0.0/8"
            ) from error
    if not proxies:
        return app
    # uvicorn has types of its own for what ASGI calls an application.
    return cast(ASGIApp, ProxyHeadersMiddleware(cast(Any, app), list(proxies)))

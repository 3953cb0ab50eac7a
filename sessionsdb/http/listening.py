"""The socket that a server listens on, and the names by which a browser may reach it."""

from __future__ import annotations

import ipaddress
import socket

from sessionsdb.errors import InvalidArgument
from sessionsdb.http.connections import BACKLOG


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def in_url(host: str) -> str:
    """Return an address as it stands in a URL and in the header ``Host``."""
    return f"[{host}]" if ":" in host else host


def loopback_names(host: str) -> set[str]:
    """Return the names of a loopback address in the header ``Host``, without the port."""
    return {"127.0.0.1", "localhost", "[::1]", in_url(host)}


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket. Raises ``InvalidArgument`` if the address can't be used."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, UnicodeError) as error:  # UnicodeError: not a host name
        reason = getattr(error, "strerror", None) or error
        raise InvalidArgument(f"can't listen on {host} port {port}: {reason}") from error

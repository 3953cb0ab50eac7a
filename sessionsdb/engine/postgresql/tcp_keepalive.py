"""Have the kernel notice a server whose host is gone."""

from __future__ import annotations

import asyncio
import os
import socket
from functools import lru_cache
from typing import Any

import asyncpg

from sessionsdb.engine.postgresql.stamped_begin import StampingConnection

UNANSWERED_MILLISECONDS = 15_000
"""How long a host may leave packets unacknowledged before its connection is closed.

``tcp_user_timeout`` in the URL. Half of a worker's lease, so that the worker has time to commit
through another host.
"""

KEEPALIVE_SECONDS = 5
"""How long a connection is idle before the kernel probes the other host."""


@lru_cache
def connection_class(unanswered_milliseconds: int) -> type[asyncpg.Connection]:
    """Return a connection class that sets the keepalive options of its socket.

    The driver gives the socket to no hook. Only a connection's own class can reach it.
    """

    class Connection(StampingConnection):
        def __init__(
            self, protocol: Any, transport: asyncio.Transport, *rest: Any, **options: Any
        ) -> None:
            super().__init__(protocol, transport, *rest, **options)
            _set_keepalive(transport.get_extra_info("socket"), unanswered_milliseconds)

    return Connection


def _set_keepalive(sock: Any, unanswered_milliseconds: int) -> None:
    """Set the keepalive options, unless the socket is local or the time is 0.

    By default the kernel retries sent packets for a quarter of an hour. A connection that only
    waits for an answer is never given up. The other host's kernel answers the probes, so a
    statement may take any time.
    """
    if sock.family not in (socket.AF_INET, socket.AF_INET6) or unanswered_milliseconds == 0:
        return
    probes = max(1, round(unanswered_milliseconds / 1000 / KEEPALIVE_SECONDS) - 1)
    # Through a duplicate of its file descriptor: the socket object of an event loop need not have
    # `setsockopt`.
    with socket.socket(fileno=os.dup(sock.fileno())) as duplicate:
        duplicate.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (
            ("TCP_KEEPIDLE", KEEPALIVE_SECONDS),
            ("TCP_KEEPALIVE", KEEPALIVE_SECONDS),  # macOS's name for TCP_KEEPIDLE
            ("TCP_KEEPINTVL", KEEPALIVE_SECONDS),
            ("TCP_KEEPCNT", probes),
            ("TCP_USER_TIMEOUT", unanswered_milliseconds),  # Linux: for sent packets, too
        ):
            if (number := getattr(socket, option, None)) is not None:
                duplicate.setsockopt(socket.IPPROTO_TCP, number, value)

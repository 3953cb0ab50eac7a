"""Connections of the HTTP server that come to an end: deadlines for requests, and a bound."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

REQUEST_SECONDS = 20.0
"""A request, its head and its body, must be here after this time. Of a body that is streamed, a
part of ``STREAMED_BYTES`` must."""

STREAMED_BYTES = 20 * 1024
"""A client that streams a body sends so much in each ``REQUEST_SECONDS``. One that sends a byte
each second holds no connection."""

MAX_CONNECTIONS = 1_000

RESERVED_DESCRIPTORS = 100
"""Descriptors that are left for the database, for files and for the listening socket."""

DEAD_PEER_MILLISECONDS = 60_000
"""A peer that acknowledges nothing for this time is gone."""

BACKLOG = 128


def max_connections(wanted: int | None = None) -> int:
    """Return how many connections fit beside the other descriptors of this process.

    At most ``wanted``, ``MAX_CONNECTIONS`` by default.
    """
    most = MAX_CONNECTIONS if wanted is None else wanted
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return most
    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return most
    return max(1, min(most, soft - RESERVED_DESCRIPTORS, soft // 2))


class BoundedProtocol(H11Protocol):
    """HTTP/1.1 with a deadline for each request and a maximum number of connections.

    A new connection beyond the maximum takes the place of the oldest one without a whole request.
    If all have one, the new connection is closed.
    """

    wanted_connections: int | None = None
    """The maximum. ``None``: ``MAX_CONNECTIONS``."""

    _deadline: asyncio.TimerHandle | None = None

    _received = 0
    """Bytes since the deadline was set."""

    _was_full = False
    """Whether the application had more to read than it took, since the deadline was set."""

    @staticmethod
    def streams_body(scope: Any) -> bool:
        """Return whether a request is answered while its body is read, which may take any time."""
        return False

    def connection_made(self, transport: Any) -> None:
        if (
            len(self.connections) >= max_connections(self.wanted_connections)
            and not self._make_room()
        ):
            transport.abort()
            # The base class looks at these when the connection is lost.
            self.transport = transport
            return
        super().connection_made(transport)
        if (raw := transport.get_extra_info("socket")) is not None:
            _find_dead_peers(raw)
        self._start_deadline()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._received += len(data)
        self._was_full = self._was_full or self.flow.read_paused
        if self._is_waiting():
            if self._deadline is None:
                self._start_deadline()
        else:
            self._stop_deadline()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._is_waiting() and self.conn.trailing_data[0]:  # the start of the next request
            self._start_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_deadline()
        if self in self.connections:
            super().connection_lost(exc)

    def _is_waiting(self) -> bool:
        return self.conn.their_state in (h11.IDLE, h11.SEND_BODY)

    def _make_room(self) -> bool:
        waiting = [one for one in self.connections if isinstance(one, BoundedProtocol)]
        waiting = [one for one in waiting if one._deadline is not None or one._is_idle()]
        if not waiting:
            return False
        oldest = min(waiting, key=lambda one: one._begun)
        self.connections.discard(oldest)
        oldest.transport.abort()
        return True

    def _is_idle(self) -> bool:
        return self.timeout_keep_alive_task is not None

    _begun: float = 0.0

    def _start_deadline(self) -> None:
        self._stop_deadline()
        self._received, self._was_full = 0, False
        self._begun = self.loop.time()
        self._deadline = self.loop.call_later(REQUEST_SECONDS, self._give_up)

    def _stop_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        self._deadline = None
        if self.transport.is_closing():
            return
        if self._goes_on():
            self._start_deadline()
        else:
            self.transport.abort()

    def _goes_on(self) -> bool:
        """Return whether a body is streamed as fast as it must be, or as it is taken."""
        if self.conn.their_state is not h11.SEND_BODY or self.cycle.response_complete:
            return False
        if not self.streams_body(self.scope) or self.flow.write_paused:  # it reads no answers
            return False
        is_full = self._was_full or self.flow.read_paused
        return is_full or self._received >= STREAMED_BYTES


def _find_dead_peers(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAD_PEER_MILLISECONDS)

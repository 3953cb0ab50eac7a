"""From the hosts of a URL to a connection with the one that takes writes.

The driver can walk a list of hosts too, but gives all of them one time together: a first host that
is gone without a word, as machines go, takes it all, and the others are never asked. Here each has
its own, and the one that answered last is asked first.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Sequence
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

import asyncpg
from sqlalchemy import Engine, event
from sqlalchemy.ext.asyncio import AsyncEngine

CONNECT_SECONDS = 10.0
"""How long one host may take to let us in; ``connect_timeout`` in the URL."""

SILENCE_MILLISECONDS = 15_000
"""After how long a host that acknowledges nothing is given up; ``tcp_user_timeout`` in the URL.
Half of a worker's lease: it has time to commit elsewhere."""

KEEPALIVE_SECONDS = 5
"""How long a connection is silent before the other side's kernel is asked whether it is there."""

Address = tuple[str | None, int | None]
"""A host and a port; ``None`` leaves it to the driver: the environment, then its own default."""


class NoReachableHost(ConnectionError):
    """No host could be used: each with its reason. Nothing was asked of any of them yet."""


LOOK_AGAIN_SECONDS = 5.0
"""How long an answer may take before another connection looks where the primary is."""


class HostList:
    """The hosts of one engine, and which of them was the right one last.

    When one that takes writes is found elsewhere than before, all connections to the former are
    broken: a server that hangs, with a host that still acknowledges what it is sent, would keep
    them for ever, and what is waited for on them with them.
    """

    def __init__(self) -> None:
        self._last: Address | None = None
        self._given: dict[str, Any] | None = None
        self._connections: WeakKeyDictionary[asyncpg.Connection, Address] = WeakKeyDictionary()

    @property
    def can_move(self) -> bool:
        """Whether the primary may be found elsewhere: there are several, of which we want it."""
        return (
            self._given is not None
            and isinstance(self._given["host"], list)
            and self._given["target_session_attrs"] in (None, *_PRIMARY)
        )

    async def look_again(self) -> None:
        """Connect, and let go: to find out whether the primary is where it was."""
        if self._given is not None and self.can_move:
            with contextlib.suppress(Exception):  # then nobody knows better
                (await self.connect(**self._given)).terminate()

    async def connect(
        self,
        *,
        host: str | Sequence[str] | None = None,
        port: int | Sequence[int] | None = None,
        target_session_attrs: str | None = None,
        connect_timeout: str | float = CONNECT_SECONDS,
        tcp_user_timeout: str | int = SILENCE_MILLISECONDS,
        timeout: float | None = None,
        **given: Any,
    ) -> asyncpg.Connection:
        """Connect as ``asyncpg.connect`` does. Of several hosts the first one that is reached and
        takes writes, unless ``target_session_attrs`` asks for another kind."""
        if timeout is not None:  # the driver's own word, for who makes an engine
            connect_timeout = timeout
        self._given = {
            "host": host,
            "port": port,
            "target_session_attrs": target_session_attrs,
            "connect_timeout": connect_timeout,
            "tcp_user_timeout": tcp_user_timeout,
            **given,
        }
        addresses = _addresses(host, port)
        if target_session_attrs is None and len(addresses) > 1:
            target_session_attrs = "read-write"
        wanted = [target_session_attrs]
        if target_session_attrs == "prefer-standby":
            wanted = ["standby", "any"]
        failures: list[tuple[Address, Exception]] = []
        for attributes in wanted:
            for address in sorted(addresses, key=lambda one: one != self._last):
                try:
                    connection = await _connect(
                        address, attributes, float(connect_timeout), int(tcp_user_timeout), given
                    )
                except _NOT_PRIMARY as error:
                    if isinstance(error, TimeoutError) and not str(error):
                        error = TimeoutError(f"no answer within {float(connect_timeout):g} s")
                    failures.append((address, error))
                else:
                    self._connections[connection] = address
                    if attributes in _PRIMARY and len(addresses) > 1:
                        self._leave_all_but(address)
                    self._last = address
                    return connection
        last = failures[-1][1]
        if len(failures) == 1 and isinstance(last, OSError):
            raise last
        raise NoReachableHost(_listed(failures)) from last

    def _leave_all_but(self, primary: Address) -> None:
        for connection, address in list(self._connections.items()):
            if address != primary:
                connection.terminate()


_hosts: WeakKeyDictionary[Engine, HostList] = WeakKeyDictionary()


def attach(engine: AsyncEngine, hosts: HostList) -> AsyncEngine:
    """Remember whose connections are made by ``hosts``."""
    _hosts[engine.sync_engine] = hosts
    return engine


def attach_to_foreign_engine(engine: AsyncEngine) -> None:
    """Make the connections of a caller's engine, too, unless it has a way of its own to."""
    if hosts_of(engine) is not None:
        return
    hosts = HostList()
    attach(engine, hosts)

    def connect(_dialect: Any, _record: Any, _given: Any, parameters: dict[str, Any]) -> None:
        parameters.setdefault("async_creator_fn", hosts.connect)

    event.listen(engine.sync_engine, "do_connect", connect)


def hosts_of(engine: AsyncEngine) -> HostList | None:
    """The hosts of an engine."""
    return _hosts.get(engine.sync_engine)


_PRIMARY = ("read-write", "primary")

# Another host may do: it can't be reached, is starting or going down, or is of another kind.
_NOT_PRIMARY = (
    OSError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.TargetServerAttributeNotMatched,
)


async def _connect(
    address: Address, attributes: str | None, seconds: float, silence: int, given: dict[str, Any]
) -> asyncpg.Connection:
    host, port = address
    connection: asyncpg.Connection = await asyncpg.connect(
        host=host,
        port=port,
        target_session_attrs=attributes,
        timeout=seconds or None,
        **{"connection_class": _class_for(silence), **given},
    )
    return connection


@lru_cache
def _class_for(silence: int) -> type[asyncpg.Connection]:
    """The driver shows the socket to nobody but a connection's own class."""

    class Connection(asyncpg.Connection):  # type: ignore[misc]
        def __init__(
            self, protocol: Any, transport: asyncio.Transport, *rest: Any, **options: Any
        ) -> None:
            super().__init__(protocol, transport, *rest, **options)
            _notice_silence(transport.get_extra_info("socket"), silence)

    return Connection


def _notice_silence(line: Any, silence: int) -> None:
    """Have the kernel find out when the other host is gone. By default it takes a quarter of an
    hour to give up what was sent, and never does when only an answer is waited for. It is the
    other kernel that answers: a statement may take as long as it likes."""
    if line.family not in (socket.AF_INET, socket.AF_INET6) or silence == 0:
        return
    probes = max(1, round(silence / 1000 / KEEPALIVE_SECONDS) - 1)
    # By its number, since what an event loop shows of a socket need not take options.
    with socket.socket(fileno=os.dup(line.fileno())) as same:
        same.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (
            ("TCP_KEEPIDLE", KEEPALIVE_SECONDS),
            ("TCP_KEEPALIVE", KEEPALIVE_SECONDS),  # the same, on macOS
            ("TCP_KEEPINTVL", KEEPALIVE_SECONDS),
            ("TCP_KEEPCNT", probes),
            ("TCP_USER_TIMEOUT", silence),  # Linux: for what was sent, too
        ):
            if (number := getattr(socket, option, None)) is not None:
                same.setsockopt(socket.IPPROTO_TCP, number, value)


def _addresses(host: str | Sequence[str] | None, port: int | Sequence[int] | None) -> list[Address]:
    hosts = [host] if host is None or isinstance(host, str) else list(host)
    ports = [port] * len(hosts) if port is None or isinstance(port, int) else list(port)
    return list(zip(hosts, ports, strict=True))


def _listed(failures: list[tuple[Address, Exception]]) -> str:
    if len(failures) == 1:
        return _reason(failures[0][1])
    reasons = "; ".join(f"{host}:{port}: {_reason(error)}" for (host, port), error in failures)
    return f"no host can be used: {reasons}"


def _reason(error: Exception) -> str:
    if isinstance(error, asyncpg.TargetServerAttributeNotMatched):
        return "not the kind of server that is asked for (a standby, perhaps)"
    return str(error) or type(error).__name__

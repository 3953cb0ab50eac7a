"""Connect to the host that takes writes, out of the hosts of a URL.

The driver can walk a list of hosts too, but it has one timeout for all of them. A first host that
does not answer uses it up, and the others are never tried. Here each host has its own timeout, and
the host that was used last is tried first.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import asyncpg
from sqlalchemy import Dialect, event
from sqlalchemy.ext.asyncio import AsyncEngine

from sessionsdb.engine.postgresql.tcp_keepalive import UNANSWERED_MILLISECONDS, connection_class
from sessionsdb.private_apis import know_array_types

log = logging.getLogger("sessionsdb.storage")

CONNECT_SECONDS = 10.0
"""How long one host may take to accept a connection. ``connect_timeout`` in the URL."""

Address = tuple[str | None, int | None]
"""A host and a port. ``None`` leaves it to the driver: the environment, then its own default."""

SetUp = Callable[[asyncpg.Connection], Awaitable[None]]
"""Makes the settings of a new connection."""


class NoReachableHost(ConnectionError):
    """No host could be used. The message gives a reason for each. No statement was sent."""


class HostList:
    """The hosts of one engine, and the host that was used last.

    When the primary is found at another host than before, all connections to other hosts are
    closed. A server may hang while its host still acknowledges packets. These connections would
    stay open for ever then, and the calls on them would wait for ever.
    """

    def __init__(self, set_up: SetUp | None = None) -> None:
        self._set_up = set_up
        self._last_used: Address | None = None
        self._parameters: dict[str, Any] | None = None
        self._connections: WeakKeyDictionary[asyncpg.Connection, Address] = WeakKeyDictionary()

    @property
    def can_move(self) -> bool:
        """Whether the primary may move: there are several hosts, and connections want writes."""
        return (
            self._parameters is not None
            and isinstance(self._parameters["host"], list)
            and self._parameters["target_session_attrs"] in (None, *_PRIMARY)
        )

    async def check_primary(self) -> None:
        """Find out where the primary is, by a connection that is closed again."""
        if self._parameters is not None and self.can_move:
            with contextlib.suppress(Exception):  # then no primary is known, and nothing changes
                (await self.connect(**self._parameters)).terminate()

    async def check_answers(self) -> None:
        """Find out which host accepts connections, and close the connections to all other hosts.

        They may be to a server that hangs, and the calls on them would wait for ever.
        """
        if self._parameters is None:
            return
        answering: Address | None = None
        try:
            (await self.connect(**self._parameters)).terminate()
            answering = self._last_used
        except asyncpg.PostgresError:
            return  # a host answers, and refuses one more connection
        except Exception as error:
            log.debug("no host answers: %s", error)
        self._close_connections_except_to(answering)

    async def connect(
        self,
        *,
        host: str | Sequence[str] | None = None,
        port: int | Sequence[int] | None = None,
        target_session_attrs: str | None = None,
        connect_timeout: str | float = CONNECT_SECONDS,
        tcp_user_timeout: str | int = UNANSWERED_MILLISECONDS,
        timeout: float | None = None,
        **options: Any,
    ) -> asyncpg.Connection:
        """Connect as ``asyncpg.connect`` does, with two more parameters.

        Of several hosts, the first that can be reached and takes writes is used, unless
        ``target_session_attrs`` asks for another kind. Raises ``NoReachableHost`` or the error of
        the only host.
        """
        if timeout is not None:  # the driver's own parameter, in the connect_args of an engine
            connect_timeout = timeout
        self._parameters = {
            "host": host,
            "port": port,
            "target_session_attrs": target_session_attrs,
            "connect_timeout": connect_timeout,
            "tcp_user_timeout": tcp_user_timeout,
            **options,
        }
        addresses = _addresses(host, port)
        if target_session_attrs is None and len(addresses) > 1:
            target_session_attrs = "read-write"
        kinds = [target_session_attrs]
        if target_session_attrs == "prefer-standby":
            kinds = ["standby", "any"]
        failures: list[tuple[Address, Exception]] = []
        for kind in kinds:
            for address in sorted(addresses, key=lambda one: one != self._last_used):
                try:
                    connection = await _connect(
                        address, kind, float(connect_timeout), int(tcp_user_timeout), options
                    )
                    if self._set_up is not None:
                        await _set_up_or_close(connection, self._set_up)
                except _TRY_NEXT_HOST as error:
                    if isinstance(error, TimeoutError) and not str(error):
                        error = TimeoutError(f"no answer within {float(connect_timeout):g} s")
                    failures.append((address, error))
                else:
                    self._connections[connection] = address
                    if kind in _PRIMARY and len(addresses) > 1:
                        self._close_connections_except_to(address)
                    self._last_used = address
                    return connection
        last = failures[-1][1]
        if len(failures) == 1 and isinstance(last, OSError):
            raise last
        raise NoReachableHost(_reasons(failures)) from last

    def _close_connections_except_to(self, kept: Address | None) -> None:
        for connection, address in list(self._connections.items()):
            if address != kept:
                connection.terminate()


_host_lists: WeakKeyDictionary[Dialect, HostList] = WeakKeyDictionary()
"""By the dialect, which an engine shares with all engines that were made of it."""


def attach(engine: AsyncEngine, hosts: HostList) -> AsyncEngine:
    """Record the host list that makes the connections of an engine."""
    _host_lists[engine.dialect] = hosts
    # After SQLAlchemy's own listener, which sets the codecs of JSON: that forgets the array types.
    event.listen(engine.sync_engine, "connect", _know_array_types)
    return engine


def _know_array_types(connection: Any, _record: Any) -> None:
    know_array_types(connection.driver_connection)


def attach_to_foreign_engine(engine: AsyncEngine) -> None:
    """Make the connections of a caller's engine by a host list.

    An engine with an ``async_creator_fn`` of its own keeps it.
    """
    if hosts_of(engine) is not None:
        return
    hosts = HostList()
    attach(engine, hosts)

    def connect(_dialect: Any, _record: Any, _args: Any, parameters: dict[str, Any]) -> None:
        parameters.setdefault("async_creator_fn", hosts.connect)

    event.listen(engine.sync_engine, "do_connect", connect)


def hosts_of(engine: AsyncEngine) -> HostList | None:
    """Return the host list of an engine."""
    return _host_lists.get(engine.dialect)


_PRIMARY = ("read-write", "primary")

# Errors after which the next host is tried: this one can't be reached, is starting or shutting
# down, or is of another kind.
_TRY_NEXT_HOST = (
    OSError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.TargetServerAttributeNotMatched,
)


async def _connect(
    address: Address,
    kind: str | None,
    seconds: float,
    unanswered_milliseconds: int,
    options: dict[str, Any],
) -> asyncpg.Connection:
    host, port = address
    connection: asyncpg.Connection = await asyncpg.connect(
        host=host,
        port=port,
        target_session_attrs=kind,
        timeout=seconds or None,
        **{"connection_class": connection_class(unanswered_milliseconds), **options},
    )
    return connection


async def _set_up_or_close(connection: asyncpg.Connection, set_up: SetUp) -> None:
    # SQLAlchemy does not know the connection yet, and would not close it.
    try:
        await set_up(connection)
    except BaseException:
        connection.terminate()
        raise


def _addresses(host: str | Sequence[str] | None, port: int | Sequence[int] | None) -> list[Address]:
    hosts = [host] if host is None or isinstance(host, str) else list(host)
    ports = [port] * len(hosts) if port is None or isinstance(port, int) else list(port)
    return list(zip(hosts, ports, strict=True))


def _reasons(failures: list[tuple[Address, Exception]]) -> str:
    if len(failures) == 1:
        return _reason(failures[0][1])
    reasons = "; ".join(f"{host}:{port}: {_reason(error)}" for (host, port), error in failures)
    return f"no host can be used: {reasons}"


def _reason(error: Exception) -> str:
    if isinstance(error, asyncpg.TargetServerAttributeNotMatched):
        return "not the kind of server that is asked for (a standby, perhaps)"
    return str(error) or type(error).__name__

"""The client of an endpoint, one for each event loop: its connections belong to the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

Client = TypeVar("Client")


class LoopClients(Generic[Client]):
    """Gives the client of the running event loop, or the one that the caller gave.

    ``make`` is called once at once: a client reads certificates and imports modules, for 0.1 s,
    and the first turn should not pay for that.
    """

    def __init__(self, make: Callable[[], Client], given: Client | None = None) -> None:
        self._make = make
        self._given = given
        self._unused = make() if given is None else None
        self._made: tuple[asyncio.AbstractEventLoop, Client] | None = None

    def get(self) -> Client:
        if self._given is not None:
            return self._given
        loop = asyncio.get_running_loop()
        if self._made is None or self._made[0] is not loop:
            self._made = loop, self._unused or self._make()
            self._unused = None
        return self._made[1]

"""The client of an endpoint, one for each event loop: its connections belong to the loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

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
        self._made: WeakKeyDictionary[asyncio.AbstractEventLoop, Client] = WeakKeyDictionary()
        self._lock = threading.Lock()  # loops run in several threads

    def get(self) -> Client:
        if self._given is not None:
            return self._given
        loop = asyncio.get_running_loop()
        with self._lock:
            client = self._made.get(loop)
            if client is None:
                for ended in [one for one in self._made if one.is_closed()]:
                    del self._made[ended]  # the connections of its client refer to it
                client = self._made[loop] = self._unused or self._make()
                self._unused = None
        return client

"""Run synchronous operations of SQLAlchemy in a greenlet that is kept between them."""

from __future__ import annotations

import sys
from typing import Any, TypeVar

from greenlet import getcurrent
from sqlalchemy import Connection

from sessionsdb.engine.runner import Operation
from sessionsdb.private_apis import AwaitingGreenlet

T = TypeVar("T")


class _Server(AwaitingGreenlet):
    """A greenlet that runs one operation after another.

    Between two operations no frame of it refers to it. Otherwise it would never be freed: the
    garbage collector does not see into the frames of a greenlet.
    """

    def __init__(self) -> None:
        super().__init__(_serve)
        self.is_done = False
        self.answer: Any = None
        self.error: BaseException | None = None


class OperationGreenlet:
    """Runs operations, one at a time.

    ``AsyncConnection.run_sync`` makes a greenlet for each call, and Python a stack of frames for
    each greenlet. A lone ``SELECT 1`` takes 61 µs of processor time with this class, and 77 µs with
    ``run_sync``.
    """

    def __init__(self) -> None:
        self._server: _Server | None = None

    async def run(self, operation: Operation[T], connection: Connection) -> T:
        """Run an operation, and return its result or raise its error."""
        driver = getcurrent()
        server = self._server
        # Each thread has greenlets of its own, and an event loop may be run by several in turns.
        if server is None or server.parent is not driver:
            server = self._server = _Server()
            server.switch()  # to the wait for its first operation
        server.gr_context = driver.gr_context
        server.is_done = False
        awaitable = server.switch(operation, connection)
        while not server.is_done:
            try:
                value = await awaitable
            except BaseException:
                awaitable = server.throw(*sys.exc_info())
            else:
                awaitable = server.switch(value)
        server.gr_context = None
        answer: T = server.answer
        error = server.error
        server.answer = server.error = None
        if error is not None:
            try:
                raise error
            finally:
                del error  # it refers to this frame
        return answer


def _serve() -> None:
    while True:
        _run(*getcurrent().parent.switch())


def _run(operation: Operation[Any], connection: Connection) -> None:
    server: Any = getcurrent()
    try:
        server.answer = operation(connection)
    except BaseException as error:
        server.error = error
    server.is_done = True

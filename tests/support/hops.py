"""Count the work of a call: statements to a server, hops to the threads of SQLite."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


def ours(statements: list[str]) -> list[str]:
    """The statements without the notifications, which are sent beside them."""
    return [
        statement
        for statement in statements
        if "pg_notify" not in statement and statement != "DISCARD PLANS"
    ]


@contextmanager
def thread_hops() -> Iterator[list[str]]:
    """The calls that aiosqlite logs on its threads."""
    hops: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.msg.startswith("executing"):
                hops.append(record.getMessage())

    log, handler = logging.getLogger("aiosqlite"), Handler()
    level = log.level
    log.setLevel(logging.DEBUG)
    log.addHandler(handler)
    yield hops
    log.removeHandler(handler)
    log.setLevel(level)

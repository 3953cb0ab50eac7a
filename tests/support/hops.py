"""Count the work of a call: statements to a server, hops to the threads of SQLite."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


def ours(statements: list[str]) -> list[str]:
    """The statements without the ones of notifications, which are executed beside them."""
    beside = ("pg_notify", "LISTEN ", "DISCARD PLANS")
    return [statement for statement in statements if not any(map(statement.count, beside))]


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
    try:
        yield hops
    finally:
        log.removeHandler(handler)
        log.setLevel(level)

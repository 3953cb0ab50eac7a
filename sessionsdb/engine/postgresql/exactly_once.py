"""Write each request exactly once, also when the answer of the server is lost."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from sqlalchemy import Connection

from sessionsdb.engine.runner import ExecuteRequests, FindCommitted, Request, Result, Runner
from sessionsdb.engine.storage_errors import ConnectionLost

MAX_LOST_ANSWERS = 5
"""How many times in a row the answer of one write may be lost before the write fails."""


async def write_exactly_once(
    runner: Runner,
    requests: list[Request],
    execute: ExecuteRequests[Request, Result],
    find_committed: FindCommitted[Request, Result],
) -> list[Result]:
    """Execute all requests. After a lost answer, execute only requests that were not committed.

    Raises ``ConnectionLost`` if the answer was lost ``MAX_LOST_ANSWERS`` + 1 times.
    """
    results: dict[int, Result] = {}
    remaining = list(range(len(requests)))
    lost_answers = 0
    while remaining:
        batch = [requests[index] for index in remaining]
        try:
            executed = await runner.write_autocommit(
                partial(_execute, execute=execute, requests=batch)
            )
        except ConnectionLost:
            committed = await runner.read_durable(
                partial(_find_each, requests=batch, find_committed=find_committed)
            )
            found = {
                index: result
                for index, result in zip(remaining, committed, strict=True)
                if result is not None
            }
            results |= found
            remaining = [index for index in remaining if index not in found]
            lost_answers += 1
            if remaining and lost_answers > MAX_LOST_ANSWERS:
                raise
        else:
            if not results:
                return list(executed)
            results |= dict(zip(remaining, executed, strict=True))
            remaining = []
    return [results[index] for index in range(len(requests))]


def _execute(
    connection: Connection, execute: ExecuteRequests[Request, Result], requests: list[Request]
) -> Sequence[Result]:
    return execute(connection, requests)


def _find_each(
    connection: Connection,
    requests: list[Request],
    find_committed: FindCommitted[Request, Result],
) -> list[Result | None]:
    return [find_committed(connection, request) for request in requests]

"""Do each write exactly once, also when its answer is lost."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from sessionsdb.engine.storage_errors import ConnectionLost

Q = TypeVar("Q")
R = TypeVar("R")

LOST_ANSWERS = 5
"""How many lost connections in a row a write outlives."""


async def write_exactly_once(
    requests: Sequence[Q],
    serve: Callable[[list[Q]], Awaitable[Sequence[R]]],
    found: Callable[[list[Q]], Awaitable[Sequence[R | None]]],
) -> list[R]:
    """Serve all requests, each exactly once: when the answer is lost, ``found`` says which of
    them have their result already, and the others go again."""
    answers: dict[int, R] = {}
    left = list(range(len(requests)))
    for last in (False,) * LOST_ANSWERS + (True,):
        try:
            results = await serve([requests[i] for i in left])
        except ConnectionLost:
            settled = await found([requests[i] for i in left])
            answers |= {i: r for i, r in zip(left, settled, strict=True) if r is not None}
            left = [i for i in left if i not in answers]
            if last and left:
                raise
        else:
            if not answers:
                return list(results)
            answers |= dict(zip(left, results, strict=True))
            left = []
        if not left:
            break
    return [answers[i] for i in range(len(requests))]

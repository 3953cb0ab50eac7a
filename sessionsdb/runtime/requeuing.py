"""Requeue many dead messages, in one transaction after the other."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from sessionsdb import operations
from sessionsdb.runtime.database_access import WORK, DatabaseAccess

if TYPE_CHECKING:
    from sessionsdb.operations.requeuing import DeadFilter, DeadPosition


async def requeue_pages(database: DatabaseAccess, wanted: DeadFilter) -> int:
    """Requeue the dead messages that are wanted, and return how many there were."""
    until = await database.read(
        partial(operations.requeuing.latest_death, namespace=wanted.namespace)
    )
    count = 0
    after: DeadPosition | None = None
    while until is not None:
        page = await database.write(
            partial(operations.requeuing.requeue_page, wanted=wanted, after=after, until=until),
            wakes=lambda page: (WORK,) if page.requeued else (),
        )
        count, after = count + page.requeued, page.last
        if after is None:
            break
    return count

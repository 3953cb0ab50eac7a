"""Requeue all dead messages of one kind of error."""

from __future__ import annotations

from sessionsdb.database import SessionsDB, open_database_of
from sessionsdb.operations.requeuing import DeadFilter
from sessionsdb.runtime.requeuing import requeue_pages


async def requeue_kind(db: SessionsDB, kind: str) -> int:
    """Requeue the dead messages of a namespace whose errors have this name, and return how many.

    The name of an error is its text before the first colon: see ``kind_of_error``.
    """
    return await requeue_pages(open_database_of(db), DeadFilter(db.namespace, kind=kind))

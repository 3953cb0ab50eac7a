"""Delete the pieces of replies that no running turn owns, in small transactions."""

from __future__ import annotations

from functools import partial

from sessionsdb.operations import pieces
from sessionsdb.operations.piece_types import Run
from sessionsdb.runtime.database_access import DatabaseAccess

SWEEP_RUNS = 200
"""The runs that one transaction of a sweep looks at."""


async def sweep_pieces(database: DatabaseAccess, *, runs: int = SWEEP_RUNS) -> int:
    """Delete the void pieces of a whole database, and return of how many runs."""
    after: Run | None = pieces.BEFORE_ALL
    deleted = 0
    while after is not None:
        swept = await database.write_repeatable(
            partial(pieces.sweep, after=after, limit=runs), wakes=()
        )
        deleted, after = deleted + swept.deleted_runs, swept.last
    return deleted

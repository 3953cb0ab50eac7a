"""Delete old rows of a whole database, in small transactions between which other work goes on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from functools import partial

from sessionsdb.database import SessionsDB, open_database_of
from sessionsdb.operations import retention
from sessionsdb.operations.keys import SessionKey
from sessionsdb.operations.retention import RetentionRules, RowCounts
from sessionsdb.runtime.database_access import DONE, Topics
from sessionsdb.runtime.piece_sweep import sweep_pieces
from sessionsdb.types import Value

PAGE_SESSIONS = 200
"""Sessions in one transaction, at most."""

TRANSACTION_ROWS = 1_000
"""Rows that one transaction deletes, at most. Writers wait for it a few milliseconds."""

Progress = Callable[[int], object]
"""Called with the number of rows that were deleted since the last call."""


class PurgeResult(Value):
    """The rows of each table that were deleted, or would be. Rows of deleted sessions count too."""

    sessions: int = 0
    messages: int = 0
    """Messages of transcripts."""
    inbox: int = 0
    """Finished messages of inboxes."""
    kept: int = 0
    """Sessions past their retention that were kept, because sessions below them are not."""

    @property
    def total(self) -> int:
        return self.sessions + self.messages + self.inbox


def _result(rows: RowCounts, kept: int) -> PurgeResult:
    return PurgeResult(sessions=rows.sessions, messages=rows.messages, inbox=rows.inbox, kept=kept)


async def count(db: SessionsDB, rules: RetentionRules) -> PurgeResult:
    """Count the rows that ``purge`` would delete now. Deletes nothing."""
    read = open_database_of(db).read
    found, kept = RowCounts(), 0
    doomed: set[SessionKey] = set()
    if rules.ended_before is not None:
        expired: set[SessionKey] = set()
        async for page in _pages(db, rules, retention.ended_page):
            for key in page:
                if key in doomed:
                    continue
                subtree = await read(partial(retention.expired_subtree, rules=rules, key=key))
                fresh = [member for member in subtree if member not in doomed]
                expired.add(key)
                doomed.update(fresh)
                found = found.plus(await read(partial(retention.count_subtree, page=fresh)))
        kept = len(expired - doomed)
    if rules.messages_before is not None or rules.finished_before is not None:
        async for page in _pages(db, rules, retention.session_page):
            left = [key for key in page if key not in doomed]
            found = found.plus(await read(partial(retention.count_old, rules=rules, page=left)))
    return _result(found, kept)


async def purge(
    db: SessionsDB, rules: RetentionRules, progress: Progress = lambda _: None
) -> PurgeResult:
    """Delete the rows that the rules name, and return their numbers.

    All counters are correct after every transaction. An interrupted purge can be run again. Void
    pieces of streamed replies are deleted too, and not counted.
    """
    write = open_database_of(db).write
    deleted, kept = RowCounts(), 0
    if rules.ended_before is not None:
        async for page in _pages(db, rules, retention.ended_page):
            left = page
            while left:
                batch, left, refused = await write(
                    partial(retention.delete_ended, rules=rules, page=left, limit=TRANSACTION_ROWS),
                    wakes=_wakes,
                )
                deleted, kept = deleted.plus(batch), kept + refused
                progress(batch.total)
    if rules.messages_before is not None or rules.finished_before is not None:
        async for page in _pages(db, rules, retention.session_page):
            # Look without locks first: most pages have no old rows.
            old = await open_database_of(db).read(
                partial(retention.has_old, rules=rules, page=page)
            )
            left = page if old else []
            while left:
                batch, left = await write(
                    partial(retention.delete_old, rules=rules, page=left, limit=TRANSACTION_ROWS),
                    wakes=_wakes,
                )
                deleted = deleted.plus(batch)
                progress(batch.total)
    await sweep_pieces(open_database_of(db))
    return _result(deleted, kept)


def _wakes(result: tuple[RowCounts, *tuple[object, ...]]) -> Topics:
    """Wake the callers that wait for the outcome of a deleted message."""
    return (DONE,) if result[0].total else ()


ReadPage = Callable[..., list[SessionKey]]


async def _pages(
    db: SessionsDB, rules: RetentionRules, read_page: ReadPage
) -> AsyncIterator[list[SessionKey]]:
    last: SessionKey | None = None
    while page := await open_database_of(db).read(
        partial(read_page, rules=rules, after=last, limit=PAGE_SESSIONS)
    ):
        yield page
        last = page[-1]

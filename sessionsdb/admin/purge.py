"""Retention over a whole database, in small transactions that others' work goes on between."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from functools import partial

from sessionsdb.database import SessionsDB, open_database_of
from sessionsdb.operations import retention
from sessionsdb.operations.keys import SessionKey
from sessionsdb.operations.retention import RetentionRules, RowCounts
from sessionsdb.runtime.database_access import DONE, Topics
from sessionsdb.types import Value

PAGE_SESSIONS = 200
"""How many sessions a transaction looks after at most."""

TRANSACTION_ROWS = 1_000
"""How many rows a transaction deletes at most: a few milliseconds that writers wait."""

Progress = Callable[[int], object]
"""Told how many more rows have gone, or been counted."""


class Purged(Value):
    """What went, or would: rows of each table, those of deleted sessions among them."""

    sessions: int = 0
    messages: int = 0
    """Of transcripts."""
    inbox: int = 0
    """Finished messages of inboxes: receipts."""
    kept: int = 0
    """Sessions that ended long enough ago, but have others below them that did not."""

    @property
    def total(self) -> int:
        return self.sessions + self.messages + self.inbox


def _purged(rows: RowCounts, kept: int) -> Purged:
    return Purged(sessions=rows.sessions, messages=rows.messages, inbox=rows.inbox, kept=kept)


async def count(db: SessionsDB, rules: RetentionRules) -> Purged:
    """What ``purge`` would delete now. Reads only."""
    read = open_database_of(db).read
    found, kept = RowCounts(), 0
    going: set[SessionKey] = set()
    if rules.ended_before is not None:
        reached: set[SessionKey] = set()
        async for page in _pages(db, rules, retention.ended_page):
            for key in page:
                if key in going:
                    continue
                family = await read(partial(retention.expired_subtree, rules=rules, key=key))
                fresh = [one for one in family if one not in going]
                reached.add(key)
                going.update(fresh)
                found = found.plus(await read(partial(retention.count_subtree, page=fresh)))
        kept = len(reached - going)
    if rules.messages_before is not None or rules.finished_before is not None:
        async for page in _pages(db, rules, retention.session_page):
            left = [key for key in page if key not in going]
            found = found.plus(await read(partial(retention.count_old, rules=rules, page=left)))
    return _purged(found, kept)


async def purge(
    db: SessionsDB, rules: RetentionRules, progress: Progress = lambda _: None
) -> Purged:
    """Delete what the rules say. Every transaction leaves all counters true, so it can be broken
    off anywhere; the next run does the rest."""
    write = open_database_of(db).write
    gone, kept = RowCounts(), 0
    if rules.ended_before is not None:
        async for page in _pages(db, rules, retention.ended_page):
            left = page
            while left:
                some, left, keeps = await write(
                    partial(retention.delete_ended, rules=rules, page=left, limit=TRANSACTION_ROWS),
                    wakes=_wakes,
                )
                gone, kept = gone.plus(some), kept + keeps
                progress(some.total)
    if rules.messages_before is not None or rules.finished_before is not None:
        async for page in _pages(db, rules, retention.session_page):
            # A look without locks first: most pages have nothing to give.
            found = await open_database_of(db).read(
                partial(retention.count_old, rules=rules, page=page)
            )
            left = page if found.total else []
            while left:
                some, left = await write(
                    partial(retention.delete_old, rules=rules, page=left, limit=TRANSACTION_ROWS),
                    wakes=_wakes,
                )
                gone = gone.plus(some)
                progress(some.total)
    return _purged(gone, kept)


def _wakes(result: tuple[RowCounts, *tuple[object, ...]]) -> Topics:
    """Wake the callers that wait for the outcome of a deleted message."""
    return (DONE,) if result[0].total else ()


Listing = Callable[..., list[SessionKey]]


async def _pages(
    db: SessionsDB, rules: RetentionRules, listing: Listing
) -> AsyncIterator[list[SessionKey]]:
    last: SessionKey | None = None
    while page := await open_database_of(db).read(
        partial(listing, rules=rules, after=last, limit=PAGE_SESSIONS)
    ):
        yield page
        last = page[-1]

"""Retention over a whole database, in small transactions that others' work goes on between."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from functools import partial

from sessionsdb.database import SessionsDB
from sessionsdb.operations import retention
from sessionsdb.operations.locks import Key
from sessionsdb.operations.retention import Rows, Rules
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


def _purged(rows: Rows, kept: int) -> Purged:
    return Purged(sessions=rows.sessions, messages=rows.messages, inbox=rows.inbox, kept=kept)


async def count(db: SessionsDB, rules: Rules) -> Purged:
    """What ``purge`` would delete now. Reads only."""
    read = db._core.runner.read
    found, kept = Rows(), 0
    going: set[Key] = set()
    if rules.ended_before is not None:
        reached: set[Key] = set()
        async for page in _pages(db, rules, retention.ended):
            for key in page:
                if key in going:
                    continue
                family = await read(partial(retention.doomed, rules=rules, key=key))
                fresh = [one for one in family if one not in going]
                reached.add(key)
                going.update(fresh)
                found = found.plus(await read(partial(retention.held, family=fresh)))
        kept = len(reached - going)
    if rules.messages_before is not None or rules.finished_before is not None:
        async for page in _pages(db, rules, retention.keys):
            left = [key for key in page if key not in going]
            found = found.plus(await read(partial(retention.old, rules=rules, page=left)))
    return _purged(found, kept)


async def purge(db: SessionsDB, rules: Rules, progress: Progress = lambda _: None) -> Purged:
    """Delete what the rules say. Every transaction leaves all counters true, so it can be broken
    off anywhere; the next run does the rest."""
    write = db._core.runner.write
    gone, kept = Rows(), 0
    if rules.ended_before is not None:
        async for page in _pages(db, rules, retention.ended):
            left = page
            while left:
                some, left, keeps = await write(
                    partial(retention.remove_ended, rules=rules, page=left, most=TRANSACTION_ROWS)
                )
                gone, kept = gone.plus(some), kept + keeps
                progress(some.total)
    if rules.messages_before is not None or rules.finished_before is not None:
        async for page in _pages(db, rules, retention.keys):
            # A look without locks first: most pages have nothing to give.
            found = await db._core.runner.read(partial(retention.old, rules=rules, page=page))
            left = page if found.total else []
            while left:
                some, left = await write(
                    partial(retention.sweep, rules=rules, page=left, most=TRANSACTION_ROWS)
                )
                gone = gone.plus(some)
                progress(some.total)
    if gone.total:
        db._core.wakeups.announce("done")  # whoever waits on what is gone is told
    return _purged(gone, kept)


Listing = Callable[..., list[Key]]


async def _pages(db: SessionsDB, rules: Rules, listing: Listing) -> AsyncIterator[list[Key]]:
    last: Key | None = None
    while page := await db._core.runner.read(
        partial(listing, rules=rules, after=last, most=PAGE_SESSIONS)
    ):
        yield page
        last = page[-1]

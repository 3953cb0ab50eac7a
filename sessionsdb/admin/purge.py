"""Delete old rows of a whole database, in small transactions between which other work goes on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from functools import partial

from sessionsdb.database import SessionsDB, open_database_of
from sessionsdb.errors import InvalidArgument
from sessionsdb.operations import retention
from sessionsdb.operations.keys import SessionKey
from sessionsdb.operations.retention import RetentionRules, RowCounts
from sessionsdb.runtime.database_access import DONE, Topics
from sessionsdb.runtime.piece_sweep import sweep_pieces
from sessionsdb.types import Value

PAGE_SESSIONS = 200
"""Sessions that are looked at together, and the most in one transaction."""

TRANSACTION_ROWS = 1_000
"""Rows that one transaction deletes, about. Writers wait for it a few milliseconds."""

DUTY_CYCLE = 0.2
"""The share of the time in which a purge reads and writes. After each transaction, and after each
page without old rows, it rests for four times as long as its work took. Turns at the greatest rate
that a server allows keep over 80 % of it that way."""

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
    db: SessionsDB,
    rules: RetentionRules,
    progress: Progress = lambda _: None,
    *,
    duty_cycle: float = DUTY_CYCLE,
) -> PurgeResult:
    """Delete the rows that the rules name, and return their numbers.

    All counters are correct after every transaction. An interrupted purge can be run again. Void
    pieces of streamed replies are deleted too, and not counted.

    ``duty_cycle`` is the share of the time in which the purge reads and writes, over 0 and at most
    1. With 1 it does not rest.
    """
    if not 0 < duty_cycle <= 1:
        raise InvalidArgument(f"duty_cycle must be over 0 and at most 1, not {duty_cycle!r}")
    write = open_database_of(db).write
    deleted, kept = RowCounts(), 0
    pace = _Pace(duty_cycle)
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
                await pace.rest()
    if rules.messages_before is not None or rules.finished_before is not None:
        async for page in _pages(db, rules, retention.session_page):
            # Look without locks first: most pages have no old rows.
            old = await open_database_of(db).read(
                partial(retention.sessions_with_old, rules=rules, page=page)
            )
            if not old:
                await pace.rest()
            for part in _transactions(old):
                left = part
                while left:
                    batch, left = await write(
                        partial(
                            retention.delete_old, rules=rules, page=left, limit=TRANSACTION_ROWS
                        ),
                        wakes=_wakes,
                    )
                    deleted = deleted.plus(batch)
                    progress(batch.total)
                    await pace.rest()
    await sweep_pieces(open_database_of(db))
    return _result(deleted, kept)


class _Pace:
    """Leaves the database to others, for a part of the time."""

    def __init__(self, duty_cycle: float) -> None:
        self._rests_per_work = 1 / duty_cycle - 1
        self._began = time.monotonic()

    async def rest(self) -> None:
        """Rest as long as the work since the last rest demands."""
        await asyncio.sleep((time.monotonic() - self._began) * self._rests_per_work)
        self._began = time.monotonic()


def _transactions(rows: Mapping[SessionKey, int]) -> Iterator[list[SessionKey]]:
    """Split the sessions so that each part has at most the rows of one transaction.

    A transaction locks its sessions until it commits. So it gets no more than it can delete. A
    session with more rows is a part of its own.
    """
    part: list[SessionKey] = []
    total = 0
    for key, count in rows.items():
        if part and total + count > TRANSACTION_ROWS:
            yield part
            part, total = [], 0
        part.append(key)
        total += count
    if part:
        yield part


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

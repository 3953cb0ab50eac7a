"""Read pages of history, and remember the newest ones so that the next read is of newer rows only.

A handler reads the end of its transcript at every turn: the messages of the turn before, and a few
more. The statement tells whether the remembered ones still stand, see ``operations/newer_rows.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING

from sessionsdb.engine.keyed_batcher import KeyedBatcher
from sessionsdb.engine.storage_errors import DataDamaged
from sessionsdb.errors import UnknownSession
from sessionsdb.operations import history
from sessionsdb.operations.history import PageRequest, PageRows
from sessionsdb.operations.newer_rows import NO_STATE, NewRows, ReadState
from sessionsdb.operations.remembered_page import NO_PAGE, RememberedPage, join
from sessionsdb.runtime.database_access import DatabaseAccess
from sessionsdb.runtime.remembered import Remembered

if TYPE_CHECKING:
    from sessionsdb.operations.history_page import HistoryPage
    from sessionsdb.types import SessionMessage

REMEMBERED_BYTES = 32_000_000
"""The memory of all remembered pages, about."""

REMEMBERED_PAGE_BYTES = 2_000_000
"""A larger page is not remembered. Each caller gets metadata of its own, which is parsed on the
event loop: 1,000 messages with 10 KB each would hold the loop up for 0.2 s."""

MAX_BETWEEN = 30_000
"""A page is remembered at its second read, unless so many messages of other pages were read since
the first: see ``Remembered``. About so many messages of 400 characters fit."""

REMEMBERED_FROM = 30
"""A shorter page is not remembered. Of 20 messages a lone caller would wait 1.1 times as long for a
page that stands, and 64 callers 0.75 times as long."""

REMEMBERED_TO = 1_000
"""A longer page is not remembered. To make its messages would hold the event loop up."""

MAX_PAGES = 16
"""At most this many pages are read in one batch. 64 callers read 9,100 pages of 50 a second on
PostgreSQL, and 8,300 in batches of 64. On SQLite there are 7,400 instead of 6,500."""

MAX_BATCHED_MESSAGES = 200
"""A page of more messages is read alone, so that no other page waits for it."""


class HistoryPages:
    """Reads pages, and remembers those that are read again and again."""

    def __init__(self, database: DatabaseAccess) -> None:
        self._database = database
        self.remembered: Remembered[HistoryPage, RememberedPage] = Remembered(
            min_messages=REMEMBERED_FROM,
            max_bytes=REMEMBERED_BYTES,
            max_value_bytes=REMEMBERED_PAGE_BYTES,
            max_between=MAX_BETWEEN,
        )
        # Reads need no order. Those of one page go in one batch.
        self._batches: KeyedBatcher[PageRequest, PageRows | None] = KeyedBatcher(
            self._read_batch,
            key=itemgetter(0),
            count=database.parallel_batches,
            max_batch=MAX_PAGES,
            spill_at=MAX_PAGES,
        )

    async def read(self, page: HistoryPage) -> list[SessionMessage]:
        """Return the messages of a page, newest last. Raises ``UnknownSession``.

        Concurrent pages share a read. If the rows of one of them are damaged, each is read alone.
        """
        self._database.require_not_closed()
        if not self._may_be_remembered(page):
            return await self._read_whole(page)
        known = self.remembered.get(page)
        if known is None and not self.remembered.is_due(page):
            messages = await self._read_whole(page)
            self.remembered.note(page, len(messages))
            return messages
        try:
            joined = await self._read_again(page, known or NO_PAGE)
        except UnknownSession:
            self.remembered.forget(page)
            raise
        self.remembered.note(page, len(joined.kept), joined)
        return joined.messages()

    async def drain(self) -> None:
        """Wait until no batch is in flight."""
        await self._batches.drain()

    def clear(self) -> None:
        """Forget all pages."""
        self.remembered.clear()

    def _may_be_remembered(self, page: HistoryPage) -> bool:
        return (
            self.remembered.min_messages <= page.limit <= REMEMBERED_TO
            and page[3:] == (None, None, None)
            and not self._database.runner.sees_uncommitted
        )

    async def _read_whole(self, page: HistoryPage) -> list[SessionMessage]:
        if page.limit <= MAX_BATCHED_MESSAGES:
            rows = await self._batches.submit(PageRequest(page))
            if rows is not None:
                assert not isinstance(rows, NewRows)
                return history.messages_of(rows)
        # SQLite makes the messages beside the event loop, in the thread of the connection.
        return await self._database.read(partial(history.read_page, page=page))

    async def _read_again(self, page: HistoryPage, remembered: RememberedPage) -> RememberedPage:
        joined = join(remembered, await self._read_new(page, remembered.state), page.limit)
        if joined is None:
            joined = join(NO_PAGE, await self._read_new(page, NO_STATE), page.limit)
            assert joined is not None
        return joined

    async def _read_new(self, page: HistoryPage, remembered: ReadState) -> NewRows:
        request = PageRequest(page, remembered)
        rows: PageRows | None = None
        if page.limit <= MAX_BATCHED_MESSAGES:
            rows = await self._batches.submit(request)
        if rows is None:
            [answer] = await self._database.read(partial(history.read, requests=[request]))
            if isinstance(answer, UnknownSession):
                raise answer
            rows = answer
        assert isinstance(rows, NewRows)
        return rows

    async def _read_batch(
        self, requests: list[PageRequest]
    ) -> Sequence[PageRows | UnknownSession | None]:
        """Return the rows of each page, or ``None`` for all of them if each is to be read alone."""
        try:
            return await self._database.read(partial(history.read, requests=requests))
        except DataDamaged:
            if len(requests) == 1:
                raise
            return [None] * len(requests)  # the rows of one page are to blame

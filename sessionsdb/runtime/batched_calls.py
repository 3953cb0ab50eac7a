"""The hot operations, coalesced: what many callers ask for in one moment goes as one list.

Each is written by a single statement on PostgreSQL. When its answer is lost with the connection,
every request of the batch is looked up, and only those that were not committed go again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from operator import itemgetter
from uuid import uuid4

from sessionsdb.engine.exactly_once import (
    write_exactly_once,
)
from sessionsdb.engine.keyed_batcher import KeyedBatcher
from sessionsdb.engine.runner import Runner
from sessionsdb.engine.storage_errors import StatementRefused
from sessionsdb.engine.tasks import (
    result_or_raise,
)
from sessionsdb.errors import SessionsDBError, StorageError, UnknownSession
from sessionsdb.operations import history, mailbox, transcripts
from sessionsdb.operations.history import HistoryPage
from sessionsdb.operations.inbox_types import Send
from sessionsdb.operations.transcripts import Append
from sessionsdb.runtime.database_access import WORK, DatabaseAccess
from sessionsdb.types import Limits, Receipt, SessionMessage

PAGES_TOGETHER = 64

LONG_PAGE = 200
"""A page of more messages is read by itself."""


def parallel_batches(runner: Runner) -> int:
    """How many batches of one kind are in flight at once. SQLite has one writer, and two readers
    at once have Python's lock between them: 4,300 pages of 50 a second, and 8,600 by one."""
    return 1 if runner.engine.dialect.name == "sqlite" else 2


_session: Callable[[Append | Send], tuple[str, str]] = itemgetter(0, 1)
"""The namespace and the id of the session that a request is for."""


def _itself(page: HistoryPage) -> HistoryPage:
    """Pages need no order."""
    return page


class BatchedCalls:
    """The coalescers of one database."""

    def __init__(self, database: DatabaseAccess, limits: Limits) -> None:
        self._runner = runner = database.runner
        self._limits = limits
        streams = parallel_batches(runner)
        self._appends: KeyedBatcher[Append, int] = KeyedBatcher(
            self._append, key=_session, count=streams
        )
        self._sends: KeyedBatcher[Send, Receipt] = KeyedBatcher(
            database.waking(self._send, wakes=(WORK,)), key=_session, count=streams
        )
        self._pages: KeyedBatcher[HistoryPage, list[SessionMessage]] = KeyedBatcher(
            self._read_pages, key=_itself, count=streams, most=PAGES_TOGETHER
        )

    async def append(self, request: Append) -> int:
        """The transcript's new version."""
        if request.expected_version is not None:  # decided by what came before it: goes alone
            [answer] = await self._append([request])
            return result_or_raise(answer)
        return await self._appends.submit(request)

    async def send(self, request: Send) -> Receipt:
        return await self._sends.submit(request)

    async def history(self, page: HistoryPage) -> list[SessionMessage]:
        """Raises ``UnknownSession``."""
        if page.limit > LONG_PAGE:  # the others shall not wait for it
            [answer] = await self._read_pages([page])
            return result_or_raise(answer)
        return await self._pages.submit(page)

    async def drain(self) -> None:
        await self._appends.drain()
        await self._sends.drain()
        await self._pages.drain()

    async def _read_pages(
        self, pages: list[HistoryPage]
    ) -> Sequence[list[SessionMessage] | SessionsDBError]:
        return await self._runner.read(partial(history.read, pages=pages))

    async def _append(self, requests: list[Append]) -> Sequence[int | SessionsDBError]:
        if self._runner.engine.dialect.name == "sqlite":
            return await self._runner.write(partial(transcripts.append, requests=requests))
        stamp = uuid4().hex
        answers = await write_exactly_once(
            requests,
            lambda left: self._runner.statement(
                partial(transcripts.append, requests=left, create=False, write_id=stamp)
            ),
            lambda left: self._runner.read_durable(
                lambda c: [transcripts.find_appended(c, request, stamp) for request in left]
            ),
        )
        # Making a session takes a second statement, so a transaction.
        missing = [i for i, answer in enumerate(answers) if isinstance(answer, UnknownSession)]
        if missing:
            made = await self._append_making([requests[i] for i in missing])
            for i, answer in zip(missing, made, strict=True):
                answers[i] = answer
        return answers

    async def _append_making(self, requests: list[Append]) -> Sequence[int | SessionsDBError]:
        """What fails here is an answer like others: the rest of the batch is committed, and must
        not go again."""
        try:
            return await self._runner.write(partial(transcripts.append, requests=requests))
        except StatementRefused as error:
            if len(requests) == 1:
                return [error]
            # one of them is bad, and it shall fail alone
            return [answer for one in requests for answer in await self._append_making([one])]
        except StorageError as error:
            return [error] * len(requests)

    async def _send(self, requests: list[Send]) -> Sequence[Receipt | SessionsDBError]:
        together, later = mailbox.split_conflicting_keys(requests)
        if not later:
            return await self._send_list(requests)
        first = await self._send_list([requests[i] for i in together])
        answers: dict[int, Receipt | SessionsDBError] = dict(zip(together, first, strict=True))
        for i in later:
            # What fails here fails alone: the others are committed.
            try:
                [answers[i]] = await self._send_list([requests[i]])
            except StorageError as error:
                answers[i] = error
        return [answers[i] for i in range(len(requests))]

    async def _send_list(self, requests: list[Send]) -> Sequence[Receipt | SessionsDBError]:
        return await write_exactly_once(
            requests,
            lambda left: self._runner.statement(
                partial(mailbox.send, requests=left, limits=self._limits)
            ),
            lambda left: self._runner.read_durable(
                lambda c: [mailbox.find_sent(c, request) for request in left]
            ),
        )

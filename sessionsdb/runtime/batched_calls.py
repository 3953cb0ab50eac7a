"""The calls that many callers make at the same time, in batches: append, send and update.

On PostgreSQL one SQL statement writes a batch. When its answer is lost with the connection, each
request of the batch is looked up. Only requests that were not committed are sent again. A batch of
updates is one transaction with one stamp.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING

from sessionsdb import operations
from sessionsdb.engine.keyed_batcher import KeyedBatcher
from sessionsdb.engine.storage_errors import ONE_IS_BAD
from sessionsdb.engine.tasks import result_or_raise
from sessionsdb.errors import SessionsDBError, StorageError, UnknownSession
from sessionsdb.runtime.database_access import WORK, DatabaseAccess
from sessionsdb.types import Limits, Receipt, SessionDetails

if TYPE_CHECKING:
    from sessionsdb.messages.codec import StoredMessage
    from sessionsdb.operations.inbox_types import Send
    from sessionsdb.operations.keys import SessionKey
    from sessionsdb.operations.session_rows import SessionChange
    from sessionsdb.operations.transcript_types import Append

MAX_CHARACTERS = 32_000_000
"""A batch with more text than this is one request. PostgreSQL fails a statement of 1 GB, and the
requests of a batch fail together then."""

MAX_NEW = 64
"""At most this many sessions are created with their messages in one batch."""

_session_key: Callable[[Append | Send | SessionChange], SessionKey] = itemgetter(0, 1)
"""The namespace and the id of a request's session: requests of one session keep their order."""


def characters(messages: Iterable[StoredMessage]) -> int:
    """Return about how much text a statement with these messages has."""
    total = 0
    for _, content, payload in messages:
        total += len(content) if payload is None else len(content) + len(payload)
    return total


def _characters_of_append(request: Append) -> int:
    return characters(request.messages)


def _characters_of_send(request: Send) -> int:
    _, content, payload = request.message
    return len(content) if payload is None else len(content) + len(payload)


class BatchedCalls:
    """The batchers of one database.

    SQLite's runner commits in groups too, but it runs each operation of a group alone. Batches in
    front of it let 64 concurrent sends or appends go 1.5 times as fast. There are 4,000 sends a
    second instead of 2,700, and a send takes 54 µs of processor time instead of 89.
    """

    def __init__(self, database: DatabaseAccess, limits: Limits) -> None:
        self._database = database
        self._limits = limits
        count = database.parallel_batches
        self._appends: KeyedBatcher[Append, int] = KeyedBatcher(
            self._append,
            key=_session_key,
            count=count,
            weight=_characters_of_append,
            max_weight=MAX_CHARACTERS,
            apart=database.locked_sessions,
        )
        self._sends: KeyedBatcher[Send, Receipt] = KeyedBatcher(
            self._send,
            key=_session_key,
            count=count,
            weight=_characters_of_send,
            max_weight=MAX_CHARACTERS,
            apart=database.locked_sessions,
        )
        self._new: KeyedBatcher[Append, int] = KeyedBatcher(
            self._append_to_new,
            key=_session_key,
            count=count,
            max_batch=MAX_NEW,
            weight=_characters_of_append,
            max_weight=MAX_CHARACTERS,
            spill_at=MAX_NEW,
        )
        self._changes: KeyedBatcher[SessionChange, SessionDetails] = KeyedBatcher(
            self._change, key=_session_key, count=count, apart=database.locked_sessions
        )

    async def append(self, request: Append) -> int:
        """Append messages, and return the new version of the transcript."""
        self._database.require_not_closed()
        if request.expected_version is not None:  # alone: its result depends on earlier requests
            [answer] = await self._append([request])
            return result_or_raise(answer)
        return await self._appends.submit(request)

    async def append_to_new(self, request: Append) -> int:
        """Append messages to a session that does not exist, in one transaction with the requests
        for other sessions. Raises ``VersionConflict`` for a session that exists.

        ``expected_version`` is 0. Alone each request is seven round trips on PostgreSQL: an import
        of sessions with 100 messages took 33 µs a message of this process and 60 µs of the server.
        Together it takes 21 µs and 19 µs.
        """
        self._database.require_not_closed()
        return await self._new.submit(request)

    async def send(self, request: Send) -> Receipt:
        self._database.require_not_closed()
        return await self._sends.submit(request)

    async def update(self, change: SessionChange) -> SessionDetails:
        """Set columns of a session, and return the session. Raises ``UnknownSession``."""
        self._database.require_not_closed()
        return await self._changes.submit(change)

    async def drain(self) -> None:
        """Wait until no batch is in flight."""
        await self._appends.drain()
        await self._new.drain()
        await self._sends.drain()
        await self._changes.drain()

    async def _append(self, requests: list[Append]) -> Sequence[int | SessionsDBError]:
        write_id = os.urandom(16).hex()
        creates = self._database.has_one_writer
        answers = await self._database.write_exactly_once(
            requests,
            partial(operations.transcripts.append, create=creates, write_id=write_id),
            partial(operations.transcripts.find_appended, write_id=write_id),
            wakes=(),
        )
        if creates:
            return answers
        # On PostgreSQL creating a session takes a second statement, so a transaction.
        missing = [i for i, answer in enumerate(answers) if isinstance(answer, UnknownSession)]
        if missing:
            created = await self._append_creating([requests[i] for i in missing])
            for i, answer in zip(missing, created, strict=True):
                answers[i] = answer
        return answers

    async def _append_to_new(self, requests: list[Append]) -> Sequence[int | SessionsDBError]:
        """Append to new sessions: of several requests for one session the first, then the next.

        Two imports may have the same sessions. The result of the later request depends on the
        earlier one, and they are not served as one.
        """
        seen: set[SessionKey] = set()
        first, later = list[int](), list[int]()
        for i, request in enumerate(requests):
            key = _session_key(request)
            (later if key in seen else first).append(i)
            seen.add(key)
        answers = dict(
            zip(first, await self._append_creating([requests[i] for i in first]), strict=True)
        )
        if later:
            rest = await self._append_to_new([requests[i] for i in later])
            answers |= zip(later, rest, strict=True)
        return [answers[i] for i in range(len(requests))]

    async def _append_creating(self, requests: list[Append]) -> Sequence[int | SessionsDBError]:
        """Append to sessions that do not exist yet.

        A failure is returned, not raised: the rest of the batch is committed, and must not be
        written again.
        """
        try:
            return await self._database.write(
                partial(operations.transcripts.append, requests=requests), wakes=()
            )
        except ONE_IS_BAD as error:
            if len(requests) == 1:
                return [error]
            # One request is bad, and only that one fails.
            return [answer for one in requests for answer in await self._append_creating([one])]
        except StorageError as error:
            return [error] * len(requests)

    async def _change(
        self, changes: list[SessionChange]
    ) -> Sequence[SessionDetails | SessionsDBError]:
        if len(changes) == 1:
            return await self._change_group(changes)
        answers: dict[int, SessionDetails | SessionsDBError] = {}
        for group in operations.session_changes.grouped(changes):
            answers |= zip(
                group, await self._change_group([changes[i] for i in group]), strict=True
            )
        return [answers[i] for i in range(len(changes))]

    async def _change_group(
        self, changes: list[SessionChange]
    ) -> Sequence[SessionDetails | SessionsDBError]:
        """Change sessions in one transaction. A failure is returned: other groups are committed."""
        try:
            return await self._database.write(
                partial(operations.session_changes.change, changes=changes), wakes=()
            )
        except ONE_IS_BAD as error:
            if len(changes) == 1:
                return [error]
            # One change is bad, and only that one fails.
            return [answer for one in changes for answer in await self._change_group([one])]
        except StorageError as error:
            return [error] * len(changes)

    async def _send(self, requests: list[Send]) -> Sequence[Receipt | SessionsDBError]:
        if len(requests) == 1:
            return await self._send_list(requests)
        groups = operations.mailbox.group_by_key(requests)
        sent = await self._send_list([requests[i] for i in groups.first])
        answers: dict[int, Receipt | SessionsDBError] = dict(zip(groups.first, sent, strict=True))
        for i, first in groups.repeats.items():
            answers[i] = requests[i].repeated(answers[first])
        for i in groups.later:
            # An error here is for this request alone: the others are committed.
            try:
                [answers[i]] = await self._send_list([requests[i]])
            except StorageError as error:
                answers[i] = error
        return [answers[i] for i in range(len(requests))]

    async def _send_list(self, requests: list[Send]) -> Sequence[Receipt | SessionsDBError]:
        answers = await self._database.write_exactly_once(
            requests,
            partial(operations.mailbox.send, limits=self._limits),
            operations.mailbox.find_sent,
            wakes=(WORK,),
        )
        for index, one in enumerate(answers):
            if isinstance(one, operations.inbox_types.AnswerWanted):
                answers[index] = await self._send_beside_question(requests[index])
        return answers

    async def _send_beside_question(self, request: Send) -> Receipt | SessionsDBError:
        """Send a message to a session whose question may take it as the answer.

        A failure is returned, not raised: the rest of the batch is committed.
        """
        try:
            [answer] = await self._database.write(
                partial(
                    operations.question_answers.send_beside_question,
                    requests=[request],
                    limits=self._limits,
                ),
                wakes=(WORK,),
            )
        except StorageError as error:
            return error
        return answer

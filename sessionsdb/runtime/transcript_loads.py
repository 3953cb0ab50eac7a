"""Load transcripts, and remember their rows so that the next load reads only the newer ones.

An agent loads its transcript at every turn: the messages of the turn before, and a few more. The
statement tells whether the remembered rows still stand, see ``operations/newer_rows.py``. Each load
makes its messages anew from the rows, so a caller may change them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING

from sqlalchemy import Connection

from sessionsdb.engine.keyed_batcher import KeyedBatcher
from sessionsdb.engine.storage_errors import DataDamaged
from sessionsdb.operations import loading, transcripts
from sessionsdb.operations.loading import NO_ROWS, Load, Loaded
from sessionsdb.runtime.database_access import DatabaseAccess
from sessionsdb.runtime.remembered import Remembered

if TYPE_CHECKING:
    from sessionsdb.messages.codec import Message
    from sessionsdb.operations.keys import SessionKey
    from sessionsdb.operations.postgresql.loading import Answer

REMEMBERED_BYTES = 32_000_000
"""The memory of all remembered rows, about."""

MAX_BETWEEN = 50_000
"""Rows are remembered at their second load, unless so many messages of other transcripts were
loaded since the first: see ``Remembered``."""

REMEMBERED_FROM = 40
"""A shorter transcript is not remembered. To read it takes as long as to check that it stands."""

MADE_IN_LOOP_BYTES = 1_000_000
"""The messages of a larger transcript of SQLite are made in the thread of the connection.

Messages that are made there wait for the event loop, and leave the processor's cache. Of 64 callers
a load of 400 takes 205 µs then. If each caller makes its own messages, it takes 99 µs.
"""

MAX_LOADS = 16
"""At most this many transcripts are loaded in one batch. A turn is a load of 20 messages and an
append of two: 64 callers on PostgreSQL take 9,900 a second, and 6,800 if each loads alone."""


class TranscriptLoads:
    """Loads transcripts, and remembers the rows of those that are loaded again and again."""

    def __init__(self, database: DatabaseAccess) -> None:
        self._database = database
        self.remembered: Remembered[SessionKey, Loaded] = Remembered(
            min_messages=REMEMBERED_FROM,
            max_bytes=REMEMBERED_BYTES,
            max_value_bytes=REMEMBERED_BYTES,
            max_between=MAX_BETWEEN,
        )
        self._batches: KeyedBatcher[Load, Answer] = KeyedBatcher(
            self._load_short,
            key=itemgetter(0),
            count=database.parallel_batches,
            max_batch=MAX_LOADS,
            spill_at=MAX_LOADS,
        )
        self._loads_alone = 0
        """How many transcripts are being loaded by a statement of their own."""

    async def load(self, key: SessionKey) -> list[Message] | None:
        """Return the whole transcript as new objects, or ``None`` for an unknown session."""
        self._database.require_not_closed()
        remembered = self.remembered.get(key)
        if remembered is None and self._is_due(key):
            remembered = NO_ROWS
        request = Load(key, remembered)
        loaded: Loaded | None
        messages: list[Message] | None
        if self._database.has_one_writer:
            loaded, messages = await self._database.read(partial(_load_from_file, request=request))
        else:
            loaded, messages = await self._load(request), None
        if loaded is not None and messages is None:
            messages = loaded.messages()
        self.remembered.note(key, len(messages or ()), loaded)
        return messages

    async def drain(self) -> None:
        """Wait until no batch is in flight."""
        await self._batches.drain()

    def clear(self) -> None:
        """Forget all rows."""
        self.remembered.clear()

    def _is_due(self, key: SessionKey) -> bool:
        return self.remembered.is_due(key) and not self._database.runner.sees_uncommitted

    # ---- the batches of PostgreSQL ------------------------------------------------------------

    async def _load(self, request: Load) -> Loaded | None:
        """Load a transcript from PostgreSQL.

        A lone caller has a statement of its own. So has a long transcript of which nothing is
        remembered: the shared statement would only look up that it is long. A turn over 400
        messages, of 64 at once, would take 330 µs of processor time instead of 312. If the rows of
        a transcript are damaged, those that shared its statement are loaded alone.
        """
        from sessionsdb.operations.postgresql.loading import MAX_MESSAGES, NotLoaded

        if self._loads_alone:
            last = self.remembered.last_read(request.key)
            if last is None or last.length <= MAX_MESSAGES:
                shared = await self._batches.submit(request)
                if not isinstance(shared, NotLoaded):
                    return shared
        self._loads_alone += 1
        try:
            return await self._database.read(partial(loading.load, request=request))
        finally:
            self._loads_alone -= 1

    async def _load_short(self, requests: list[Load]) -> Sequence[Answer]:
        from sessionsdb.operations.postgresql.loading import NotLoaded, load_short

        try:
            return await self._database.read(partial(load_short, requests=requests))
        except DataDamaged:
            if len(requests) == 1:
                raise
            return [NotLoaded()] * len(requests)  # the rows of one transcript are to blame


def _load_from_file(
    connection: Connection, request: Load
) -> tuple[Loaded | None, list[Message] | None]:
    """Load a transcript from SQLite. Return its rows, or its messages, or nothing if it is unknown.

    The messages are made here if nothing is to be remembered, or if they would hold the loop up.
    """
    if request.remembered is None:
        return None, transcripts.load(connection, *request.key)
    loaded = loading.load(connection, request)
    if loaded is None or loaded.size <= MADE_IN_LOOP_BYTES:
        return loaded, None
    return loaded, loaded.messages()

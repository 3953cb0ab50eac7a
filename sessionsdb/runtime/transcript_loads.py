"""Load transcripts, and remember their rows so that the next load reads only the newer ones.

An agent loads its transcript at every turn: the messages of the turn before, and a few more. The
statement tells whether the remembered rows still stand, see ``operations/loading.py``. Each load
makes its messages anew from the rows, so a caller may change them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy import Connection

from sessionsdb.engine.keyed_batcher import KeyedBatcher
from sessionsdb.engine.storage_errors import DataDamaged
from sessionsdb.operations import loading, transcripts
from sessionsdb.operations.loading import NO_ROWS, Load, Loaded
from sessionsdb.runtime.database_access import DatabaseAccess

if TYPE_CHECKING:
    from sessionsdb.messages.codec import Message
    from sessionsdb.operations.keys import SessionKey
    from sessionsdb.operations.postgresql.loading import Answer

REMEMBERED_BYTES = 32_000_000
"""The memory of all remembered rows, about. The rows that were used longest ago are dropped."""

REMEMBERED_AFTER = 50_000
"""The rows of a transcript are remembered at its second load, unless more messages of others were
loaded since the first. So a program that loads each transcript once remembers none. Neither does
one that goes through many more transcripts than fit, again and again."""

REMEMBERED_FROM = 40
"""A shorter transcript is not remembered. To read it takes as long as to check that it stands."""

MADE_IN_LOOP_BYTES = 1_000_000
"""The messages of a larger transcript of SQLite are made in the thread of the connection.

Messages that are made there wait for the event loop, and leave the processor's cache. Of 64 callers
a load of 400 takes 205 µs then. If each caller makes its own messages, it takes 99 µs.
"""

MAX_LOADED = 10_000
"""The last load of at most this many transcripts is noted."""

MAX_LOADS = 16
"""At most this many transcripts are loaded in one batch. A turn is a load of 20 messages and an
append of two: 64 callers on PostgreSQL take 9,900 a second, and 6,800 if each loads alone."""


class _LastLoad(NamedTuple):
    """The last load of a transcript whose rows are not remembered."""

    length: int
    """The number of its messages."""
    loaded_before: int
    """How many messages were loaded without being remembered until then."""
    is_too_large: bool
    """Whether the rows can't be remembered for their size."""


class TranscriptLoads:
    """Loads transcripts, and remembers the rows of those that are loaded again and again."""

    def __init__(self, database: DatabaseAccess) -> None:
        self._database = database
        self._remembered: OrderedDict[SessionKey, Loaded] = OrderedDict()
        self._size = 0
        self._last_loads: dict[SessionKey, _LastLoad] = {}
        self._loaded = 0
        """How many messages were loaded without being remembered."""
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
        self._database.require_home()
        request = Load(key, self._remembered.get(key) or self._to_be_remembered(key))
        loaded: Loaded | None
        messages: list[Message] | None
        if self._database.has_one_writer:
            loaded, messages = await self._database.read(partial(_load_from_file, request=request))
        else:
            loaded, messages = await self._load(request), None
        if loaded is not None and messages is None:
            messages = loaded.messages()
        if loaded is not None and loaded.size:
            self._remember(key, loaded)
        else:
            self._note_load(key, len(messages or ()))
        return messages

    async def drain(self) -> None:
        """Wait until no batch is in flight."""
        await self._batches.drain()

    def clear(self) -> None:
        """Forget all rows."""
        self._remembered.clear()
        self._size = 0
        self._last_loads.clear()

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
            last = self._last_loads.get(request.key)
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

    # ---- what is remembered -------------------------------------------------------------------

    def _to_be_remembered(self, key: SessionKey) -> Loaded | None:
        last = self._last_loads.get(key)
        if last is None or last.is_too_large or self._database.runner.sees_uncommitted:
            return None
        return NO_ROWS if self._loaded - last.loaded_before <= REMEMBERED_AFTER else None

    def _note_load(self, key: SessionKey, count: int) -> None:
        """Note a load of ``count`` messages whose rows are not remembered."""
        before = self._forget(key)
        if count < REMEMBERED_FROM:
            return
        self._loaded += count
        is_too_large = before is not None and before.is_too_large and count >= before.length
        self._add_last_load(key, _LastLoad(count, self._loaded, is_too_large))

    def _remember(self, key: SessionKey, loaded: Loaded) -> None:
        self._forget(key)
        if loaded.size > REMEMBERED_BYTES:
            self._add_last_load(key, _LastLoad(len(loaded.rows), self._loaded, is_too_large=True))
            return
        self._remembered[key] = loaded
        self._size += loaded.size
        while self._size > REMEMBERED_BYTES:
            _, oldest = self._remembered.popitem(last=False)
            self._size -= oldest.size

    def _add_last_load(self, key: SessionKey, last: _LastLoad) -> None:
        self._last_loads[key] = last
        if len(self._last_loads) > MAX_LOADED:
            del self._last_loads[next(iter(self._last_loads))]

    def _forget(self, key: SessionKey) -> _LastLoad | None:
        """Forget a transcript, and return its last load if that was noted."""
        before = self._remembered.pop(key, None)
        if before is not None:
            self._size -= before.size
        return self._last_loads.pop(key, None)


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

"""Keep the search index up to date, in small batches behind the commits."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import NamedTuple

from sessionsdb.engine.tasks import backoff_seconds
from sessionsdb.errors import SearchUnavailable, StorageError
from sessionsdb.operations import search_index
from sessionsdb.operations.keys import SessionKey
from sessionsdb.operations.search_index import ChangePlace
from sessionsdb.operations.search_types import Indexable, IndexedPart
from sessionsdb.runtime.database_access import DatabaseAccess

log = logging.getLogger("sessionsdb.worker")

PAGE_SESSIONS = 500
"""Sessions that are compared with their marks in one query, which takes 3 ms."""

BATCH_SESSIONS = 200
"""Sessions whose messages are read at once, at most."""

INTERVAL_SECONDS = 1.0
"""The pause of an indexer that found nothing to do."""

IDLE_PAUSES, BUSY_PAUSES = 1.0, 30.0
"""An indexer pauses so many times as long as a batch took. While no turn runs it takes half of the
time at most, and 3% while turns run."""

OTHER_INDEXER_SECONDS = 5.0
"""The pause of an indexer after another one was first. So one of several does most of the work."""

SETTLE_SECONDS = 5.0
"""Sessions that changed in this time are looked at again: transactions may commit out of order. A
session that commits even later is found by the look at all sessions."""

MAX_NAMESPACES = 50
"""Namespaces whose changes are looked for at once. The others have their turn next."""


MAX_RESTARTS = 3
"""How often a transcript may be rewritten while it is indexed."""


class Indexed(NamedTuple):
    """The result of one batch."""

    messages: int = 0
    """Messages that were added to the index."""
    sessions: frozenset[SessionKey] = frozenset()
    """Sessions whose marks were moved."""
    lost: bool = False
    """Whether another indexer was first for one of the sessions."""


async def index_all(
    database: DatabaseAccess,
    namespace: str | None,
    progress: Callable[[int], object] = lambda _: None,
) -> int:
    """Bring the index up to date, and return how many messages were added to it.

    It has every message that was committed before the call. ``namespace``: ``None`` for all of
    them. ``progress`` is called with the number of messages since the last call. Raises
    ``SearchUnavailable`` if the database can't have an index.
    """
    await database.write_repeatable(search_index.create_index, wakes=())
    total = 0
    after: SessionKey = (namespace or "", "")
    while True:
        read = partial(
            search_index.session_page, namespace=namespace, after=after, limit=PAGE_SESSIONS
        )
        page = await database.read(read)
        if not page:
            return total
        # As far as the page was when it was read. Messages of later commits may come faster than
        # they are indexed.
        goals = {session.key: session for session in page if session.is_due}
        last = page[-1].key
        while goals:
            due = [session for session in page if session.key in goals and session.is_due]
            indexed = await _index(database, due)
            total += indexed.messages
            progress(indexed.messages)
            page = await database.read(read)
            goals = {
                session.key: goals[session.key]
                for session in page
                if session.key in goals and not _has_reached(session, goals[session.key])
            }
        # Of the page as it was first. One that is read again has later sessions in the places of
        # deleted ones, and ends earlier where others were created.
        after = min(last, page[-1].key) if page else last


def _has_reached(session: Indexable, goal: Indexable) -> bool:
    """Return whether a session is indexed as far as it was. One that is rewritten again and again
    is left for the next call."""
    return (
        not session.is_due
        or session.indexed_seq >= goal.last_seq
        or session.rewrites > goal.rewrites + MAX_RESTARTS
    )


async def _index(database: DatabaseAccess, due: Sequence[Indexable]) -> Indexed:
    """Index the first of these sessions, as many as fit into one batch."""
    parts = await database.read(partial(search_index.read_parts, due=due[:BATCH_SESSIONS]))
    # In a thread: the words of a batch take 0.2 s, and the turns of the event loop go on.
    found: list[IndexedPart] = await asyncio.to_thread(
        lambda: [search_index.index_part(part) for part in parts]
    )
    written = await database.write_repeatable(
        partial(search_index.write_parts, parts=found), wakes=()
    )
    return Indexed(
        sum(len(part.added) for part in found if part.key in written),
        frozenset(written),
        len(written) < len(found),
    )


class SearchIndexer:
    """Indexes new and changed messages while a worker runs.

    ``namespaces``: ``None`` for all of the database. ``is_busy`` says whether turns run.
    """

    def __init__(
        self,
        database: DatabaseAccess,
        namespaces: Collection[str] | None,
        *,
        is_busy: Callable[[], bool] = lambda: False,
    ) -> None:
        self._database = database
        self._is_busy = is_busy
        self._namespaces = None if namespaces is None else sorted(namespaces)
        self._changes: dict[str, _Changes] = {}
        self._sweep_after: SessionKey = ("", "")
        self._sweep_namespace = 0
        """The index of the namespace that is swept now, if there is a list of them."""
        self._swept_once = False
        """Whether all sessions were looked at since the start. Until then there is no pause."""
        self._last_namespace = ""

    async def run_forever(self) -> None:
        """Index until cancelled. Errors of the database are logged, and it goes on after a pause.

        Returns if the database can't have an index.
        """
        failures = 0
        created = False
        while True:
            started = time.monotonic()
            try:
                if not created:
                    await self._database.write_repeatable(search_index.create_index, wakes=())
                    created = True
                pause = await self._step()
                failures = 0
            except SearchUnavailable as error:
                log.error("%s", error)
                return
            except StorageError as error:
                failures += 1
                pause = backoff_seconds(failures)
                log.warning("the search index is behind, trying again in %.1f s: %s", pause, error)
            except Exception:
                failures += 1
                pause = backoff_seconds(failures)
                log.exception("the search indexer failed in an unforeseen way")
            pauses = BUSY_PAUSES if self._is_busy() else IDLE_PAUSES
            await asyncio.sleep(max(pause, pauses * (time.monotonic() - started)))

    async def finish(self) -> None:
        """Index all that was committed before the call. Errors are logged only."""
        try:
            for namespace in [None] if self._namespaces is None else self._namespaces:
                await index_all(self._database, namespace)
        except (SearchUnavailable, StorageError) as error:
            log.warning("the search index is behind: %s", error)

    async def _step(self) -> float:
        """Index one batch, and return the least seconds until the next."""
        due = await self._changed() or await self._sweep()
        if due:
            indexed = await _index(self._database, due)
            return OTHER_INDEXER_SECONDS if indexed.lost else 0.0
        return INTERVAL_SECONDS * random.uniform(0.8, 1.2) if self._swept_once else 0.0

    async def _changed(self) -> list[Indexable]:
        """Return sessions that changed lately and are due."""
        due: list[Indexable] = []
        for namespace in await self._next_namespaces():
            due += await self._changed_in(namespace)
            if len(due) >= BATCH_SESSIONS:
                break
        return due

    async def _changed_in(self, namespace: str) -> list[Indexable]:
        changes = self._changes.get(namespace)
        if changes is None:
            # The look at all sessions finds earlier changes.
            last = await self._database.read(partial(search_index.last_change, namespace=namespace))
            self._changes[namespace] = _Changes(last)
            return []
        after = changes.resume()
        while True:
            page = await self._database.read(
                partial(
                    search_index.changed_page,
                    namespace=namespace,
                    after=after,
                    limit=PAGE_SESSIONS,
                )
            )
            due = [session for session, _ in page if session.is_due]
            for session, place in page:
                if session.is_due:
                    break
                after = place
            if due or len(page) < PAGE_SESSIONS:
                changes.reached(after)
                return due

    async def _next_namespaces(self) -> list[str]:
        names = self._namespaces
        if names is None:
            names = await self._database.read(search_index.namespaces)
        later = [name for name in names if name > self._last_namespace]
        chosen = [*later, *(name for name in names if name <= self._last_namespace)]
        chosen = chosen[:MAX_NAMESPACES]
        self._last_namespace = chosen[-1] if chosen else ""
        return chosen

    async def _sweep(self) -> list[Indexable]:
        """Return those of the next sessions by key that are due."""
        namespace = None
        if self._namespaces is not None:
            namespace = self._namespaces[self._sweep_namespace]
        page = await self._database.read(
            partial(
                search_index.session_page,
                namespace=namespace,
                after=self._sweep_after,
                limit=PAGE_SESSIONS,
            )
        )
        due = [session for session in page if session.is_due]
        if due:  # the page is read again behind the batch
            return due
        if len(page) == PAGE_SESSIONS:
            self._sweep_after = page[-1].key
            return []
        self._sweep_after = ("", "")
        count = 1 if self._namespaces is None else len(self._namespaces)
        self._sweep_namespace = (self._sweep_namespace + 1) % count
        self._swept_once = self._swept_once or self._sweep_namespace == 0
        return []


class _Changes:
    """A place in the sessions of one namespace by the time of their last change.

    All sessions before it were indexed when it was reached.
    """

    def __init__(self, start: ChangePlace) -> None:
        self._places = deque([(time.monotonic(), start)])
        """The places that were reached in the last seconds, and the one before them."""

    def resume(self) -> ChangePlace:
        """Return the place that was reached ``SETTLE_SECONDS`` ago."""
        settled = time.monotonic() - SETTLE_SECONDS
        while len(self._places) > 1 and self._places[1][0] <= settled:
            self._places.popleft()
        return self._places[0][1]

    def reached(self, place: ChangePlace) -> None:
        if place != self._places[-1][1]:
            self._places.append((time.monotonic(), place))

"""The iterators of ``follow``: over one session, and over a session with all sessions below it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator
from functools import partial
from typing import Protocol

from sqlalchemy import Connection

from sessionsdb.engine.notifier import Signal
from sessionsdb.engine.tasks import backoff_seconds
from sessionsdb.errors import InvalidArgument, SessionsDBError, UnknownSession
from sessionsdb.events import Event
from sessionsdb.operations import registry
from sessionsdb.operations.follow_cursor import Place
from sessionsdb.operations.following import Start
from sessionsdb.operations.keys import SessionKey
from sessionsdb.runtime.database_access import WORK
from sessionsdb.runtime.follow_hub import Follower, FollowHub, FollowSource
from sessionsdb.runtime.follow_start import Starts

log = logging.getLogger("sessionsdb.follow")

MAX_SESSIONS = 200
"""The sessions of a subtree that one iterator follows."""

GROWTH_SECONDS = 1.0
"""The interval of looks for new children, when no wake-up comes."""

GROWTH_PAUSE_SECONDS = 0.1
LONGEST_GROWTH_PAUSE_SECONDS = 2.0
"""The shortest and the longest pause between two looks for new children."""

GROWTH_SHARE = 0.05
"""The share of the time that the looks take. One reads the ids of the whole subtree: of 20,000
sessions in 0.03 s."""


class Followed(FollowSource, Protocol):
    """A database with its followers."""

    @property
    def follow_hub(self) -> FollowHub: ...


async def follow_session(
    database: Followed, key: SessionKey, start: Place | Start
) -> AsyncGenerator[Event, None]:
    """Iterate over the events of one session."""
    async with database.follow_hub.follow(key, start) as follower:
        while not follower.is_over or follower.batch:
            for event in await follower.take():
                yield event


async def follow_subtree(
    database: Followed, root: SessionKey, starts: Starts
) -> AsyncGenerator[Event, None]:
    """Iterate over the events of a session and of all sessions below it."""
    async with _Subtree(database, root, starts) as subtree:
        while batch := await subtree.take():
            for event in batch:
                yield event


class _Subtree:
    """The followers of a subtree. A task for each waits for its events.

    A task takes the next events of its session only after the consumer has taken the last ones. So
    at most one batch for each session is kept.
    """

    def __init__(self, database: Followed, root: SessionKey, starts: Starts) -> None:
        self._database = database
        self._root = root
        self._starts = starts
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._growth: asyncio.Task[None] | None = None
        self._ready: asyncio.Queue[tuple[str, list[Event], asyncio.Event]] = asyncio.Queue()
        self._followers: dict[str, Follower] = {}
        self._over: set[str] = set()
        """The sessions that are not followed any more: the root, and ended ones that made room."""
        self._left_out: set[str] = set()
        """The sessions that had ended before, and were left out at the beginning."""
        self._is_full = False

    async def __aenter__(self) -> _Subtree:
        ids, left_out = await self._read_ids()
        self._left_out.update(left_out)
        if not ids:
            raise UnknownSession(self._root[1])
        if len(ids) > MAX_SESSIONS:
            raise InvalidArgument(
                f"session {self._root[1]} has {len(ids)} sessions in its subtree, follow takes at "
                f"most {MAX_SESSIONS}; follow its children one by one"
            )
        for id in ids:
            if isinstance(self._starts, dict):
                self._follow(id, self._starts.get(id, "start"))
            else:
                self._follow(id, self._starts)
        self._growth = asyncio.create_task(self._grow())
        return self

    async def __aexit__(self, *_error: object) -> None:
        tasks = [*self._tasks.values(), *([self._growth] if self._growth else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def take(self) -> list[Event]:
        """Wait for the events of any session. An empty list: the root was deleted."""
        while True:
            if self._root[1] in self._over and self._ready.empty():
                return []
            id, batch, taken = await self._next()
            taken.set()
            for event in batch:
                if event.type == "deleted" and id == self._root[1]:
                    self._over.add(id)
            if id == self._root[1] and id in self._over:
                # Sessions that were deleted together with the root are told before it.
                return [*await self._last_words(), *batch]
            if batch:
                return batch

    async def _next(self) -> tuple[str, list[Event], asyncio.Event]:
        """Return the next batch. Raises the error of a session that failed."""
        while True:
            waiting = asyncio.ensure_future(self._ready.get())
            tasks = [task for task in (self._growth, *self._tasks.values()) if task is not None]
            try:
                await asyncio.wait((waiting, *tasks), return_when=asyncio.FIRST_COMPLETED)
                if waiting.done():
                    return waiting.result()
            finally:
                waiting.cancel()
            for id, task in list(self._tasks.items()):
                if task.done():
                    del self._tasks[id]
                    with contextlib.suppress(UnknownSession):  # deleted before it was looked at
                        task.result()
                    if id == self._root[1]:
                        self._over.add(id)
            if self._growth is not None and self._growth.done():
                self._growth.result()

    async def _last_words(self) -> list[Event]:
        events: list[Event] = []
        while not self._ready.empty():
            _id, batch, taken = self._ready.get_nowait()
            taken.set()
            events += batch
        return events

    # ---- the followers ----------------------------------------------------------------------

    def _follow(self, id: str, start: Place | Start) -> None:
        self._tasks[id] = asyncio.create_task(self._pass_on((self._root[0], id), start))

    async def _pass_on(self, key: SessionKey, start: Place | Start) -> None:
        async with self._database.follow_hub.follow(key, start) as follower:
            self._followers[key[1]] = follower
            try:
                while not follower.is_over or follower.batch:
                    await self._pass_batch(key[1], follower)
            finally:
                del self._followers[key[1]]

    async def _pass_batch(self, id: str, follower: Follower) -> None:
        batch = await follower.take()
        taken = asyncio.Event()
        self._ready.put_nowait((id, batch, taken))
        await taken.wait()

    async def _grow(self) -> None:
        """Follow new children from their start, until cancelled.

        Those that were left out at the beginning begin as the others did.
        """
        failures = 0
        async with self._database.notifier.subscribe(WORK, Signal()) as signal:
            while True:
                await signal.wait(GROWTH_SECONDS)
                began = time.monotonic()
                try:
                    ids, _ = await self._read_ids()
                    failures = 0
                except SessionsDBError as error:
                    if failures == 0:
                        log.warning("can't look for new children, trying again: %s", error)
                    failures += 1
                    await asyncio.sleep(backoff_seconds(failures, max_seconds=5.0))
                    continue
                for id in ids:
                    if id not in self._tasks and id not in self._over and self._has_room(id):
                        is_now = self._starts == "now" and id in self._left_out
                        self._follow(id, "now" if is_now else "start")
                await asyncio.sleep(growth_pause(time.monotonic() - began))

    def _has_room(self, id: str) -> bool:
        """Return whether one more session can be followed. An ended one may make room."""
        if len(self._tasks) < MAX_SESSIONS:
            return True
        for ended, follower in self._followers.items():
            if ended != self._root[1] and ended in self._tasks and _has_ended(follower):
                self._tasks.pop(ended).cancel()
                self._over.add(ended)
                return True
        if not self._is_full:
            self._is_full = True
            log.warning(
                "session %s has more than %s living sessions in its subtree: session %s and later "
                "ones are not followed",
                *(self._root[1], MAX_SESSIONS, id),
            )
        return False

    async def _read_ids(self) -> tuple[list[str], list[str]]:
        """Return the ids of the subtree, parents first, and those that are left out.

        Above the limit, ended ones are left out. The root and sessions that have a cursor stay in.
        """
        named = self._starts if isinstance(self._starts, dict) else {}
        return await self._database.read(
            partial(_subtree, root=self._root, named=frozenset(named) | self._tasks.keys())
        )


def growth_pause(look_seconds: float) -> float:
    """Return the pause behind a look for new children."""
    pause = look_seconds / GROWTH_SHARE
    return min(max(pause, GROWTH_PAUSE_SECONDS), LONGEST_GROWTH_PAUSE_SECONDS)


def _has_ended(follower: Follower) -> bool:
    """Return whether a session has ended, and its follower has passed all its events on."""
    return follower.state is not None and follower.state.closed and not follower.batch


def _subtree(
    connection: Connection, root: SessionKey, named: frozenset[str]
) -> tuple[list[str], list[str]]:
    sessions = registry.subtree_with_ends(connection, *root)
    if len(sessions) <= MAX_SESSIONS:
        return [id for id, _ in sessions], []
    followed: list[str] = []
    left_out: list[str] = []
    for id, ended in sessions:
        (left_out if ended and id != root[1] and id not in named else followed).append(id)
    return followed, left_out

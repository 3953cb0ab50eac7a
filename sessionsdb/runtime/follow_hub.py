"""All followers of one database in this process: one look for all of them.

A look reads the state of the followed sessions in one query, and compares it with the state that
each follower has come to. Only sessions with a difference are read further. Followers at the same
place share that read.

Looks are caused by notifications and, because these may be lost, by a poll. A notification about
streamed pieces or the end of a turn names sessions, and only these are looked at. The poll comes
sooner while things happen: a claim and an append wake no topic. Without a follower nothing runs.

A follower holds its place and at most one batch of events. While its consumer has not taken the
batch, nothing more is read for it: a slow consumer catches up from its place.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import NamedTuple, Protocol, TypeVar

from sessionsdb.engine.notifier import TOPICS, Digests, Notifier, Signal
from sessionsdb.engine.runner import Operation
from sessionsdb.engine.tasks import backoff_seconds
from sessionsdb.errors import SessionsDBError
from sessionsdb.events import Event
from sessionsdb.operations import follow_rows, following
from sessionsdb.operations.follow_cursor import Place
from sessionsdb.operations.follow_types import SessionState
from sessionsdb.operations.following import Advance, Start, Step
from sessionsdb.operations.keys import SessionKey, digest_of

log = logging.getLogger("sessionsdb.follow")

T = TypeVar("T")

LOOK_SECONDS = 0.025
"""The shortest pause between two looks."""

LONGEST_LOOK_PAUSE_SECONDS = 0.1
"""A pause is as long as the look before it, up to this. The pause between looks at all sessions
grows up to this too, while notifications are about other sessions."""


FIRST_POLL_SECONDS = 0.05
POLL_SECONDS = 1.0
"""The first poll comes so soon after a look that found something. The time doubles up to this one
while polls find nothing."""

MAX_BACKOFF_SECONDS = 5.0
"""The longest pause between looks while the database fails."""

STEPS = 50
"""The sessions that are read in one snapshot."""


class _Found(NamedTuple):
    """The kinds of events that a look has found: streamed pieces, and all others."""

    pieces: bool
    changes: bool


class FollowSource(Protocol):
    """The database that a hub looks at. Its states never go back."""

    notifier: Notifier

    async def ready(self) -> None:
        """Return when followers can begin."""

    def read(self, operation: Operation[T]) -> Awaitable[T]:
        """Run an operation that only reads, and return its result."""

    def read_snapshot(self, operation: Operation[T]) -> Awaitable[T]:
        """Run an operation of several reads, which all see the same commits."""


class Follower:
    """One reader of one session's events. Only the hub moves it."""

    def __init__(self, hub: FollowHub, key: SessionKey, place: Place | Start) -> None:
        self.key = key
        self.place = place
        self.state: SessionState | None = None
        """The state that ``place`` has come to. ``None``: there is more to read."""
        self.batch: list[Event] = []
        self.is_behind = False
        """Something may have changed while the batch was not taken."""
        self.is_over = False
        """The session was deleted: nothing follows the batch."""
        self.error: Exception | None = None
        self.on_ready: asyncio.Event = asyncio.Event()
        self._hub = hub

    async def take(self) -> list[Event]:
        """Wait for events and return them: at least one, at most some hundreds.

        An empty list: the session was deleted, and its last event was returned before.
        """
        while not self.batch and not self.is_over:
            if self.error is not None:
                raise self.error
            self.on_ready.clear()
            await self.on_ready.wait()
        batch, self.batch = self.batch, []
        if self.is_behind or self.state is None:
            self._hub.look_at(self.key)
        return batch

    def is_at(self, state: SessionState | None) -> bool:
        return state is not None and self.state == state


class _Due(Signal):
    """The signal of the hub. It keeps the subjects of the notifications."""

    def __init__(self) -> None:
        super().__init__()
        self.all = False
        self.digests: set[str] = set()
        self.keys: set[SessionKey] = set()

    def hint(self, digests: Digests | None) -> None:
        if digests is None:
            self.all = True
        else:
            self.digests |= digests
        self.set()


class FollowHub:
    """The followers of one database.

    ``hints_come_early``: notifications may come before the commit can be read. Then a poll follows
    soon.
    """

    def __init__(self, database: FollowSource, *, hints_come_early: bool = False) -> None:
        self._database = database
        self._hints_come_early = hints_come_early
        self.followers: dict[SessionKey, set[Follower]] = {}
        self._by_digest: dict[str, set[SessionKey]] = defaultdict(set)
        self._due = _Due()
        self._task: asyncio.Task[None] | None = None
        self._next_look = self._next_full_look = self._next_poll = 0.0
        self._poll_seconds = FIRST_POLL_SECONDS
        self._fruitless = 0

    @asynccontextmanager
    async def follow(self, key: SessionKey, start: Place | Start) -> AsyncIterator[Follower]:
        """Follow a session during the block."""
        await self._database.ready()
        follower = Follower(self, key, start)
        self.followers.setdefault(key, set()).add(follower)
        self._by_digest[digest_of(key)].add(key)
        self.look_at(key)
        if self._task is None:
            self._task = asyncio.create_task(self._look_forever())
        try:
            yield follower
        finally:
            self._remove(follower)

    def look_at(self, key: SessionKey) -> None:
        """Have the hub look at a session soon."""
        self._due.keys.add(key)
        self._due.set()

    async def close(self) -> None:
        """End all followers with an error: the handle was closed."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
        self._fail(self._all(), SessionsDBError("the database handle was closed"))
        # Their iterators may end later, or never, and the handle may be opened in another loop.
        self.followers.clear()
        self._by_digest.clear()

    def _all(self) -> list[Follower]:
        return [follower for group in self.followers.values() for follower in group]

    def _remove(self, follower: Follower) -> None:
        key = follower.key
        group = self.followers.get(key, set())
        group.discard(follower)
        if group:
            return
        self.followers.pop(key, None)
        keys = self._by_digest.get(digest_of(key), set())
        keys.discard(key)
        if not keys:
            self._by_digest.pop(digest_of(key), None)
        if not self.followers:
            self._due.set()  # the task ends

    # ---- when to look ------------------------------------------------------------------------

    async def _look_forever(self) -> None:
        failures = 0
        try:
            async with AsyncExitStack() as stack:
                for topic in TOPICS:
                    await stack.enter_async_context(
                        self._database.notifier.subscribe(topic, self._due)
                    )
                while self.followers:
                    try:
                        await self._look_when_due()
                        failures = 0
                    except SessionsDBError as error:
                        # A follower that has begun goes on when the database is back.
                        self._fail(
                            (one for one in self._all() if not isinstance(one.place, Place)), error
                        )
                        if failures == 0:
                            log.warning("can't look for events, trying again: %s", error)
                        failures += 1
                        self._due.all = True
                        await asyncio.sleep(
                            backoff_seconds(failures, max_seconds=MAX_BACKOFF_SECONDS)
                        )
        except Exception as error:  # a fault of ours: no follower may wait for ever
            log.exception("looking for events has failed")
            self._fail(self._all(), error)
        finally:
            self._task = None

    async def _look_when_due(self) -> None:
        """Wait for a reason to look, then look once."""
        next_full = self._next_full_look if self._due.all else self._next_poll
        await self._due.wait(max(0.0, next_full - time.monotonic()))
        await asyncio.sleep(max(0.0, self._next_look - time.monotonic()))
        began = time.monotonic()
        is_full = began >= (self._next_full_look if self._due.all else self._next_poll)
        hinted = self._due.all or bool(self._due.digests)
        keys = self._take_due(is_full=is_full)
        if not keys:
            return
        found = await self._look(keys)
        now = time.monotonic()
        if found.changes or (hinted and self._hints_come_early):
            self._poll_seconds = FIRST_POLL_SECONDS
            self._next_poll = min(self._next_poll, now + FIRST_POLL_SECONDS)
        pause = max(LOOK_SECONDS, min(now - began, LONGEST_LOOK_PAUSE_SECONDS))
        self._next_look = now + pause
        if not is_full:
            return
        self._fruitless = 0 if any(found) else self._fruitless + 1
        self._next_full_look = now + max(
            pause, min(LOOK_SECONDS * self._fruitless, LONGEST_LOOK_PAUSE_SECONDS)
        )
        self._poll_seconds = (
            FIRST_POLL_SECONDS if any(found) else min(POLL_SECONDS, 2 * self._poll_seconds)
        )
        self._next_poll = now + max(pause, self._poll_seconds * random.uniform(0.8, 1.0))

    def _take_due(self, *, is_full: bool) -> list[SessionKey]:
        due = self._due
        named = due.keys.union(*(self._by_digest.get(digest, ()) for digest in due.digests))
        due.keys, due.digests = set(), set()
        if is_full:
            due.all = False
            return list(self.followers)
        return [key for key in named if key in self.followers]

    # ---- a look ------------------------------------------------------------------------------

    async def _look(self, keys: Sequence[SessionKey]) -> _Found:
        """Look at sessions, and return the kinds of events that followers got."""
        states = await self._database.read(partial(follow_rows.read_states, keys=keys))
        streams: dict[tuple[SessionKey, Place, SessionState], list[Follower]] = defaultdict(list)
        changes: dict[Step, list[Follower]] = defaultdict(list)
        for key in keys:
            state = states.get(key)
            for follower in self.followers.get(key, ()):
                if follower.is_at(state) or follower.is_over or follower.error is not None:
                    continue
                follower.is_behind = bool(follower.batch)
                if follower.batch:
                    continue
                if state is not None and _only_pieces(follower, state):
                    assert isinstance(follower.place, Place)
                    streams[key, follower.place, state].append(follower)
                else:
                    changes[Step(key, follower.place)].append(follower)
        has_pieces = has_changes = False
        for places in _parts(list(streams)):
            answers = await self._database.read(partial(following.advance_pieces, steps=places))
            for place, answer in zip(places, answers, strict=True):
                has_pieces |= self._deliver(streams[place], answer)
        for steps in _parts(list(changes)):
            results = await self._database.read_snapshot(partial(following.advance, steps=steps))
            for step, result in zip(steps, results, strict=True):
                has_changes |= self._deliver(changes[step], result)
        return _Found(has_pieces, has_changes)

    def _deliver(self, followers: Sequence[Follower], answer: Advance | Exception) -> bool:
        """Give followers their answer, and return whether it has events."""
        if isinstance(answer, Exception):
            self._fail(followers, answer)
            return False
        for follower in followers:
            follower.batch = list(answer.events)
            follower.state = answer.state
            if answer.place is None:
                follower.is_over = True
            else:
                follower.place = answer.place
            if answer.events:
                follower.on_ready.set()
            elif answer.state is None and not follower.is_over:
                self.look_at(follower.key)
        return bool(answer.events)

    def _fail(self, followers: Iterable[Follower], error: Exception) -> None:
        for follower in followers:
            follower.error = error
            follower.on_ready.set()


def _only_pieces(follower: Follower, state: SessionState) -> bool:
    """Return whether a state differs from a follower's by pieces of the run that it follows."""
    return (
        follower.state is not None
        and isinstance(follower.place, Place)
        and follower.state.without_pieces == state.without_pieces
        and following.in_run(follower.place, state)
    )


def _parts(values: list[T]) -> Iterable[list[T]]:
    return (values[start : start + STEPS] for start in range(0, len(values), STEPS))

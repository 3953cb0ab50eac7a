"""Saves of whole transcripts by a process that saves them again and again.

An agent that keeps its transcript saves it after every turn: what it saved before, and a little
more. What this process saved last it knows, so it compares here, and the database only says
whether the transcript is still as it was left. Measured with 1,000 messages and two more: 0.6 ms
instead of 2.8 on SQLite, where reading and comparing the stored ones takes the difference.
"""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from sessionsdb.engine.runner import Runner
from sessionsdb.messages.codec import StoredMessage, encode_all
from sessionsdb.operations import saving
from sessionsdb.operations.keys import SessionKey
from sessionsdb.operations.saving import SaveResult
from sessionsdb.operations.transcript_types import TranscriptMark
from sessionsdb.runtime.snapshot import Snapshot, take_snapshot

CACHE_BYTES = 16_000_000
"""How much is known of what was saved, over all transcripts: about as much as their text. Those
saved longest ago are forgotten first."""


class _CachedTranscript(NamedTuple):
    imprint: Snapshot
    mark: TranscriptMark


class TranscriptCache:
    """Saves transcripts, and knows the last ones."""

    def __init__(self, runner: Runner, *, message_bytes: int) -> None:
        self._runner = runner
        self._message_bytes = message_bytes
        self._known: OrderedDict[SessionKey, _CachedTranscript] = OrderedDict()
        self._size = 0
        self._abandoned: dict[SessionKey, asyncio.Future[Any]] = {}

    async def save(
        self, namespace: str, session_id: str, messages: Any, *, expected_version: int | None
    ) -> int:
        """The transcript's version. Raises ``InvalidMessage`` and ``VersionConflict``."""
        key = (namespace, session_id)
        if type(messages) in (list, tuple):  # else it is refused, or of a kind that has no imprint
            messages = list(messages)  # as it is now, whatever becomes of it while we wait
        try:
            if (abandoned := self._abandoned.get(key)) is not None:
                await asyncio.shield(abandoned)
            return await self._save(key, messages, expected_version)
        except asyncio.CancelledError:
            self._abandon(key)
            raise

    async def _save(self, key: SessionKey, messages: Any, expected_version: int | None) -> int:
        known = self._known.get(key) if type(messages) is list else None
        if known is not None and expected_version in (None, known.mark.version):
            version = await self._extend(key, known, messages)
            if version is not None:
                return version
        wanted = encode_all(messages, max_bytes=self._message_bytes)
        as_saved = take_snapshot(messages)
        saved = await self._runner.write(
            partial(
                saving.save,
                namespace=key[0],
                session_id=key[1],
                messages=wanted,
                expected_version=expected_version,
            )
        )
        self._forget(key)
        if as_saved is not None and saved.mark is not None:
            self._remember(key, _CachedTranscript(as_saved, saved.mark))
        return saved.version

    def clear(self) -> None:
        """Know nothing any more."""
        self._known.clear()
        self._size = 0

    async def _extend(
        self, key: SessionKey, known: _CachedTranscript, messages: list[Any]
    ) -> int | None:
        """Add what is new behind what is known; ``None`` if the messages are others, or somebody
        else has changed the transcript."""
        if not known.imprint.is_prefix_of(messages):
            return None
        count = known.imprint.count
        added = encode_all(messages[count:], max_bytes=self._message_bytes, first_index=count)
        grown = known.imprint.extended_to(messages)
        saved = await self._extended(key, known.mark, added)
        if saved is None:
            return None
        assert saved.mark is not None
        self._forget(key)
        if grown is not None:
            self._remember(key, _CachedTranscript(grown, saved.mark))
        return saved.version

    async def _extended(
        self, key: SessionKey, mark: TranscriptMark, added: Sequence[StoredMessage]
    ) -> SaveResult | None:
        write_id = os.urandom(16).hex()
        [saved] = await self._runner.write_exactly_once(
            [key],
            lambda connection, _: [saving.extend(connection, *key, mark, added, write_id)],
            lambda connection, _: saving.find_extended(connection, *key, write_id),
        )
        return saved

    def _abandon(self, key: SessionKey) -> None:
        """The caller was cancelled, and what it asked for may go on: the next save of that
        transcript comes after it. Else the one before would have the last word."""
        rest = self._runner.writes_in_flight()
        if rest is None:
            return
        self._abandoned[key] = rest

        def forget(_: object) -> None:
            if self._abandoned.get(key) is rest:
                del self._abandoned[key]

        rest.add_done_callback(forget)

    def _remember(self, key: SessionKey, known: _CachedTranscript) -> None:
        if known.imprint.size > CACHE_BYTES:
            return
        self._known[key] = known
        self._size += known.imprint.size
        while self._size > CACHE_BYTES:
            self._forget(next(iter(self._known)))

    def _forget(self, key: SessionKey) -> None:
        known = self._known.pop(key, None)
        if known is not None:
            self._size -= known.imprint.size

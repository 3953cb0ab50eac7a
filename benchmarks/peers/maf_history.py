"""Histories of Microsoft Agent Framework: ours, and its ``FileHistoryProvider``.

A save has the two messages of a turn, as an agent's has. The framework reads whole histories only,
so nothing else is measured. Its provider does not sync its files: a power loss may undo saves.
"""

from __future__ import annotations

import itertools
import tempfile
import warnings
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from agent_framework import FileHistoryProvider, Message

from benchmarks.adapters import Opened, Store
from benchmarks.messages import transcript
from benchmarks.results import OURS
from devtools.databases import Database
from sessionsdb import SessionsDB
from sessionsdb.adapters.agent_framework import HistoryProvider


class _Histories:
    offers = frozenset(("add",))

    def __init__(self, history: Any) -> None:
        self._history = history
        self._turns = itertools.count()

    async def fill(self, sessions: Sequence[int], messages: int) -> None:
        for number in sessions:
            await self._history.save_messages(f"session-{number}", self._messages(messages))

    async def add(self, session: int) -> object:
        return await self._history.save_messages(f"session-{session}", self._messages(2))

    def _messages(self, count: int) -> list[Message]:
        # Messages that are equal to stored ones would be taken for a replay.
        turn = next(self._turns)
        return [
            Message(message["role"], [message["content"]], message_id=f"{turn}-{number}")
            for number, message in enumerate(transcript(count))
        ]

    async def read(self, session: int) -> Sequence[object]:
        raise NotImplementedError

    async def pop(self, session: int) -> object:
        raise NotImplementedError

    async def list(self) -> Sequence[object]:
        raise NotImplementedError


@asynccontextmanager
async def _ours(database: Database) -> AsyncIterator[Store]:
    async with SessionsDB(database.url) as db:
        yield _Histories(HistoryProvider(db))


@asynccontextmanager
async def _files(_database: Database) -> AsyncIterator[Store]:
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # experimental, says the framework
        yield _Histories(FileHistoryProvider(folder))


SIDES: dict[str, Opened] = {OURS: _ours, "agent-framework": _files}

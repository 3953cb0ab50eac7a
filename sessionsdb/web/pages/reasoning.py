"""The reasoning of the messages on a page. A history has the answers only."""

from __future__ import annotations

from collections.abc import Sequence

from sessionsdb.database import SessionsDB
from sessionsdb.errors import UnknownSession
from sessionsdb.messages.reasoning import reasoning_text
from sessionsdb.types import SessionMessage

CHUNK = 10
"""Whole messages that are in memory at once: each may have megabytes of images."""

_WITHOUT = ("user", "system", "developer", "tool")
"""Roles whose messages have no reasoning of a model."""


async def reasoning_of(
    db: SessionsDB, id: str, messages: Sequence[SessionMessage]
) -> dict[int, str]:
    """Return the reasoning by ``seq``, for those messages that have any.

    ``messages``: a part of the transcript without gaps. A session that was deleted has none.
    """
    found: dict[int, str] = {}
    for begin in range(0, len(messages), CHUNK):
        chunk = messages[begin : begin + CHUNK]
        wanted = {one.seq for one in chunk if one.seq is not None and one.role not in _WITHOUT}
        if not wanted:
            continue
        first = min(wanted)
        try:
            entries = await db.store.entries(id, max(wanted) - first + 1, after=first - 1)
        except UnknownSession:
            return {}
        for entry in entries:
            if entry.seq in wanted and (text := reasoning_text(entry.message)):
                found[entry.seq] = text
    return found

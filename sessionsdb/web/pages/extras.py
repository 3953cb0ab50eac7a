"""What the text of a history does not have: the reasoning of the messages, and their images."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from sessionsdb.database import SessionsDB
from sessionsdb.errors import UnknownSession
from sessionsdb.messages.reasoning import reasoning_text
from sessionsdb.types import SessionMessage, TranscriptEntry
from sessionsdb.web.pages.images import count_images

CHUNK = 10
"""Whole messages that are in memory at once: each may have megabytes of images."""

_WITHOUT_REASONING = ("user", "system", "developer", "tool")
"""Roles whose messages have no reasoning of a model."""

_IMAGE_MARK = "[image"
"""The text of a message has this mark where the message has an image."""


class Extras(NamedTuple):
    reasoning: str = ""
    images: int = 0
    """How many images the page can show."""


def extras_of_message(message: Mapping[str, Any]) -> Extras:
    return Extras(reasoning_text(message), count_images(message))


async def extras_of(
    db: SessionsDB, id: str, messages: Sequence[SessionMessage]
) -> dict[int, Extras]:
    """Return the extras by ``seq``, for those messages that have any.

    ``messages``: a part of the transcript without gaps. A session that was deleted has none.
    """
    found: dict[int, Extras] = {}
    for begin in range(0, len(messages), CHUNK):
        chunk = messages[begin : begin + CHUNK]
        wanted = {one.seq for one in chunk if one.seq is not None and _may_have_extras(one)}
        if not wanted:
            continue
        first = min(wanted)
        try:
            entries = await db.store.entries(id, max(wanted) - first + 1, after=first - 1)
        except UnknownSession:
            return {}
        wanted_entries = [entry for entry in entries if entry.seq in wanted]
        found |= await asyncio.to_thread(_extras, wanted_entries)
    return found


def _extras(entries: Iterable[TranscriptEntry]) -> dict[int, Extras]:
    return {
        entry.seq: extras for entry in entries if any(extras := extras_of_message(entry.message))
    }


def _may_have_extras(message: SessionMessage) -> bool:
    return message.role not in _WITHOUT_REASONING or _IMAGE_MARK in message.content

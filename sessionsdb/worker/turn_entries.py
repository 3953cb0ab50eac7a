"""The entries of a turn's own transcript, for agents that build the memory of a model."""

from __future__ import annotations

from functools import partial

from sessionsdb import validation
from sessionsdb.messages.whole_characters import whole_characters
from sessionsdb.operations.entries import EntryPage, read_entries
from sessionsdb.types import TranscriptEntry
from sessionsdb.worker.turn import Turn


async def newest_entries(turn: Turn, limit: int) -> list[TranscriptEntry]:
    """Return the newest entries of the transcript, newest last. It is one read.

    An entry has a whole message together with its sender. Its texts are whole characters, so that
    a request can hold them. The transcript does not yet contain ``turn.messages``, nor the changes
    of ``turn.edit``.
    """
    limit = validation.integer(limit, "limit", minimum=0)
    if not limit:
        return []
    page = EntryPage(turn.namespace, turn.session.id, limit)
    entries = await turn._database.read(partial(read_entries, page=page))
    return [one.model_copy(update={"message": whole_characters(one.message)}) for one in entries]

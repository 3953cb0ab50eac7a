"""A turn's own transcript, for agents: its entries, and messages inserted between them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from sessionsdb import validation
from sessionsdb.errors import TranscriptRewritten
from sessionsdb.messages.codec import Message, encode_all
from sessionsdb.messages.whole_characters import whole_characters
from sessionsdb.operations.entries import EntryPage, read_entries
from sessionsdb.operations.inserting import Insertion, seq_at
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


async def seq_of(turn: Turn, place: int) -> int:
    """Return the ``seq`` of the message at a place of ``Turn.transcript``, counted from 0.

    Messages that are appended later do not change it. Raises ``TranscriptRewritten`` if the message
    is gone: the turn could not commit.
    """
    seq = await turn._database.read(
        partial(seq_at, namespace=turn.namespace, session_id=turn.session.id, place=place)
    )
    if seq is None:
        raise TranscriptRewritten(turn.session.id)
    return seq


def insert_behind(turn: Turn, seq: int, messages: Sequence[Message]) -> None:
    """Stage messages at a place of the transcript. The commit of the turn inserts them.

    Messages behind the place move along, also those that are appended before the commit. Raises
    ``InvalidMessage``.
    """
    stored = encode_all(messages, max_bytes=turn._database.limits.message_bytes)
    turn.staged.append(Insertion(turn.namespace, turn.session.id, seq, stored))

"""Messages, outcomes and errors in the form that a model reads."""

from __future__ import annotations

import json
from typing import Any

from sessionsdb.messages.attribution import attributed_text
from sessionsdb.printable import escape_hidden
from sessionsdb.tools.outputs import ReceiptOutput, ShownMessage, ShownOutcome
from sessionsdb.types import Outcome, Receipt, SessionMessage

MESSAGE_CHARACTERS = 4_000
"""The maximum of characters of one message in a result."""

RESULT_CHARACTERS = 60_000
"""The maximum of characters in a result, because the context of a model is small."""

ERROR_CHARACTERS = 500
AUTHOR_CHARACTERS = 100
METADATA_CHARACTERS = 1_000
"""Longer metadata, as JSON, is left out of a result. A part of an object is another object."""


def show_message(
    message: SessionMessage, offset: int = 0, characters: int = MESSAGE_CHARACTERS
) -> ShownMessage:
    """Return a message from character ``offset`` on.

    It is cut after ``characters``. Metadata over ``METADATA_CHARACTERS`` is left out. ``note`` says
    so, outside of the text, which could imitate a mark in it. The words of another agent are
    marked.
    """
    text = message.content[offset : offset + characters]
    length, end = len(message.content), offset + len(text)
    cut = end < length
    notes: list[str] = []
    if cut:
        notes.append(
            f"cut: characters {offset} to {end} of {length}; for the rest call "
            f"sessions_history with message={message.seq} and offset={end}"
        )
    metadata = message.metadata
    metadata_length = _json_characters(metadata)
    if metadata_length > min(METADATA_CHARACTERS, characters):
        metadata = None
        notes.append(f"metadata left out: {metadata_length} characters as JSON")
    return ShownMessage(
        role=message.role,
        content=text if message.sender is None else attributed_text(text, message.sender),
        timestamp=message.timestamp,
        seq=message.seq,
        sender=message.sender,
        author=None if message.author is None else message.author[:AUTHOR_CHARACTERS],
        metadata=metadata,
        length=length if cut or offset else None,
        next_offset=end if cut else None,
        note="; ".join(notes) or None,
    )


def shown_characters(message: ShownMessage) -> int:
    """Return the characters that a message counts within ``RESULT_CHARACTERS``."""
    return len(message.content) + _json_characters(message.metadata)


def _json_characters(metadata: dict[str, Any] | None) -> int:
    return 0 if metadata is None else len(json.dumps(metadata, ensure_ascii=False))


def reply_characters(outcomes: int) -> int:
    """Return the maximum of characters of each reply in a result with so many outcomes."""
    return min(MESSAGE_CHARACTERS, RESULT_CHARACTERS // max(1, outcomes))


def show_outcome(outcome: Outcome, characters: int = MESSAGE_CHARACTERS) -> ShownOutcome:
    """Return an outcome with its reply cut and marked, and its error without the traceback."""
    error = None
    if outcome.error:
        error = escape_hidden(next(iter(outcome.error.splitlines()), "")[:ERROR_CHARACTERS])
    return ShownOutcome(
        session_id=outcome.receipt.session_id,
        position=outcome.receipt.position,
        status=outcome.status,
        attempts=outcome.attempts,
        reply=None if outcome.reply is None else show_message(outcome.reply, characters=characters),
        error=error,
        enqueued_at=outcome.enqueued_at,
        finished_at=outcome.finished_at,
    )


def show_receipt(receipt: Receipt) -> ReceiptOutput:
    return ReceiptOutput(session_id=receipt.session_id, position=receipt.position)


def replace_surrogates(text: str) -> str:
    """Return ``text`` with lone surrogates replaced, because results are sent as UTF-8."""
    return text.encode("utf-8", "replace").decode("utf-8")

"""How much of a message a model is shown, and how."""

from __future__ import annotations

from sessionsdb.messages.attribution import attributed_text
from sessionsdb.tools.outputs import ReceiptOutput, ShownMessage, ShownOutcome
from sessionsdb.types import Outcome, Receipt, SessionMessage

MESSAGE_CHARACTERS = 4_000
"""What is shown of one message at a time."""

RESULT_CHARACTERS = 60_000
"""Where a result ends, though its limit would allow more: a model's context is not large."""

ERROR_CHARACTERS = 500


def shown(message: SessionMessage, offset: int = 0) -> ShownMessage:
    """A message from character ``offset`` on: cut if it is long, and marked as another agent's
    words if it is."""
    text = message.content[offset : offset + MESSAGE_CHARACTERS]
    length, end = len(message.content), offset + len(text)
    cut = end < length
    content = text if message.sender is None else attributed_text(text, message.sender)
    if cut:
        content += (
            f"\n[cut: characters {offset} to {end} of {length}; for the rest call "
            f"sessions_history with message={message.seq} and offset={end}]"
        )
    return ShownMessage(
        role=message.role,
        content=content,
        timestamp=message.timestamp,
        seq=message.seq,
        sender=message.sender,
        length=length if cut or offset else None,
        next_offset=end if cut else None,
    )


def outcome_shown(outcome: Outcome) -> ShownOutcome:
    """An outcome with its reply shown as above, and its error without the traceback."""
    error = None
    if outcome.error:
        error = outcome.error.splitlines()[0][:ERROR_CHARACTERS]
    return ShownOutcome(
        session_id=outcome.receipt.session_id,
        position=outcome.receipt.position,
        status=outcome.status,
        attempts=outcome.attempts,
        reply=None if outcome.reply is None else shown(outcome.reply),
        error=error,
        enqueued_at=outcome.enqueued_at,
        finished_at=outcome.finished_at,
    )


def receipt_shown(receipt: Receipt) -> ReceiptOutput:
    return ReceiptOutput(session_id=receipt.session_id, position=receipt.position)


def printable(text: str) -> str:
    """``text`` with lone surrogates replaced: it goes into JSON and over the wire as UTF-8."""
    return text.encode("utf-8", "replace").decode("utf-8")

"""An entry of the transcript as text for a model."""

from __future__ import annotations

from sessionsdb.messages.attribution import attributed_text, was_spawned_by
from sessionsdb.messages.rendering import render_role, render_text
from sessionsdb.types import SessionDetails, TranscriptEntry


def is_from_another_agent(session: SessionDetails, entry: TranscriptEntry) -> bool:
    """Return whether another session sent the message. The task of a spawned session is its own."""
    if entry.sender is None:
        return False
    return not (entry.seq == 1 and was_spawned_by(session, entry.sender))


def told_text(session: SessionDetails, entry: TranscriptEntry) -> str:
    """Return the text of an entry. Words of another agent are marked. Reasoning has no text."""
    text = render_text(entry.message)
    if entry.sender is None or not is_from_another_agent(session, entry):
        return text
    return attributed_text(text, entry.sender)


def is_by_model(entry: TranscriptEntry) -> bool:
    """Return whether the text of an entry is told as the model's: its words, or a result."""
    return render_role(entry.message) in ("assistant", "tool")

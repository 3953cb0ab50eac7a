"""The events of Google's ADK.

An event is ``{"author": "user" | AGENT, "content": {"role", "parts"}, "invocationId", "actions"}``,
with the keys in camel case or with underscores. The content is one of Gemini.
"""

from __future__ import annotations

from typing import Any

from sessionsdb.messages import marks
from sessionsdb.messages.blocks import content_text
from sessionsdb.messages.formats.form import Form, Record

_OWN_KEYS = frozenset(("invocationId", "invocation_id", "actions", "turnComplete", "turn_complete"))
_RESPONSES = frozenset(("functionResponse", "function_response"))
_TRANSCRIPTS = (
    *("inputTranscription", "input_transcription", "outputTranscription", "output_transcription"),
)


def recognise(record: Record) -> bool:
    content = record.get("content")
    return (
        isinstance(record.get("author"), str)
        and (content is None or isinstance(content, dict))
        and bool(record.keys() & _OWN_KEYS or (isinstance(content, dict) and "parts" in content))
    )


def role(record: Record) -> str:
    parts = _parts(record)
    if parts and all(isinstance(part, dict) and part.keys() & _RESPONSES for part in parts):
        return "tool"
    return "user" if record["author"] == "user" else "assistant"


def _parts(record: Record) -> list[Any]:
    content = record.get("content")
    parts = content.get("parts") if isinstance(content, dict) else None
    return parts if isinstance(parts, list) else []


def text(record: Record) -> str:
    texts = [content_text(_parts(record))]
    for key in _TRANSCRIPTS:
        transcript = record.get(key)
        if isinstance(transcript, dict) and isinstance(said := transcript.get("text"), str):
            texts.append(f"[audio: {said}]")
    error = record.get("errorMessage", record.get("error_message"))
    code = record.get("errorCode", record.get("error_code"))
    if isinstance(error, str) or isinstance(code, str):
        texts.append(f"[error: {error if isinstance(error, str) else code}]")
    if not any(texts) and not _parts(record):
        texts.append(_actions_text(record.get("actions")))
    return "\n".join(one for one in texts if one)


def _actions_text(actions: Any) -> str:
    """Return the text of an event without content: what it changes."""
    if not isinstance(actions, dict):
        return "[event]"
    given = {key: value for key, value in actions.items() if value not in (None, {}, [], False)}
    return f"[actions: {marks.shown_json(given)}]" if given else "[event]"


FORM = Form(
    "adk",
    "Google ADK",
    recognise,
    aliases=("google-adk",),
    keys=("author",),
    role=role,
    text=text,
    lists=("events",),
)

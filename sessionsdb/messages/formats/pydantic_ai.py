"""The messages of pydantic-ai: ``ModelMessagesTypeAdapter``.

A message is ``{"kind": "request" | "response", "parts": [{"part_kind": …}, …]}``.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any

from sessionsdb.messages import marks
from sessionsdb.messages.blocks import content_text
from sessionsdb.messages.formats.form import Conversation, Document, Form, Record
from sessionsdb.messages.formats.reading import (
    first_text,
    parse_time,
    read_conversations,
    time_of,
)

_MEDIA = {
    "image-url": "image",
    "audio-url": "audio",
    "video-url": "video",
    "document-url": "document",
    "binary": "file",
    "uploaded-file": "file",
}
_RESULTS = frozenset(("tool-return", "builtin-tool-return"))
_FAILED = frozenset(("failed", "denied", "retried", "error"))


def recognise(record: Record) -> bool:
    return record.get("kind") in ("request", "response") and isinstance(record.get("parts"), list)


def role(record: Record) -> str:
    if record["kind"] == "response":
        return "assistant"
    kinds = {_kind(part) for part in record["parts"]}
    if "user-prompt" in kinds:
        return "user"
    results = [part for part in record["parts"] if _is_result(part)]
    if results:
        return "tool"
    return "system" if "system-prompt" in kinds else "user"


def text(record: Record) -> str:
    texts = [_part_text(part) for part in record["parts"]]
    return "\n".join(one for one in texts if one)


def _kind(part: Any) -> str:
    kind = part.get("part_kind") if isinstance(part, dict) else None
    return kind if isinstance(kind, str) else ""


def _is_result(part: Any) -> bool:
    kind = _kind(part)
    is_retry_of_tool = kind == "retry-prompt" and isinstance(part.get("tool_name"), str)
    return kind in _RESULTS or is_retry_of_tool


def _part_text(part: Any) -> str:
    if not isinstance(part, dict):
        return marks.shown_json(part)
    kind = _kind(part)
    if kind == "thinking":
        return ""
    if kind.endswith("tool-call"):
        return marks.tool_call(part.get("tool_name"), part.get("args"))
    if kind in _RESULTS:
        outcome = part.get("outcome")
        failed = isinstance(outcome, str) and outcome in _FAILED
        return marks.tool_result(_content_text(part.get("content")), failed=failed)
    if kind == "retry-prompt":
        shown = _content_text(part.get("content"))
        return marks.tool_result(shown, failed=True) if _is_result(part) else shown
    if kind == "file":
        return _medium(part.get("content"))
    if kind == "speech":
        transcript = first_text(part, ("transcript", "content"))
        return f"[audio: {transcript}]" if transcript else "[audio]"
    if kind == "compaction":
        return f"[summary: {_content_text(part.get('content'))}]"
    if "content" in part:
        return _content_text(part["content"])
    return f"[{kind}]" if kind else marks.shown_json(part)


def _content_text(content: Any) -> str:
    """Return the text of a prompt or of a result, which may hold media at its first level."""
    if isinstance(content, list):
        return "\n".join(text for one in content if (text := _content_text_of_one(one)))
    return _content_text_of_one(content)


def _content_text_of_one(content: Any) -> str:
    kind = content.get("kind") if isinstance(content, dict) else None
    if not isinstance(kind, str):
        return content_text(content)
    if kind in _MEDIA:
        return _medium(content)
    if kind == "cache-point":
        return ""
    return _content_text(content["content"]) if "content" in content else marks.shown_json(content)


def _medium(content: Any) -> str:
    kind = content.get("kind") if isinstance(content, dict) else None
    known = _MEDIA.get(kind, "file") if isinstance(kind, str) else "file"
    return marks.medium(content, known) if isinstance(content, dict) else f"[{known}]"


def read(form: Form, document: Document) -> list[Conversation]:
    """Return the conversations. A request has the time of its first part."""
    found = []
    for one in read_conversations(form, document):
        times = [time_of(form, record) or _time_of_parts(record) for record in one.messages]
        ids = (first_text(record, ("conversation_id",)) for record in one.messages)
        id = one.id or next((id for id in ids if id), None)
        found.append(replace(one, id=id, times=times))
    return found


def _time_of_parts(record: Any) -> datetime | None:
    parts = record.get("parts") if isinstance(record, dict) else None
    for part in parts if isinstance(parts, list) else ():
        if isinstance(part, dict) and (found := parse_time(part.get("timestamp"))) is not None:
            return found
    return None


FORM = Form(
    "pydantic-ai",
    "pydantic-ai",
    recognise,
    keys=("parts",),
    role=role,
    text=text,
    lists=("messages", "message_history", "all_messages"),
    read=read,
)

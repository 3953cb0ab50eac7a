"""UI messages and model messages of Vercel's AI SDK.

A UI message is ``{"id", "role", "parts": [{"type": "text" | "tool-NAME" | …}, …]}``. The parts are
shown by ``blocks.py``.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any

from sessionsdb.messages.formats.form import Conversation, Document, Form, Record
from sessionsdb.messages.formats.reading import parse_time, read_conversations, time_of

_MODEL_PARTS = ("tool-call", "tool-result")


def recognise(record: Record) -> bool:
    if not isinstance(record.get("role"), str):
        return False
    parts = record.get("parts")
    if isinstance(parts, list) and parts:
        return all(isinstance(part, dict) and isinstance(part.get("type"), str) for part in parts)
    content = record.get("content")
    return isinstance(content, list) and any(
        isinstance(part, dict) and part.get("type") in _MODEL_PARTS for part in content
    )


def read(form: Form, document: Document) -> list[Conversation]:
    """Return the conversations. The time of a message may stand in its metadata."""
    return [
        replace(one, times=[_time(form, record) for record in one.messages])
        for one in read_conversations(form, document)
    ]


def _time(form: Form, record: Any) -> datetime | None:
    if (found := time_of(form, record)) is not None or not isinstance(record, dict):
        return found
    metadata = record.get("metadata")
    return time_of(form, metadata) if isinstance(metadata, dict) else parse_time(None)


FORM = Form(
    "vercel",
    "Vercel AI SDK",
    recognise,
    aliases=("ai-sdk", "vercel-ai", "vercel-ai-sdk"),
    ids=("id", "chatId"),
    read=read,
)

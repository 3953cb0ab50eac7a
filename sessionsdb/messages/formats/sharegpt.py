"""Conversations of ShareGPT, the form of many data sets: ``{"from": "human", "value": TEXT}``."""

from __future__ import annotations

import json
from typing import Any

from sessionsdb.messages import marks
from sessionsdb.messages.blocks import call_text, content_text
from sessionsdb.messages.formats.form import Form, Record

_ROLES = {
    "human": "user",
    "user": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "system": "system",
    "observation": "tool",
    "function_response": "tool",
    "function-response": "tool",
    "tool": "tool",
}


def recognise(record: Record) -> bool:
    return isinstance(record.get("from"), str) and ("value" in record)


def role(record: Record) -> str:
    return _ROLES.get(record["from"].lower(), "user")


def text(record: Record) -> str:
    shown = content_text(record["value"])
    kind = record["from"].lower()
    return _call_text(shown) if kind == "function_call" else shown


def _call_text(given: str) -> str:
    """Return the mark of a call: the value is its JSON in most data sets."""
    try:
        call = json.loads(given)
    except (ValueError, RecursionError):
        call = None
    if isinstance(call, dict) and isinstance(call.get("name"), str):
        return call_text(call)
    return f"[tool_use: {marks.without_base64(given)}]"


def _system(prompt: Any) -> Record:
    return {"from": "system", "value": prompt}


FORM = Form(
    "sharegpt",
    "ShareGPT",
    recognise,
    keys=("from",),
    role=role,
    text=text,
    system=_system,
    lists=("conversations", "conversation", "items"),
)

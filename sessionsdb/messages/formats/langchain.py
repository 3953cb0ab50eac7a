"""The messages of LangChain as ``messages_to_dict`` and ``dumpd`` write them.

A record is ``{"type": "human" | "ai" | …, "data": {…}}``, or
``{"lc": 1, "type": "constructor", "id": […, "AIMessage"], "kwargs": {…}}``.
"""

from __future__ import annotations

from typing import Any

from sessionsdb.messages import marks
from sessionsdb.messages.blocks import content_text, has_failed
from sessionsdb.messages.formats.form import Form, Record
from sessionsdb.messages.message_text import message_text

_ROLES = {
    "human": "user",
    "ai": "assistant",
    "system": "system",
    "tool": "tool",
    "function": "tool",
    "chat": "user",
    "remove": "system",
}


def recognise(record: Record) -> bool:
    return _message(record) is not None


def _message(record: Record) -> tuple[str, dict[str, Any]] | None:
    """Return the type of the message and its fields."""
    kind = record.get("type")
    if kind == "constructor":
        path, given = record.get("id"), record.get("kwargs")
        name = path[-1] if isinstance(path, list) and path else None
        kind = name.lower() if isinstance(name, str) and "Message" in name else None
    else:
        given = record.get("data")
    if not isinstance(kind, str) or not isinstance(given, dict):
        return None
    plain = kind.lower().removesuffix("chunk").removesuffix("message")
    return (plain, given) if plain in _ROLES and "content" in given else None


def role(record: Record) -> str:
    kind, given = _message(record) or ("", {})
    own = given.get("role")
    return own if kind == "chat" and isinstance(own, str) and own else _ROLES.get(kind, "user")


def text(record: Record) -> str:
    kind, given = _message(record) or ("", {})
    if kind == "remove":
        return "[remove]"
    if kind in ("tool", "function") and has_failed(given):
        return marks.tool_result(content_text(given.get("content")), failed=True)
    # The type is that of the message, not of a block.
    return message_text({key: value for key, value in given.items() if key != "type"})


FORM = Form(
    "langchain",
    "LangChain",
    recognise,
    aliases=("messages-to-dict",),
    keys=("data", "kwargs"),
    role=role,
    text=text,
)

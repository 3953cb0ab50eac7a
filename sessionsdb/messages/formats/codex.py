"""The session files ("rollouts") of Codex.

A line is ``{"timestamp", "type", "payload"}``. A payload of the type ``response_item`` is an item
of OpenAI's Responses API. One of ``event_msg`` is a notice to the terminal, which repeats messages.
Files of 2025 hold the items themselves, without an envelope.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sessionsdb.messages import marks
from sessionsdb.messages.blocks import content_text
from sessionsdb.messages.formats.form import Conversation, Document, Form, Record
from sessionsdb.messages.formats.reading import first_text, left_out, time_of
from sessionsdb.messages.message_text import message_role, message_text

_TYPES = frozenset(
    (
        *("session_meta", "turn_context", "response_item", "event_msg", "compacted"),
        *("ghost_snapshot", "world_state", "inter_agent_communication"),
    )
)
_EVENT_ROLES = {"user_message": "user", "agent_message": "assistant"}
_EVENTS_OF_ITEMS = frozenset(_EVENT_ROLES) | {"agent_reasoning"}


def recognise(record: Record) -> bool:
    return _is_envelope(record) or record.get("record_type") == "state"


def _is_envelope(value: Any) -> bool:
    if not isinstance(value, Mapping):
        return False
    kind = value.get("type")
    return isinstance(kind, str) and kind in _TYPES and isinstance(value.get("payload"), dict)


def role(record: Record) -> str:
    if not _is_envelope(record):
        return "system"
    kind, payload = record["type"], record["payload"]
    if kind == "response_item":
        return message_role(payload)
    if kind == "event_msg":
        inner = payload.get("type")
        return _EVENT_ROLES.get(inner, "system") if isinstance(inner, str) else "system"
    return "system"


def text(record: Record) -> str:
    if not _is_envelope(record):
        return "[state]"
    kind, payload = record["type"], record["payload"]
    if kind == "response_item":
        return message_text(payload)
    if kind == "event_msg":
        return _event_text(payload)
    if kind == "compacted":
        return f"[summary: {content_text(payload.get('message'))}]"
    return f"[{kind}]"


def _event_text(payload: dict[str, Any]) -> str:
    kind = payload.get("type")
    if not isinstance(kind, str):
        return marks.shown_json(payload)
    if "reasoning" in kind:
        return ""
    texts = [content_text(payload.get("message"))]
    if isinstance(images := payload.get("images"), list):
        texts.extend("[image]" for _ in images)
    return "\n".join(one for one in texts if one) or f"[{kind}]"


def read(form: Form, document: Document) -> list[Conversation]:
    """Return the conversation of the file.

    Its messages are the items. Events are messages where the file has no item that is a message.
    """
    values = document.values
    if len(values) == 1 and isinstance(values[0], list):
        values = values[0]
    has_messages = any(_is_item(one) and "role" in one["payload"] for one in values)
    said = [one for one in values if _is_said(one, events=not has_messages)]
    ignored = [_kind(one) for one in values if not _is_said(one, events=not has_messages)]
    metas = [one["payload"] for one in values if _is(one, "session_meta")]
    id = next((found for one in metas if (found := first_text(one, ("id", "session_id")))), None)
    if id is None and values and not _is_envelope(values[0]):
        id = first_text(values[0], ("id",))
    times = [time_of(form, one) for one in said]
    return [Conversation(id, said, times, left_out=left_out(ignored))] if said else []


def _is(value: Any, kind: str) -> bool:
    return _is_envelope(value) and bool(value["type"] == kind)


def _is_item(value: Any) -> bool:
    return _is(value, "response_item")


def _is_said(value: Any, *, events: bool) -> bool:
    if not _is_envelope(value):
        # A file without envelopes: its first line is about the session, and others mark states.
        return not isinstance(value, dict) or ("type" in value and "record_type" not in value)
    kind = value["type"]
    inner = value["payload"].get("type")
    is_message = isinstance(inner, str) and inner in _EVENTS_OF_ITEMS
    return kind in ("response_item", "compacted") or (kind == "event_msg" and events and is_message)


def _kind(value: Any) -> Any:
    if _is(value, "event_msg"):
        inner = value["payload"].get("type")
        return f"event_msg {inner}" if isinstance(inner, str) else "event_msg"
    return value.get("type", value.get("record_type")) if isinstance(value, dict) else None


FORM = Form(
    "codex",
    "Codex",
    recognise,
    keys=("payload", "record_type"),
    role=role,
    text=text,
    lists=(),
    read=read,
)

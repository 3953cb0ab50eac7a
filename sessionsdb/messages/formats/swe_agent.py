"""The trajectories of SWE-agent (``.traj``).

A step is ``{"thought", "action", "observation", "response", "state", "query"}``. The ``history`` of
a file has all messages that the model got, which is more than its steps. The files of
mini-swe-agent hold ``messages`` of OpenAI's form only.
"""

from __future__ import annotations

from typing import Any

from sessionsdb.messages import marks
from sessionsdb.messages.blocks import content_text
from sessionsdb.messages.formats.form import Conversation, Document, Form, Record
from sessionsdb.messages.formats.reading import parse_time, read_conversations
from sessionsdb.messages.message_text import message_role, message_text

_HISTORY_KEYS = frozenset(("message_type", "agent", "is_demo"))


def is_step(record: Record) -> bool:
    """Return whether a record is a step."""
    return (
        "role" not in record
        and isinstance(record.get("action"), str)
        and isinstance(record.get("observation"), (str, type(None)))
        and bool(record.keys() & {"thought", "response", "state"})
    )


def recognise(record: Record) -> bool:
    return is_step(record) or (
        isinstance(record.get("role"), str) and len(record.keys() & _HISTORY_KEYS) >= 2
    )


def role(record: Record) -> str:
    return "assistant" if is_step(record) else message_role(record)


def text(record: Record) -> str:
    if not is_step(record):
        return message_text(record)
    thought, action = record.get("thought"), record["action"]
    texts = [content_text(record.get("response") if thought is None else thought)]
    if action.strip():
        texts.append(marks.tool_call("bash", {"command": action.strip()}))
    if record.get("observation") is not None:
        texts.append(marks.tool_result(content_text(record["observation"])))
    return "\n".join(one for one in texts if one)


def read(form: Form, document: Document) -> list[Conversation]:
    """Return the conversation: the messages of the model, or the steps if there are no messages."""
    found = read_conversations(form, document)
    holders = document.values
    for index, one in enumerate(found):
        holder = holders[index] if len(holders) == len(found) else None
        times = [_time(record) for record in one.messages]
        id = one.id or (_environment(holder) if isinstance(holder, dict) else None)
        found[index] = Conversation(id, one.messages, times)
    return found


def _environment(holder: dict[str, Any]) -> str | None:
    """Return the instance of a file: ``environment`` names it in newer files."""
    info = holder.get("info")
    for place in (holder, info if isinstance(info, dict) else {}):
        for key in ("instance_id", "environment"):
            if isinstance(found := place.get(key), str) and found not in ("", "main"):
                return found
    return None


def _time(record: Any) -> Any:
    extra = record.get("extra") if isinstance(record, dict) else None
    return parse_time(extra.get("timestamp")) if isinstance(extra, dict) else None


FORM = Form(
    "swe-agent",
    "SWE-agent",
    recognise,
    aliases=("sweagent",),
    keys=("observation",),
    role=role,
    text=text,
    lists=("history", "trajectory", "messages"),
    ids=("instance_id", "session_id"),
    read=read,
)

"""The events of OpenHands: of its SDK (version 1) and of version 0.

SDK: ``{"kind": "MessageEvent" | "ActionEvent" | "ObservationEvent" | …, "source", …}``. Version 0:
``{"action": NAME, "args": {…}}`` and ``{"observation": NAME, "content": …}``, with ``source``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sessionsdb.messages import marks
from sessionsdb.messages.blocks import content_text
from sessionsdb.messages.formats.form import Conversation, Document, Form, Record
from sessionsdb.messages.formats.reading import (
    first_text,
    left_out,
    read_conversations,
    time_of,
)
from sessionsdb.messages.message_text import message_role, message_text

_RESULT_KINDS = frozenset(("ObservationEvent", "UserRejectObservation", "AgentErrorEvent"))
_SAID_KINDS = frozenset(
    (
        *_RESULT_KINDS,
        *("MessageEvent", "ActionEvent", "SystemPromptEvent", "ACPToolCallEvent"),
        *("Condensation", "CondensationSummaryEvent", "ConversationErrorEvent"),
    )
)
_SOURCES = ("user", "agent", "environment", "hook", "system")
_STATE_KINDS = frozenset(
    (
        *("PauseEvent", "InterruptEvent", "ConversationStateUpdateEvent", "TokenEvent"),
        *("CondensationRequest", "LLMCompletionLogEvent", "HookExecutionEvent"),
        "StreamingDeltaEvent",
    )
)
_STATE_NAMES = frozenset(("agent_state_changed", "change_agent_state", "null", "recall"))
"""Actions and observations of version 0 about the program itself."""

_UNSHOWN_ARGUMENTS = frozenset(
    (
        *("thought", "is_confirmed", "confirmation_state", "security_risk", "hidden", "blocking"),
        *("keep_prompt", "is_input", "is_static", "cwd", "confirmed"),
    )
)


def recognise(record: Record) -> bool:
    kind = record.get("kind")
    if isinstance(kind, str):
        return kind in _SAID_KINDS or (kind in _STATE_KINDS and "source" in record)
    if isinstance(record.get("action"), str):
        return isinstance(record.get("args"), dict) and record.get("source") in (*_SOURCES, None)
    return (
        isinstance(record.get("observation"), str)
        and "content" in record
        and not ("action" in record or "step_id" in record)
    )


def role(record: Record) -> str:
    kind = record.get("kind")
    if isinstance(kind, str):
        return _role_of_event(record, kind)
    if "observation" in record:
        return "tool" if record["observation"] not in ("message", "chat") else "user"
    action = record["action"]
    if action == "system":
        return "system"
    return "user" if record.get("source") == "user" else "assistant"


def text(record: Record) -> str:
    kind = record.get("kind")
    if isinstance(kind, str):
        return _text_of_event(record, kind)
    if isinstance(record.get("action"), str):
        return _text_of_action(record, record["action"])
    failed = record["observation"] == "error" or record.get("success") is False
    if record["observation"] in ("message", "chat"):
        return content_text(record["content"])
    return marks.tool_result(content_text(record["content"]), failed=failed)


# ---- the SDK -------------------------------------------------------------------------------------


def _role_of_event(record: Record, kind: str) -> str:
    if kind in _RESULT_KINDS:
        return "tool"
    if kind in ("ActionEvent", "ACPToolCallEvent"):
        return "assistant"
    if kind == "MessageEvent":
        message = record.get("llm_message")
        source = "user" if record.get("source") == "user" else "assistant"
        return message_role(message, unsaid=source) if isinstance(message, dict) else source
    return "system"


def _text_of_event(record: Record, kind: str) -> str:
    if kind == "MessageEvent":
        message = record.get("llm_message")
        return message_text(message) if isinstance(message, dict) else "[MessageEvent]"
    if kind in ("ActionEvent", "ACPToolCallEvent"):
        return _text_of_tool_event(record)
    if kind == "ObservationEvent":
        observation = record.get("observation")
        if not isinstance(observation, dict):
            return marks.tool_result(content_text(observation))
        shown = observation.get("content", observation.get("output"))
        if shown is None:
            shown = {key: value for key, value in observation.items() if key != "kind"}
        return marks.tool_result(content_text(shown), failed=observation.get("is_error") is True)
    if kind == "UserRejectObservation":
        return marks.tool_result(content_text(record.get("rejection_reason")), failed=True)
    if kind == "AgentErrorEvent":
        return marks.tool_result(content_text(record.get("error")), failed=True)
    if kind == "SystemPromptEvent":
        return content_text(record.get("system_prompt"))
    if kind == "ConversationErrorEvent":
        return f"[error: {first_text(record, ('detail', 'code')) or ''}]"
    summary = first_text(record, ("summary",))
    return f"[summary: {summary}]" if summary else f"[{kind}]"


def _text_of_tool_event(record: Record) -> str:
    texts = [content_text(record.get("thought"))]
    call = record.get("tool_call")
    call = call if isinstance(call, dict) else {}
    function = call.get("function")
    function = function if isinstance(function, dict) else call
    name = first_text(record, ("tool_name",)) or first_text(function, ("name",))
    name = name or first_text(record, ("title",))
    arguments = function.get("arguments", record.get("raw_input"))
    action = record.get("action")
    if arguments is None and isinstance(action, dict):
        arguments = {key: value for key, value in action.items() if key != "kind"}
    texts.append(marks.tool_call(name or "tool", arguments))
    if record.get("raw_output") is not None:
        texts.append(marks.tool_result(content_text(record["raw_output"])))
    return "\n".join(one for one in texts if one)


# ---- version 0 -----------------------------------------------------------------------------------


def _text_of_action(record: Record, action: str) -> str:
    arguments = record["args"]
    if action in ("message", "system"):
        texts = [content_text(arguments.get("content", record.get("message")))]
        images = arguments.get("image_urls")
        texts.extend("[image]" for _ in (images if isinstance(images, list) else ()))
        return "\n".join(one for one in texts if one)
    if action == "think":
        return ""
    if action == "finish":
        return content_text(
            first_text(arguments, ("final_thought", "thought")) or record.get("message")
        )
    shown = {key: value for key, value in arguments.items() if key not in _UNSHOWN_ARGUMENTS}
    texts = [content_text(arguments.get("thought")), marks.tool_call(action, shown)]
    return "\n".join(one for one in texts if one)


def read(form: Form, document: Document) -> list[Conversation]:
    """Return the conversations, without the events about the program itself."""
    found = []
    for one in read_conversations(form, document):
        said = [record for record in one.messages if not _is_of_program(record)]
        ignored = left_out(_name(record) for record in one.messages if _is_of_program(record))
        times = [time_of(form, record) for record in said]
        if said:
            found.append(replace(one, messages=said, times=times, left_out=ignored))
    return found


def _is_of_program(record: Any) -> bool:
    name = _name(record)
    return isinstance(name, str) and (name in _STATE_KINDS or name in _STATE_NAMES)


def _name(record: Any) -> Any:
    return first_text(record, ("kind", "action", "observation"))


FORM = Form(
    "openhands",
    "OpenHands",
    recognise,
    keys=("kind", "action", "observation"),
    role=role,
    text=text,
    lists=("history", "events", "trajectory"),
    ids=("session_id", "conversation_id", "instance_id", "id"),
    read=read,
)

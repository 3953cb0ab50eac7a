"""The role and the text of a message that is itself a message of a model's API.

That are the messages of OpenAI, Anthropic, Gemini and Bedrock, items of OpenAI's Responses API,
messages of LangChain, and UI messages of Vercel. Records that hold such a message have forms of
their own, see ``formats/``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sessionsdb.messages import marks
from sessionsdb.messages.blocks import block_text, call_text, content_text, is_call, is_result
from sessionsdb.messages.reasoning import is_reasoning, without_reasoning

_ROLE_OF_TYPE = {
    "human": "user",
    "user": "user",
    "HumanMessageChunk": "user",
    "mcp_approval_response": "user",
    "system": "system",
    "SystemMessageChunk": "system",
    "developer": "developer",
    "tool": "tool",
    "function": "tool",
    "ToolMessageChunk": "tool",
    "ai": "assistant",
    "assistant": "assistant",
    "AIMessageChunk": "assistant",
}
_NO_CONTENT = frozenset(("tool_calls", "function_call", "refusal", "audio", "toolInvocations"))
"""Keys of a message that says something without content."""


def message_role(message: Mapping[str, Any], *, unsaid: str = "assistant") -> str:
    """Return the role of a message, derived from its type if it has none.

    ``unsaid`` is the role of a message that has neither a role nor a type that tells one.
    """
    role = message.get("role")
    if isinstance(role, str) and role:
        return role
    kind = message.get("type")
    if not isinstance(kind, str):
        return unsaid
    if is_result(kind):
        return "tool"
    if is_call(kind) or is_reasoning(message):
        return "assistant"
    return _ROLE_OF_TYPE.get(kind, unsaid)


def message_text(message: Mapping[str, Any]) -> str:
    """Return the text of a message, its blocks joined with newlines, without reasoning."""
    if is_reasoning(message):
        return ""
    return "\n".join(text for text in _texts(message) if text)


def _texts(message: Mapping[str, Any]) -> Iterator[str]:
    kind = message.get("type")
    parts = message.get("parts")
    if isinstance(kind, str) and kind != "message":
        yield block_text(message)
    elif isinstance(parts, list) and parts and not isinstance(message.get("content"), (list, dict)):
        # Vercel's UI messages before version 5 repeat the text of their parts in the content.
        yield content_text(parts)
    elif "content" in message:
        yield content_text(message["content"])
    elif "parts" in message:
        yield content_text(parts)
    elif isinstance(contents := message.get("contents"), list):  # Microsoft Agent Framework
        yield content_text(contents)
    elif not message.keys() & _NO_CONTENT:
        shown = without_reasoning(message)
        yield "" if not shown.keys() - {"role"} else block_text(shown)
    if kind is None or kind == "message":
        yield from _beside_content(message)
    if isinstance(call := message.get("function_call"), dict):  # OpenAI, before tool_calls
        yield call_text(call)
    yield from _tool_calls(message)


def _beside_content(message: Mapping[str, Any]) -> Iterator[str]:
    if isinstance(refusal := message.get("refusal"), str):
        yield refusal
    audio = message.get("audio")
    if isinstance(audio, dict):  # OpenAI: the model's answer as sound
        transcript = audio.get("transcript")
        yield f"[audio: {transcript}]" if isinstance(transcript, str) else "[audio]"
    invocations = message.get("toolInvocations")
    if isinstance(invocations, list) and not message.get("parts"):
        for one in invocations:
            yield content_text({"type": "tool-invocation", "toolInvocation": one})


def _tool_calls(message: Mapping[str, Any]) -> Iterator[str]:
    shown = _called_in_content(message.get("content"))
    for key in ("tool_calls", "invalid_tool_calls"):
        calls = message.get(key)
        for call in calls if isinstance(calls, list) else ():
            id = call.get("id") if isinstance(call, dict) else None
            if not (isinstance(id, str) and id in shown):
                yield _tool_call(call)


def _called_in_content(content: Any) -> set[str]:
    """Return the ids of the calls in the content. LangChain repeats them in ``tool_calls``."""
    if not isinstance(content, list):
        return set()
    return {
        id
        for block in content
        if isinstance(block, dict)
        and isinstance(kind := block.get("type"), str)
        and is_call(kind)
        and isinstance(id := block.get("id"), str)
    }


def _tool_call(call: Any) -> str:
    """Render an item of OpenAI's ``tool_calls``. The call stands under the key of its type."""
    if not isinstance(call, dict):
        return marks.shown_json(call)
    function = call.get("function", call.get("custom"))
    return call_text(function if isinstance(function, dict) else call)

"""The role and the text of a message for ``history`` and for SQL.

The reasoning of a model is in no text: it is not meant for the reader of an answer. A message that
is nothing else has an empty text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sessionsdb.messages.json_text import dump
from sessionsdb.messages.reasoning import is_reasoning, without_reasoning

MAX_RENDERED_DEPTH = 8
"""The depth of nested tool results that are rendered. Deeper ones are shown as JSON."""

_IMAGES = frozenset(("image", "image_url", "input_image", "computer_screenshot"))
_CALLS = frozenset(("function_call", "custom_tool_call", "tool_call"))
_RESULTS = ("_output", "tool_result")
_ROLE_OF_TYPE = {
    "human": "user",
    "user": "user",
    "system": "system",
    "tool": "tool",
    "ai": "assistant",
    "assistant": "assistant",
    "AIMessageChunk": "assistant",
}


def render_role(message: Mapping[str, Any], *, unsaid: str = "assistant") -> str:
    """Return the role of a message, derived from its type if it has none.

    ``unsaid`` is the role of a message that has neither a role nor a type that tells one.
    """
    role = message.get("role")
    if isinstance(role, str) and role:
        return role
    kind = message.get("type")
    if not isinstance(kind, str):
        return unsaid
    if kind.endswith(_RESULTS):
        return "tool"
    if kind in _CALLS or kind.endswith("tool_use") or is_reasoning(message):
        return "assistant"
    return _ROLE_OF_TYPE.get(kind, unsaid)


def render_text(message: Mapping[str, Any]) -> str:
    """Return the text of a message, its blocks joined with newlines, without reasoning."""
    if is_reasoning(message):
        return ""
    kind = message.get("type")
    parts: list[str] = []
    if isinstance(kind, str) and kind != "message":
        parts.append(_render_block(message, 0))
    elif "content" in message:
        parts.append(_render_content(message["content"], 0))
    elif "parts" in message:  # Gemini
        parts.append(_render_content(message["parts"], 0))
    elif not message.keys() & {"tool_calls", "function_call", "refusal"}:
        shown = without_reasoning(message)
        parts.append("" if not shown.keys() - {"role"} else _render_block(shown, 0))
    if isinstance(refusal := message.get("refusal"), str) and kind is None:
        parts.append(refusal)
    if isinstance(call := message.get("function_call"), dict):  # OpenAI, before tool_calls
        parts.append(_render_tool_use(call))
    if isinstance(calls := message.get("tool_calls"), list):
        parts.extend(_render_tool_call(call) for call in calls)
    return "\n".join(part for part in parts if part)


def _render_content(content: Any, depth: int) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, dict) and is_reasoning(content):
        return ""
    if depth >= MAX_RENDERED_DEPTH:
        return dump(without_reasoning(content))
    if isinstance(content, (list, tuple)):
        return "\n".join(text for block in content if (text := _render_content(block, depth + 1)))
    if isinstance(content, dict):
        return _render_block(content, depth)
    return dump(content)


def _render_block(block: Mapping[str, Any], depth: int) -> str:
    kind = block.get("type")
    if not isinstance(kind, str):
        return _render_gemini_part(block, depth)
    if kind in _CALLS or kind.endswith("tool_use"):
        return _render_tool_use(block)
    if kind in _IMAGES:
        return "[image]"
    if kind.endswith(_RESULTS):
        result = _render_content(block.get("content", block.get("output")), depth + 1)
        name = "tool_error" if block.get("is_error") is True else "tool_result"
        return f"[{name}: {result}]"
    text = block.get("text", block.get(kind))  # {"type": "refusal", "refusal": "…"}
    if isinstance(text, str):
        return text
    return _render_content(block["content"], depth + 1) if "content" in block else f"[{kind}]"


def _render_gemini_part(part: Mapping[str, Any], depth: int) -> str:
    """Render a part of Gemini. Its key is its type, in the spelling of REST or of Python."""
    if isinstance(text := part.get("text"), str):
        return text
    call = part.get("functionCall", part.get("function_call"))
    if isinstance(call, dict):
        return _render_tool_use(call)
    response = part.get("functionResponse", part.get("function_response"))
    if isinstance(response, dict):
        return f"[tool_result: {_render_content(response.get('response'), depth + 1)}]"
    blob = part.get("inlineData", part.get("inline_data"))
    if isinstance(blob, dict):
        media = blob.get("mimeType", blob.get("mime_type"))
        is_image = isinstance(media, str) and media.startswith("image/")
        return "[image]" if is_image else "[inlineData]"
    if isinstance(parts := part.get("parts"), list):
        return _render_content(parts, depth + 1)
    return dump(without_reasoning(part))


def _render_tool_call(call: Any) -> str:
    """Render an item of OpenAI's ``tool_calls``. The call stands under the key of its type."""
    if not isinstance(call, dict):
        return dump(call)
    function = call.get("function", call.get("custom"))
    return _render_tool_use(function if isinstance(function, dict) else call)


def _render_tool_use(call: Mapping[str, Any]) -> str:
    name = call.get("name")
    arguments = next((call[key] for key in ("input", "arguments", "args") if key in call), None)
    # OpenAI passes arguments as JSON text, Anthropic passes an object.
    text = arguments if isinstance(arguments, str) else dump(arguments)
    return f"[tool_use: {name if isinstance(name, str) else dump(name)} input={text}]"

"""Render the role and the text of a message, for history and for SQL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sessionsdb.messages.json_text import (
    dump,
)

RENDERED_DEPTH = 8
"""Tool results nest; below this depth they are shown as JSON."""

_IMAGES = frozenset(("image", "image_url", "input_image", "computer_screenshot"))
_CALLS = frozenset(("function_call", "custom_tool_call", "tool_call"))
_RESULTS = ("_output", "tool_result")
COMMON_ROLES = frozenset(("user", "assistant", "system", "tool"))
_ROLES = {"human": "user", "user": "user", "system": "system", "tool": "tool"}


def role_of(message: Mapping[str, Any]) -> str:
    role = message.get("role")
    if isinstance(role, str) and role:
        return role
    kind = message.get("type")
    if not isinstance(kind, str):
        return "assistant"
    return "tool" if kind.endswith(_RESULTS) else _ROLES.get(kind, "assistant")


def text_of(message: Mapping[str, Any]) -> str:
    kind = message.get("type")
    parts: list[str] = []
    if isinstance(kind, str) and kind != "message":
        parts.append(_block(message, 0))
    elif "content" in message:
        parts.append(_render(message["content"], 0))
    elif "parts" in message:  # Gemini
        parts.append(_render(message["parts"], 0))
    elif not message.keys() & {"tool_calls", "function_call", "refusal"}:
        parts.append("" if message.keys() == {"role"} else _block(message, 0))
    if isinstance(refusal := message.get("refusal"), str) and kind is None:
        parts.append(refusal)
    if isinstance(call := message.get("function_call"), dict):  # OpenAI's, before tool_calls
        parts.append(_tool_use(call))
    if isinstance(calls := message.get("tool_calls"), list):
        parts.extend(_tool_call(call) for call in calls)
    return "\n".join(part for part in parts if part)


def _render(content: Any, depth: int) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if depth >= RENDERED_DEPTH:
        return dump(content)
    if isinstance(content, (list, tuple)):
        return "\n".join(text for block in content if (text := _render(block, depth + 1)))
    if isinstance(content, dict):
        return _block(content, depth)
    return dump(content)


def _block(block: Mapping[str, Any], depth: int) -> str:
    kind = block.get("type")
    if not isinstance(kind, str):
        return _part(block, depth)
    if kind in _CALLS or kind.endswith("tool_use"):
        return _tool_use(block)
    if kind in _IMAGES:
        return "[image]"
    if kind.endswith(_RESULTS):
        result = _render(block.get("content", block.get("output")), depth + 1)
        name = "tool_error" if block.get("is_error") is True else "tool_result"
        return f"[{name}: {result}]"
    if kind == "reasoning":
        return _render(block.get("summary") or block.get("content"), depth + 1)
    text = block.get("text", block.get(kind))  # {"type": "refusal", "refusal": "…"}
    if isinstance(text, str):
        return text
    return _render(block["content"], depth + 1) if "content" in block else f"[{kind}]"


def _part(part: Mapping[str, Any], depth: int) -> str:
    """Gemini's parts, which tell what they are by their key, in REST's spelling or Python's."""
    if isinstance(text := part.get("text"), str):
        return text
    call = part.get("functionCall", part.get("function_call"))
    if isinstance(call, dict):
        return _tool_use(call)
    response = part.get("functionResponse", part.get("function_response"))
    if isinstance(response, dict):
        return f"[tool_result: {_render(response.get('response'), depth + 1)}]"
    blob = part.get("inlineData", part.get("inline_data"))
    if isinstance(blob, dict):
        media = blob.get("mimeType", blob.get("mime_type"))
        is_image = isinstance(media, str) and media.startswith("image/")
        return "[image]" if is_image else "[inlineData]"
    return dump(part)


def _tool_call(call: Any) -> str:
    """One of OpenAI's ``tool_calls``: what it calls stands under its type."""
    if not isinstance(call, dict):
        return dump(call)
    called = call.get("function", call.get("custom"))
    return _tool_use(called if isinstance(called, dict) else call)


def _tool_use(call: Mapping[str, Any]) -> str:
    name = call.get("name")
    given = next((call[key] for key in ("input", "arguments", "args") if key in call), None)
    # OpenAI passes arguments as JSON text already, Anthropic as an object.
    arguments = given if isinstance(given, str) else dump(given)
    return f"[tool_use: {name if isinstance(name, str) else dump(name)} input={arguments}]"

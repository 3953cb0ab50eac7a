"""A message on its way into a row and back: ``(role, content, payload)``.

``role`` and ``content`` are what people and SQL read. ``payload`` is the exact JSON, and NULL
when role and content say it all, which they do for most messages. What is read back equals what
was written to the last character; only ``content`` is a rendering.

The forms understood here are OpenAI's chat messages and response items, Anthropic's content
blocks and Gemini's parts. Whatever else JSON can say is stored just as faithfully, and renders
as JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from sessionsdb.errors import InvalidMessage

Message = dict[str, Any]

MAX_DEPTH = 256
"""Nesting beyond which a message is refused. Python's JSON reader gives up near 1,000 frames,
counted from wherever it is called: what is accepted here can be read from any depth of stack."""

RENDERED_DEPTH = 8
"""Tool results nest; below this depth they are shown as JSON."""

REPLACEMENT = "\ufffd"

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_TEXT_TYPES = frozenset(("text", "input_text", "output_text", "summary_text", "reasoning_text"))
_IMAGE_TYPES = frozenset(("image", "image_url", "input_image", "computer_screenshot"))
_TOOL_USE_TYPES = frozenset(("tool_use", "server_tool_use", "function_call", "custom_tool_call"))


class StoredMessage(NamedTuple):
    """The three columns that hold one message."""

    role: str
    content: str
    payload: str | None


def encode(message: Any, *, max_bytes: int) -> StoredMessage:
    """The columns for ``message``.

    Raises ``InvalidMessage`` if it is not a JSON object, if JSON can't say it (NaN, bytes, keys
    that are not strings, …), if it nests deeper than ``MAX_DEPTH`` or is larger than ``max_bytes``.
    """
    if not isinstance(message, dict):
        raise InvalidMessage(
            f"a message must be a JSON object (a dict), not {type(message).__name__}"
        )
    if (plain := _plain(message, max_bytes)) is not None:
        return plain
    _refuse_what_json_cannot_say(message, max_bytes)
    payload = _dump(message)
    size = len(payload) if payload.isascii() else len(payload.encode())
    if size > max_bytes:
        raise _too_large(size, max_bytes)
    return StoredMessage(storable(_role(message)), storable(_content(message)), payload)


def encode_all(messages: Any, *, max_bytes: int) -> list[StoredMessage]:
    """The columns for each of ``messages``; the error names the one that was refused."""
    if not isinstance(messages, (list, tuple)):
        raise InvalidMessage(f"messages must be a list of dicts, not {type(messages).__name__}")
    stored = []
    for index, message in enumerate(messages):
        try:
            stored.append(encode(message, max_bytes=max_bytes))
        except InvalidMessage as error:
            raise InvalidMessage(f"message {index}: {error}") from None
    return stored


def encode_text(text: Any, *, what: str, max_bytes: int) -> StoredMessage:
    """The columns for a user's ``text``, which must not be empty; ``what`` names it in errors."""
    if not isinstance(text, str):
        raise InvalidMessage(f"{what} must be a string, not {type(text).__name__}")
    if not text:
        raise InvalidMessage(f"{what} must not be empty")
    return encode({"role": "user", "content": text}, max_bytes=max_bytes)


def decode(role: str, content: str, payload: str | None) -> Message:
    """The message that was encoded: a fresh object, equal to the original."""
    if payload is None:
        return {"role": role, "content": content}
    message: Message = json.loads(payload)
    return message


def _plain(message: Message, max_bytes: int) -> StoredMessage | None:
    """The columns of the common ``{"role": …, "content": …}``, which need no payload."""
    if len(message) != 2 or tuple(message) != ("role", "content"):
        return None
    role, content = message["role"], message["content"]
    if type(role) is not str or type(content) is not str or not role:
        return None
    if not (_is_storable(role) and _is_storable(content)):
        return None
    # As JSON a character takes six bytes at the most, and the braces and names 25.
    if (len(role) + len(content)) * 6 + 25 > max_bytes:
        size = len(_dump(message).encode())
        if size > max_bytes:
            raise _too_large(size, max_bytes)
    return StoredMessage(role, content, None)


def _too_large(size: int, max_bytes: int) -> InvalidMessage:
    return InvalidMessage(
        f"message is {size} bytes as JSON, the limit is {max_bytes}; "
        "store large content elsewhere and refer to it, or raise Limits.message_bytes"
    )


def _refuse_what_json_cannot_say(message: Message, max_bytes: int) -> None:
    # json.dumps turns keys like 1 and None into strings without a word, and its own check for
    # circles costs more than this walk.
    containers: list[tuple[Any, int]] = [(message, 1)]
    seen = 0
    while containers:
        container, depth = containers.pop()
        if depth > MAX_DEPTH:
            raise InvalidMessage(f"message nests deeper than {MAX_DEPTH} levels, or holds itself")
        if isinstance(container, dict):
            for key in container:
                if not isinstance(key, str):
                    raise InvalidMessage(
                        f"message is not JSON: the key {key!r:.60} is not a string"
                    )
            values = container.values()
        else:
            values = container
        seen += len(container)
        if seen > max_bytes:  # every value is a byte at least
            raise _too_large(seen, max_bytes)
        containers.extend((v, depth + 1) for v in values if isinstance(v, (dict, list, tuple)))


def _dump(value: Any) -> str:
    """Compact JSON that any UTF-8 column can hold: lone surrogates and NUL stay escaped."""
    try:
        text = json.dumps(
            value,
            ensure_ascii=False,
            allow_nan=False,
            check_circular=False,
            separators=(",", ":"),
        )
        if _is_storable(text):
            return text
        return json.dumps(value, allow_nan=False, check_circular=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidMessage(f"message is not JSON: {error}") from None


def _is_storable(text: str) -> bool:
    return text.isprintable() or _UNSTORABLE.search(text) is None


def storable(text: str) -> str:
    """``text`` with what a text column can't hold replaced by U+FFFD."""
    return text if _is_storable(text) else _UNSTORABLE.sub(REPLACEMENT, text)


def _role(message: Mapping[str, Any]) -> str:
    role = message.get("role")
    if isinstance(role, str) and role:
        return role
    kind = message.get("type")
    if isinstance(kind, str) and (kind.endswith("_output") or kind == "tool_result"):
        return "tool"
    return "assistant"


def _content(message: Mapping[str, Any]) -> str:
    parts: list[str] = []
    if "content" in message and "type" not in message:
        parts.append(_render(message["content"], 0))
    elif "parts" in message:
        parts.append(_render(message["parts"], 0))
    elif "role" not in message or message.get("type") not in (None, "message"):
        parts.append(_block(message, 0))
    elif "content" in message:
        parts.append(_render(message["content"], 0))
    calls = message.get("tool_calls")
    if isinstance(calls, list):
        parts.extend(_tool_call(call) for call in calls)
    return "\n".join(part for part in parts if part)


def _render(content: Any, depth: int) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if depth >= RENDERED_DEPTH:
        return _dump(content)
    if isinstance(content, (list, tuple)):
        return "\n".join(text for block in content if (text := _render(block, depth + 1)))
    if isinstance(content, dict):
        return _block(content, depth)
    return _dump(content)


def _block(block: Mapping[str, Any], depth: int) -> str:
    kind = block.get("type")
    if not isinstance(kind, str):
        text = block.get("text")
        return text if isinstance(text, str) else _dump(block)
    if kind in _TOOL_USE_TYPES:
        return _tool_use(block.get("name"), block.get("input", block.get("arguments")))
    if kind in _IMAGE_TYPES:
        return "[image]"
    if kind == "tool_result" or kind.endswith("_output"):
        result = _render(block.get("content", block.get("output")), depth + 1)
        return (
            f"[tool_error: {result}]"
            if block.get("is_error") is True
            else f"[tool_result: {result}]"
        )
    if kind == "reasoning":
        return _render(block.get("summary"), depth + 1)
    if kind == "message":
        return _render(block.get("content"), depth + 1)
    text = block.get("text", block.get(kind))  # {"type": "refusal", "refusal": "…"}
    if isinstance(text, str) and (kind in _TEXT_TYPES or "text" in block or kind in block):
        return text
    return f"[{kind}]"


def _tool_call(call: Any) -> str:
    if not isinstance(call, dict):
        return _dump(call)
    function = call.get("function")
    if not isinstance(function, dict):
        function = call
    return _tool_use(function.get("name"), function.get("arguments", function.get("input")))


def _tool_use(name: Any, given: Any) -> str:
    # OpenAI passes arguments as JSON text already, Anthropic as an object.
    arguments = given if isinstance(given, str) else _dump(given)
    return f"[tool_use: {name if isinstance(name, str) else _dump(name)} input={arguments}]"

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
_SURROGATE = re.compile("[\ud800-\udfff]")
_ESCAPE = re.compile(r"\\(?:u(D[89A-F][0-9A-F]{2})|.)")

_PLAIN = ("role", "content")

_LEAVES = frozenset((str, int, float, bool, type(None)))
_CONTAINERS = frozenset((dict, list, tuple))

_IMAGES = frozenset(("image", "image_url", "input_image", "computer_screenshot"))
_CALLS = frozenset(("function_call", "custom_tool_call", "tool_call"))
_RESULTS = ("_output", "tool_result")
_COMMON_ROLES = frozenset(("user", "assistant", "system", "tool"))
_ROLES = {"human": "user", "user": "user", "system": "system", "tool": "tool"}


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
    if not issubclass(type(message), dict):
        raise InvalidMessage(
            f"a message must be a JSON object (a dict), not {type(message).__name__}"
        )
    try:
        return _encoded(message, max_bytes)
    except InvalidMessage:
        raise
    except Exception as error:  # of the methods of what is in it
        raise InvalidMessage(f"message can't be read: its {type(error).__name__}") from error


def _encoded(message: Message, max_bytes: int) -> StoredMessage:
    if (plain := _plain(message, max_bytes)) is not None:
        return plain
    exact = _refuse_what_json_cannot_say(message, max_bytes)
    payload = _dump(message)
    _refuse_large(payload, max_bytes)
    if not exact:
        message = decode("", "", payload)
    return StoredMessage(storable(_role(message)), storable(_content(message)), payload)


def encode_all(messages: Any, *, max_bytes: int, first: int = 0) -> list[StoredMessage]:
    """The columns for each of ``messages``; the error names the one that was refused, counted from
    ``first``."""
    if type(messages) not in (list, tuple):
        messages = _listed(messages)
    stored = []
    for index, message in enumerate(messages, first):
        try:
            plain = _plain(message, max_bytes)  # most are, and a transcript may be long
            stored.append(plain or encode(message, max_bytes=max_bytes))
        except InvalidMessage as error:
            raise InvalidMessage(f"message {index}: {error}") from None
    return stored


def _listed(messages: Any) -> list[Any]:
    if not issubclass(type(messages), (list, tuple)):
        raise InvalidMessage(f"messages must be a list of dicts, not {type(messages).__name__}")
    try:
        return list(messages)
    except Exception as error:
        raise InvalidMessage(f"messages can't be read: their {type(error).__name__}") from error


def encode_text(text: Any, *, what: str, max_bytes: int) -> StoredMessage:
    """The columns for a user's ``text``, which must not be empty; ``what`` names it in errors."""
    if type(text) is not str:
        if not issubclass(type(text), str):
            raise InvalidMessage(f"{what} must be a string, not {type(text).__name__}")
        text = str.__str__(text)
    if not text:
        raise InvalidMessage(f"{what} must not be empty")
    message = {"role": "user", "content": text}
    return _plain(message, max_bytes) or encode(message, max_bytes=max_bytes)


def decode(role: str, content: str, payload: str | None) -> Message:
    """The message that was encoded: a fresh object, equal to the original."""
    if payload is None:
        return {"role": role, "content": content}
    if "\\uD" in payload:
        payload = _ESCAPE.sub(_surrogate, payload)
    message: Message = json.loads(payload)
    return message


def _plain(message: Message, max_bytes: int) -> StoredMessage | None:
    """The columns of the common ``{"role": …, "content": …}``, which need no payload."""
    if type(message) is not dict or tuple(message) != _PLAIN:
        return None
    role, content = message.values()
    if type(role) is not str or type(content) is not str:
        return None
    if role not in _COMMON_ROLES and not (role and _is_storable(role)):
        return None
    if not _is_storable(content):
        return None
    # As JSON a character takes six bytes at the most, and the braces and names 25.
    if (len(role) + len(content)) * 6 + 25 > max_bytes:
        _refuse_large(_dump(message), max_bytes)
    return StoredMessage(role, content, None)


def _refuse_large(payload: str, max_bytes: int) -> None:
    size = len(payload) if payload.isascii() else len(payload.encode())
    if size > max_bytes:
        raise _too_large(str(size), max_bytes)


def _too_large(size: str, max_bytes: int) -> InvalidMessage:
    return InvalidMessage(
        f"message is {size} bytes as JSON, the limit is {max_bytes}; "
        "store large content elsewhere and refer to it, or raise Limits.message_bytes"
    )


def _refuse_what_json_cannot_say(message: Message, max_bytes: int) -> bool:
    """Whether all in it is of exactly the types that JSON's reader makes. A subclass may answer
    as it likes: then what is rendered is what was written, read back."""
    # json.dumps turns keys like 1 and None into strings without a word, and its own check for
    # circles costs more than this walk.
    containers: list[tuple[Any, int]] = [(message, 1)]
    seen = 0
    exact = True
    while containers:
        container, depth = containers.pop()
        if depth > MAX_DEPTH:
            raise InvalidMessage(f"message nests deeper than {MAX_DEPTH} levels, or holds itself")
        if isinstance(container, dict):
            for key in container:
                if type(key) is str:
                    continue
                exact = False
                if not issubclass(type(key), str):
                    raise InvalidMessage(
                        f"message is not JSON: it has a key of type {type(key).__name__}, "
                        "keys must be strings"
                    )
            values = container.values()
        else:
            values = container
        seen += len(container)
        if seen > max_bytes:  # every value is a byte at least
            raise _too_large(f"over {max_bytes}", max_bytes)
        for value in values:
            kind = type(value)
            if kind in _LEAVES:
                continue
            if kind in _CONTAINERS:
                containers.append((value, depth + 1))
                continue
            exact = False
            if issubclass(kind, (dict, list, tuple)):
                containers.append((value, depth + 1))
    return exact


def _dump(value: Any) -> str:
    """Compact JSON that any UTF-8 column can hold.

    NUL is escaped as JSON wants it. A surrogate that stands for itself is escaped with capitals,
    which nothing else here writes: two of them in a row must not be read as one character.
    """
    try:
        text = json.dumps(
            value,
            ensure_ascii=False,
            allow_nan=False,
            check_circular=False,
            separators=(",", ":"),
        )
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidMessage(f"message is not JSON: {error}") from None
    if _is_storable(text):
        return text
    return _SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04X}", text)


def _surrogate(escape: re.Match[str]) -> str:
    return chr(int(escape[1], 16)) if escape[1] else escape[0]


def _is_storable(text: str) -> bool:
    if text.isascii():  # known without looking
        return "\x00" not in text
    return text.isprintable() or _UNSTORABLE.search(text) is None


def storable(text: str) -> str:
    """``text`` with what a text column can't hold replaced by U+FFFD."""
    return text if _is_storable(text) else _UNSTORABLE.sub(REPLACEMENT, text)


def _role(message: Mapping[str, Any]) -> str:
    role = message.get("role")
    if isinstance(role, str) and role:
        return role
    kind = message.get("type")
    if not isinstance(kind, str):
        return "assistant"
    return "tool" if kind.endswith(_RESULTS) else _ROLES.get(kind, "assistant")


def _content(message: Mapping[str, Any]) -> str:
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
        return _dump(content)
    if isinstance(content, (list, tuple)):
        return "\n".join(text for block in content if (text := _render(block, depth + 1)))
    if isinstance(content, dict):
        return _block(content, depth)
    return _dump(content)


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
    return _dump(part)


def _tool_call(call: Any) -> str:
    """One of OpenAI's ``tool_calls``: what it calls stands under its type."""
    if not isinstance(call, dict):
        return _dump(call)
    called = call.get("function", call.get("custom"))
    return _tool_use(called if isinstance(called, dict) else call)


def _tool_use(call: Mapping[str, Any]) -> str:
    name = call.get("name")
    given = next((call[key] for key in ("input", "arguments", "args") if key in call), None)
    # OpenAI passes arguments as JSON text already, Anthropic as an object.
    arguments = given if isinstance(given, str) else _dump(given)
    return f"[tool_use: {name if isinstance(name, str) else _dump(name)} input={arguments}]"

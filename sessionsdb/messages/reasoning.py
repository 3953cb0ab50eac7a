"""Tell the reasoning of a model from its answer, in the forms of common providers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

# thinking, redacted_thinking, reasoning, reasoning_text, redacted-reasoning, reasoning.summary,
# reasoningContent, thought, thought_summary, agent_reasoning
_KIND = re.compile(r"(?:.*[^a-z])?(?:thinking|reasoning|thoughts?)(?:$|[^a-z].*)", re.DOTALL)

_KIND_KEYS = ("type", "part_kind", "kind", "role")

_KEYS = frozenset(
    (
        *("reasoning_content", "reasoningContent", "reasoning_details", "reasoning_text"),
        *("reasoningText", "thinking_blocks", "redacted_thinking", "redactedContent"),
    )
)
"""Keys that hold reasoning wherever they stand."""

_MESSAGE_KEYS = _KEYS | {"reasoning", "thinking"}
"""Keys that hold reasoning beside the content of a message. A tool's result can have them too."""

_ARGUMENTS = frozenset(("input", "arguments", "args", "functionCall", "function_call", "toolUse"))
"""Keys of the arguments of a tool call, which are no reasoning whatever their names."""

_WORDS = _MESSAGE_KEYS - {"redacted_thinking", "redactedContent"} | {"text", "content", "summary"}
"""Keys of reasoning that hold its words. Others hold signatures, and what a provider encrypted."""

_MAX_DEPTH = 256


def is_reasoning(block: Mapping[str, Any]) -> bool:
    """Return whether a block, or a message of only one part, holds reasoning and nothing else."""
    for key in _KIND_KEYS:
        kind = block.get(key)
        if isinstance(kind, str) and kind not in ("text", "message") and _KIND.match(_words(kind)):
            return True
    if block.get("thought") is True:  # Gemini
        return True
    if block.get("channel") == "analysis" and "content" in block:  # OpenAI Harmony
        return True
    # Bedrock: the key of a block is its type.
    given = {key for key, value in block.items() if value is not None}
    return bool(given) and given <= _KEYS


def _words(kind: str) -> str:
    """Return a name such as ``reasoningContent`` in small letters, its words apart."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind[:100]).lower()


def without_reasoning(value: Any, depth: int = 0) -> Any:
    """Return a message, or another JSON value, without the reasoning at any depth of it.

    Tool calls keep their arguments: a tool may have an argument with the name ``reasoning``.
    """
    if depth > _MAX_DEPTH:
        return value
    if isinstance(value, Mapping):
        hidden = _KEYS if depth or "role" not in value else _MESSAGE_KEYS
        return {
            key: item if key in _ARGUMENTS else without_reasoning(item, depth + 1)
            for key, item in value.items()
            if key not in hidden and not _is_hidden(item)
        }
    if isinstance(value, (list, tuple)):
        return [without_reasoning(item, depth + 1) for item in value if not _is_hidden(item)]
    return value


def _is_hidden(item: Any) -> bool:
    return isinstance(item, Mapping) and is_reasoning(item)


def reasoning_text(message: Mapping[str, Any]) -> str:
    """Return the reasoning of a message for people: all that ``without_reasoning`` leaves out.

    Its parts are in their order, with an empty line between. A part that is there twice comes once:
    some providers send the text and its details. Encrypted reasoning has no text.
    """
    return "\n\n".join(dict.fromkeys(_reasoning(message, 0)))


def _reasoning(value: Any, depth: int) -> Iterator[str]:
    if depth > _MAX_DEPTH:
        return
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _reasoning(item, depth + 1)
    elif isinstance(value, Mapping):
        if is_reasoning(value):
            yield from _words_of(value, depth)
            return
        hidden = _KEYS if depth or "role" not in value else _MESSAGE_KEYS
        for key, item in value.items():
            if key in hidden:
                yield from _words_of({key: item}, depth)
            elif key not in _ARGUMENTS:
                yield from _reasoning(item, depth + 1)


def _words_of(value: Any, depth: int) -> Iterator[str]:
    if isinstance(value, str):
        if text := value.strip():
            yield text
    elif depth > _MAX_DEPTH:
        return
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _words_of(item, depth + 1)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if key in _WORDS:
                yield from _words_of(item, depth + 1)

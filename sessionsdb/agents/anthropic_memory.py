"""The transcript of a session as the messages of Anthropic's API.

The API has rules for a conversation. A user speaks first. The results of tools stand directly
behind their calls and before other blocks. A text is never blank. Some endpoints want the roles to
alternate. So messages of one role that follow each other become one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sessionsdb.agents.told import is_by_model, is_from_another_agent, told_text
from sessionsdb.approvals import Message, result_ids, tool_calls
from sessionsdb.types import SessionDetails, TranscriptEntry

Block = dict[str, Any]

_USER_BLOCKS = frozenset(("text", "image", "document", "search_result", "container_upload"))
_BLOCKS = {
    "user": _USER_BLOCKS | {"tool_result"},
    "assistant": frozenset(
        (
            *("text", "thinking", "redacted_thinking", "tool_use"),
            *("server_tool_use", "mcp_tool_use"),
        )
    ),
}
"""The blocks that a message of a role may have. The results of tools at Anthropic are others."""
_FIELDS: dict[str, dict[str, type]] = {
    "text": {"text": str},
    "image": {"source": dict},
    "document": {"source": dict},
    "thinking": {"thinking": str},
    "tool_use": {"id": str, "name": str, "input": dict},
    "tool_result": {"tool_use_id": str},
}
"""What a block of a kind must have."""


def conversation(
    session: SessionDetails,
    entries: Iterable[TranscriptEntry],
    late: Sequence[Message] = (),
    asked: Message | None = None,
) -> list[Message]:
    """Return the messages that a model is given, from the first one of a user on.

    Words of other agents are marked. Calls of tools without a result are left out, and so are
    results without a call. A message of another form is told as text. ``late`` has results of the
    last calls that this turn adds, ``asked`` is the message that the turn answers.
    """
    told = [one for entry in entries if (one := _told(session, entry)) is not None]
    told = _complete(_with_results(told, late))
    return alternating([*told, asked] if asked is not None else told)


def asked_message(message: Message) -> Message | None:
    """Return a message of a user whole, or ``None`` if the API would not take it."""
    content = _content(message)
    if message.get("role") != "user" or not content:
        return None
    if isinstance(content, list) and not all(one["type"] in _USER_BLOCKS for one in content):
        return None
    return {"role": "user", "content": content}


def alternating(messages: Iterable[Message]) -> list[Message]:
    """Return the messages without blank texts. Neighbours of one role become one message."""
    kept: list[Message] = []
    for one in messages:
        message = {**one, "content": _told_content(one["content"])}
        if not message["content"]:
            continue
        if kept and kept[-1]["role"] == message["role"]:
            both = _blocks(kept[-1]) + _blocks(message)
            kept[-1] = {"role": message["role"], "content": both}
        else:
            kept.append(message)
    return kept


def called_names(messages: Iterable[Message]) -> list[str]:
    """Return the names of the tools that the messages call, each once."""
    return list(dict.fromkeys(call.name for one in messages for call in tool_calls(one)))


def _told(session: SessionDetails, entry: TranscriptEntry) -> Message | None:
    message = entry.message
    is_own = not is_from_another_agent(session, entry)
    if is_own and message.get("role") in ("user", "assistant") and (content := _content(message)):
        return {"role": message["role"], "content": content}
    text = told_text(session, entry)
    if not text.strip():  # reasoning alone, or a blank text
        return None
    return {"role": "assistant" if is_own and is_by_model(entry) else "user", "content": text}


def _content(message: Message) -> str | list[Block] | None:
    """Return the content of a message of Anthropic, or ``None`` if it is of another form or empty.

    Reasoning without a signature is left out, since the API refuses it.
    """
    content = message.get("content")
    if isinstance(content, str) and message.keys() <= {"role", "content"}:
        return _told_content(content)
    if not isinstance(content, list) or "tool_calls" in message:
        return None
    if not all(_is_block(block, str(message.get("role"))) for block in content):
        return None
    signed = [one for one in content if one["type"] != "thinking" or one.get("signature")]
    return _told_content(signed)


def _told_content(content: str | list[Block]) -> str | list[Block]:
    """Return a content without blank texts, which the API refuses."""
    if isinstance(content, str):
        return content if content.strip() else ""
    return [one for one in content if one["type"] != "text" or one["text"].strip()]


def _is_block(block: Any, role: str) -> bool:
    kind = block.get("type") if isinstance(block, dict) else None
    if not isinstance(kind, str):
        return False
    if kind not in _BLOCKS.get(role, ()):
        return role == "assistant" and kind.endswith("_tool_result")
    return all(isinstance(block.get(key), of) for key, of in _FIELDS.get(kind, {}).items())


def _blocks(message: Message) -> list[Block]:
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _with_results(messages: list[Message], late: Sequence[Message]) -> list[Message]:
    """Return the messages with the missing results of the last calls at their place."""
    last = max((n for n, one in enumerate(messages) if tool_calls(one)), default=None)
    if last is None or not late:
        return messages
    end = last + 1
    while end < len(messages) and result_ids(messages[end]):
        end += 1
    wanted = {call.id for call in tool_calls(messages[last])}
    wanted -= {id for one in messages[last:end] for id in result_ids(one)}
    added = [
        {"role": "user", "content": [block]}
        for one in late
        if result_ids(one)
        for block in _blocks(one)
        if block.get("tool_use_id") in wanted
    ]
    return [*messages[:end], *added, *messages[end:]]


def _complete(messages: Sequence[Message]) -> list[Message]:
    """Return the messages from the first of a user on, each call with its result behind it."""
    kept: list[Message] = []
    index = next(
        (n for n, one in enumerate(messages) if one["role"] == "user" and not result_ids(one)),
        len(messages),
    )
    while index < len(messages):
        message = messages[index]
        index += 1
        calls = tool_calls(message)
        behind: list[Block] = []
        while calls and index < len(messages) and result_ids(messages[index]):
            behind += _blocks(messages[index])
            index += 1
        results = {str(one["tool_use_id"]): one for one in behind if one["type"] == "tool_result"}
        others = [one for one in behind if one["type"] != "tool_result"]
        if calls and all(call.id in results for call in calls):
            others = [*(results[call.id] for call in calls), *others]
        else:
            message = _without(message, ("tool_use", "tool_result"))
        kept += [one for one in (message, {"role": "user", "content": others}) if one["content"]]
    return kept


def _without(message: Message, kinds: Sequence[str]) -> Message:
    content = message["content"]
    if isinstance(content, str):
        return message
    return {**message, "content": [block for block in content if block["type"] not in kinds]}

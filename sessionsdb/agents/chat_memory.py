"""The transcript of a session as the messages of a chat completion."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any

from sessionsdb.agents.told import is_from_another_agent, told_text
from sessionsdb.messages.rendering import render_role
from sessionsdb.types import SessionDetails, TranscriptEntry
from sessionsdb.worker import Turn
from sessionsdb.worker.turn_entries import newest_entries

_TEXT = frozenset(("text",))
_BLOCKS = {
    "user": frozenset(("text", "image_url", "input_audio", "file", "video_url", "audio_url")),
    "assistant": frozenset(("text", "refusal")),
    "system": _TEXT,
    "developer": _TEXT,
    "tool": _TEXT,
}
"""The blocks that a message of a role may have in the form of a chat completion."""
_NAME = re.compile("[a-zA-Z0-9_-]{1,64}")
"""The names that endpoints take. They refuse a request with another one."""


async def remembered(
    turn: Turn, limit: int, late_results: Sequence[dict[str, Any]] = ()
) -> list[dict[str, Any]]:
    """Return the newest messages of the transcript, from a user's message on.

    Words of other agents are marked. Calls of tools without a result are left out, and so is a
    message of another form: its text stands in its place. ``late_results`` are results of the last
    calls that the turn adds.
    """
    entries = await newest_entries(turn, limit)
    messages = [_message(turn.session, entry) for entry in entries]
    return _complete(_with_results([one for one in messages if one is not None], late_results))


def as_chat(message: dict[str, Any]) -> dict[str, Any] | None:
    """Return a message as an endpoint is sent it, or ``None`` if it is of another form.

    Its other keys have reasoning, or are of other forms.
    """
    role, content, calls = message.get("role"), message.get("content"), message.get("tool_calls")
    if not isinstance(role, str) or role not in _BLOCKS or message.get("function_call"):
        return None
    sent: dict[str, Any] = {"role": role}
    if calls:
        if role != "assistant" or not _are_calls(calls):
            return None
        sent["tool_calls"] = calls
    if role == "tool":
        if not isinstance(message.get("tool_call_id"), str):
            return None
        sent["tool_call_id"] = message["tool_call_id"]
    if isinstance(content, list):
        if not content or not all(_is_block(block, _BLOCKS[role]) for block in content):
            return None
    elif not isinstance(content, str) and not (content is None and calls):
        return None
    name, refusal = message.get("name"), message.get("refusal")
    if isinstance(name, str) and _NAME.fullmatch(name):
        sent["name"] = name
    if role == "assistant" and refusal and isinstance(refusal, str):
        sent["refusal"] = refusal
    return {**sent, "content": content}


def _are_calls(calls: Any) -> bool:
    return isinstance(calls, list) and all(
        isinstance(call, dict)
        and isinstance(call.get("id"), str)
        and (
            _has_texts(call.get("function"), "name", "arguments")
            or _has_texts(call.get("custom"), "name", "input")
        )
        for call in calls
    )


def _has_texts(value: Any, *keys: str) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(key), str) for key in keys)


def _is_block(block: Any, kinds: Collection[str]) -> bool:
    kind = block.get("type") if isinstance(block, dict) else None
    if not isinstance(kind, str) or kind not in kinds:
        return False
    return isinstance(block.get(kind), str if kind in ("text", "refusal") else dict)


def _with_results(
    messages: list[dict[str, Any]], results: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return the messages with the missing results of the last calls at their place."""
    last = max((n for n, one in enumerate(messages) if one.get("tool_calls")), default=None)
    if last is None or not results:
        return messages
    end = last + 1
    while end < len(messages) and messages[end]["role"] == "tool":
        end += 1
    calls = messages[last]["tool_calls"]
    wanted = {call.get("id") for call in calls if isinstance(call, dict)}
    wanted -= {one.get("tool_call_id") for one in messages[last:end]}
    added = [one for one in results if one.get("tool_call_id") in wanted]
    return [*messages[:end], *added, *messages[end:]]


def _message(session: SessionDetails, entry: TranscriptEntry) -> dict[str, Any] | None:
    if not is_from_another_agent(session, entry):
        message = as_chat(entry.message)
        if message is not None:
            return message
    text = told_text(session, entry)
    if not text:  # reasoning alone
        return None
    role = render_role(entry.message) if entry.sender is None else "user"
    return {"role": role if role in ("user", "system") else "assistant", "content": text}


def _complete(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the messages from the first of a user on, without calls that have no result.

    An endpoint refuses a call without a result, and a result without its call.
    """
    start = next((n for n, one in enumerate(messages) if one["role"] == "user"), len(messages))
    kept: list[dict[str, Any]] = []
    index = start
    while index < len(messages):
        message = messages[index]
        index += 1
        if message["role"] == "tool":
            continue
        calls = message.get("tool_calls")
        if not isinstance(calls, list) or not calls:
            kept.append(message)
            continue
        results = []
        while index < len(messages) and messages[index]["role"] == "tool":
            results.append(messages[index])
            index += 1
        wanted = {call.get("id") for call in calls if isinstance(call, dict)}
        if wanted == {one.get("tool_call_id") for one in results}:
            kept += [message, *results]
    return kept

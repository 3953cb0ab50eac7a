"""The transcript of a session as the messages of a chat completion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sessionsdb.tools import attributed
from sessionsdb.types import SessionMessage
from sessionsdb.worker import Turn

_ROLES = ("user", "assistant", "system", "developer", "tool")
_READS = 3


async def remembered(turn: Turn, limit: int) -> list[dict[str, Any]]:
    """Return the newest messages of the transcript, from a user's message on.

    Words of other agents are marked. Calls of tools without a result are left out, and so is a
    message of another form: its text stands in its place.
    """
    shown: list[SessionMessage] = []
    whole: list[dict[str, Any]] = []
    for _ in range(_READS):  # two reads, between which another process may append
        shown, whole = await turn.history(limit), await turn.transcript(limit)
        if len(shown) == len(whole) and all(map(_belong_together, shown, whole)):
            break
    else:
        whole = [{} for _ in shown]
    messages = [_message(turn, *pair) for pair in zip(shown, whole, strict=True)]
    return _complete([one for one in messages if one is not None])


def _belong_together(shown: SessionMessage, message: dict[str, Any]) -> bool:
    content = message.get("content")
    is_text = isinstance(content, str) and "tool_calls" not in message
    return message.get("role", shown.role) == shown.role and (
        not is_text or content == shown.content
    )


def _message(turn: Turn, shown: SessionMessage, message: dict[str, Any]) -> dict[str, Any] | None:
    if shown.sender is not None:
        return {"role": "user", "content": attributed(shown, turn.session)}
    role, content = message.get("role"), message.get("content")
    is_chat = role in _ROLES and (isinstance(content, str) or "tool_calls" in message)
    if is_chat or (role == "user" and isinstance(content, list)):
        return message
    if not shown.content:  # reasoning alone
        return None
    role = shown.role if shown.role in ("user", "assistant", "system") else "assistant"
    return {"role": role, "content": shown.content}


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

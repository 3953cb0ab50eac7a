"""The transcript of a session as messages of Pydantic AI.

A message of the framework is a message of the transcript, as ``ModelMessagesTypeAdapter`` writes
it. A message of a user, and one of another form, is made one. The framework itself completes calls
without results before each request, also those whose result stands behind other messages.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any

from pydantic import ValidationError
from pydantic_ai.messages import (
    ImageUrl,
    ModelMessage,
    ModelMessagesTypeAdapter,
    ModelRequest,
    ModelResponse,
    SystemPromptPart,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)

from sessionsdb.agents.told import is_by_model, is_from_another_agent, told_text
from sessionsdb.messages.formats import pydantic_ai
from sessionsdb.messages.rendering import render_role
from sessionsdb.messages.whole_characters import whole_characters
from sessionsdb.types import SessionDetails, TranscriptEntry
from sessionsdb.worker import Turn


def remembered_messages(
    session: SessionDetails, entries: Iterable[TranscriptEntry], late: Sequence[ModelMessage] = ()
) -> list[ModelMessage]:
    """Return the messages that a model is given, from the first prompt of a user on.

    Words of other agents are marked. ``late`` are results that this turn adds.
    """
    told = [one for entry in entries if (one := _told(session, entry)) is not None]
    start = next((n for n, one in enumerate(told) if _has_prompt(one)), len(told))
    return _in_place([*told[start:], *late])


def asked_prompt(turn: Turn) -> Any:
    """Return the messages of the turn as a prompt: a user's with its images, else the text."""
    [first, *others] = turn.inputs
    if not others and turn.senders == [None] and isinstance(first.get("content"), list):
        content = _user_content(whole_characters(first["content"]))
        if content is not None:
            return content
    return turn.prompt


def open_calls(messages: Sequence[ModelMessage]) -> list[ToolCallPart]:
    """Return the calls at the end of a conversation that have no result."""
    done: set[str] = set()
    for message in reversed(messages):
        if isinstance(message, ModelResponse):
            return [call for call in message.tool_calls if call.tool_call_id not in done]
        if _has_prompt(message):
            return []
        done |= set(map(_result_id, message.parts))
    return []


def without_result(messages: Iterable[ModelMessage], ids: Collection[str]) -> list[ToolCallPart]:
    """Return those of some calls that a conversation has anywhere without a result."""
    found: dict[str, ToolCallPart] = {}
    for message in messages:
        if isinstance(message, ModelResponse):
            found |= {
                one.tool_call_id: one for one in message.tool_calls if one.tool_call_id in ids
            }
        else:
            for part in message.parts:
                found.pop(_result_id(part), None)
    return list(found.values())


def results_message(calls: Iterable[ToolCallPart], text: str) -> ModelRequest:
    """Return a message that gives calls this text as their result."""
    return ModelRequest(
        parts=[
            ToolReturnPart(tool_name=call.tool_name, content=text, tool_call_id=call.tool_call_id)
            for call in calls
        ]
    )


def stored_messages(messages: Sequence[ModelMessage]) -> list[dict[str, Any]]:
    """Return messages of the framework as messages of a transcript."""
    dumped: list[dict[str, Any]] = ModelMessagesTypeAdapter.dump_python(list(messages), mode="json")
    return dumped


def _told(session: SessionDetails, entry: TranscriptEntry) -> ModelMessage | None:
    message = entry.message
    if not is_from_another_agent(session, entry):
        if pydantic_ai.FORM.recognise(message):
            try:
                [known] = ModelMessagesTypeAdapter.validate_python([message])
            except ValidationError:  # of another version, or by another program
                pass
            else:
                return known
        elif message.get("role") == "user" and isinstance(message.get("content"), list):
            content = _user_content(message["content"])
            if content is not None:
                return ModelRequest(parts=[UserPromptPart(content)])
    text = told_text(session, entry)
    if not text:  # reasoning of another form
        return None
    if is_by_model(entry):
        return ModelResponse(parts=[TextPart(text)])
    is_system = entry.sender is None and render_role(message) == "system"
    part = SystemPromptPart(text) if is_system else UserPromptPart(text)
    return ModelRequest(parts=[part])


def _in_place(messages: Iterable[ModelMessage]) -> list[ModelMessage]:
    """Return the messages with each result behind its call.

    A result that was added late stands behind other messages in the transcript.
    """
    groups: list[list[ModelMessage]] = []
    """Each message with the results of its calls."""
    called: dict[str, list[ModelMessage]] = {}
    for message in messages:
        if isinstance(message, ModelResponse):
            groups.append([message])
            called |= {call.tool_call_id: groups[-1] for call in message.tool_calls}
            continue
        results = [one for one in message.parts if _result_id(one) in called]
        late = [one for one in results if called[_result_id(one)] is not groups[-1]]
        for part in reversed(late):
            called[_result_id(part)].insert(1, ModelRequest(parts=[part]))
        others = [one for one in message.parts if one not in late]
        rest = [replace(message, parts=others)] if others or not late else []
        if len(results) > len(late):
            groups[-1] += rest
        elif rest:
            groups.append(rest)
    return [message for group in groups for message in group]


def _result_id(part: Any) -> str:
    return str(getattr(part, "tool_call_id", ""))


def _has_prompt(message: ModelMessage) -> bool:
    return any(isinstance(part, UserPromptPart) for part in message.parts)


def _user_content(blocks: Sequence[Any]) -> list[str | ImageUrl] | None:
    """Return the texts and images of a chat completion, or ``None`` if there are other blocks."""
    content: list[str | ImageUrl] = []
    for block in blocks:
        kind = block.get("type") if isinstance(block, dict) else None
        image = block.get("image_url") if kind == "image_url" else None
        if kind == "text" and isinstance(block.get("text"), str):
            content.append(block["text"])
        elif isinstance(image, dict) and isinstance(image.get("url"), str):
            content.append(ImageUrl(image["url"]))
        else:
            return None
    return content or None

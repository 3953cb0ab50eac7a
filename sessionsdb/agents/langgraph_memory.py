"""The transcript of a session as messages of LangChain.

A message of LangChain is a message of the transcript, in the form of ``messages_to_dict``. A
message of a chat completion, and one of another form, is made one. Providers refuse a call without
its result, and a result without its call.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any
from uuid import uuid4

from langchain_core.messages import (
    AIMessage,
    AnyMessage,
    BaseMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
    convert_to_messages,
    message_chunk_to_message,
    messages_from_dict,
)

from sessionsdb.agents.told import is_by_model, is_from_another_agent, told_text
from sessionsdb.messages.formats import langchain
from sessionsdb.messages.rendering import render_role
from sessionsdb.messages.whole_characters import whole_characters
from sessionsdb.types import SessionDetails, TranscriptEntry
from sessionsdb.worker import Turn

_CHAT_KEYS = frozenset(("role", "content", "tool_calls", "tool_call_id", "name"))


def remembered_messages(
    session: SessionDetails, entries: Iterable[TranscriptEntry], late: Sequence[BaseMessage] = ()
) -> list[AnyMessage]:
    """Return the messages that a graph is given, from the first one of a user on.

    Words of other agents are marked. Each message has an id of its own, since a graph replaces a
    message by one of the same id. ``late`` are results that this turn adds.
    """
    told: list[AnyMessage] = []
    for entry in entries:
        message = _told(session, entry)
        if message is not None:
            message.id = f"message-{entry.seq}"
            told.append(message)
    start = next((n for n, one in enumerate(told) if isinstance(one, HumanMessage)), len(told))
    return _complete([*told[start:], *late])


def asked_message(turn: Turn) -> AnyMessage:
    """Return the messages of the turn as one: a user's with its images, else the text."""
    [first, *others] = turn.inputs
    content = turn.prompt
    if not others and turn.senders == [None] and _are_blocks(first.get("content")):
        content = whole_characters(first["content"])
    return HumanMessage(content, id=f"asked-{uuid4()}")


def open_calls(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    """Return the calls at the end of a conversation that have no result."""
    done: set[str] = set()
    for message in reversed(messages):
        if isinstance(message, ToolMessage):
            done.add(message.tool_call_id)
        elif isinstance(message, AIMessage):
            return [call for call in message.tool_calls if call["id"] not in done]
        else:
            return []
    return []


def results(calls: Iterable[dict[str, Any]], text: str) -> list[BaseMessage]:
    """Return messages that give calls this text as their result."""
    return [
        ToolMessage(
            text, name=call["name"], tool_call_id=call["id"], status="error", id=f"late-{uuid4()}"
        )
        for call in calls
    ]


def stored_messages(messages: Iterable[BaseMessage]) -> list[dict[str, Any]]:
    """Return messages of LangChain as messages of a transcript.

    The artifact of a tool is left out. No model reads it, and it may be any object.
    """
    whole = map(message_chunk_to_message, messages)
    return [
        {"type": one.type, "data": one.model_dump(mode="json", exclude={"artifact"})}
        for one in whole
    ]


def entries_end(
    session: SessionDetails, entries: Sequence[TranscriptEntry]
) -> list[dict[str, Any]]:
    """Return the calls at the end of a transcript that have no result."""
    return open_calls([one for entry in entries if (one := _told(session, entry)) is not None])


def _told(session: SessionDetails, entry: TranscriptEntry) -> AnyMessage | None:
    message = entry.message
    if not is_from_another_agent(session, entry):
        known = _known(message)
        if known is not None:
            return known
    text = told_text(session, entry)
    if not text:  # reasoning of another form
        return None
    if is_by_model(entry):
        return AIMessage(text)
    is_system = entry.sender is None and render_role(message) == "system"
    return SystemMessage(text) if is_system else HumanMessage(text)


def _known(message: dict[str, Any]) -> AnyMessage | None:
    """Return a message of LangChain or of a chat completion, ``None`` for other forms."""
    is_chat = isinstance(message.get("role"), str) and message.keys() <= _CHAT_KEYS
    try:
        if is_chat:
            [known] = convert_to_messages([{"content": "", **message}])
        elif "data" in message and langchain.FORM.recognise(message):
            [known] = messages_from_dict([message])
        else:
            return None
    except Exception:  # of another version, or of an odd form
        return None
    if isinstance(known, RemoveMessage):
        return None
    return known if isinstance(known.content, str) or _are_blocks(known.content) else None


def _are_blocks(content: Any) -> bool:
    """Return whether a content is blocks as providers know them."""
    return isinstance(content, list) and all(
        isinstance(one, str) or (isinstance(one, dict) and isinstance(one.get("type"), str))
        for one in content
    )


def _complete(messages: Sequence[AnyMessage]) -> list[AnyMessage]:
    """Return the messages without calls and results that miss the other one.

    Each result stands behind its call. One that was added late stands behind other messages in the
    transcript.
    """
    groups: list[list[AnyMessage]] = []
    """Each message with the results of its calls."""
    called: dict[Any, list[AnyMessage]] = {}
    for message in messages:
        if isinstance(message, ToolMessage):
            if message.tool_call_id in called:
                called[message.tool_call_id].append(message)
            continue
        group: list[AnyMessage] = [message]
        groups.append(group)
        if isinstance(message, AIMessage):
            called |= {call["id"]: group for call in message.tool_calls}
    kept: list[AnyMessage] = []
    for message, *results in groups:
        done = {one.tool_call_id for one in results if isinstance(one, ToolMessage)}
        calls = message.tool_calls if isinstance(message, AIMessage) else []
        complete = [call for call in calls if call["id"] in done]
        if len(complete) == len(calls):
            kept += [message, *results]
        elif complete or message.text:
            kept += [AIMessage(message.text, tool_calls=complete, id=message.id), *results]
    return kept

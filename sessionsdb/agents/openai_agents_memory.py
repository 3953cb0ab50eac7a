"""The transcript of a session as input items of the OpenAI Agents SDK.

An item is a message of the transcript, as the SDK wrote it. A message of another form is told as
text. The API refuses a call without its result, a result without its call, and reasoning without
the item that it led to.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from sessionsdb.agents.told import is_by_model, is_from_another_agent, told_text
from sessionsdb.messages.formats import openai_responses
from sessionsdb.types import SessionDetails, TranscriptEntry

Item = dict[str, Any]

_ROLES = ("user", "assistant", "system", "developer")
_INPUT = frozenset(("input_text", "input_image", "input_file", "input_audio"))
_OUTPUT = frozenset(("output_text", "refusal"))


def remembered_items(
    session: SessionDetails, entries: Iterable[TranscriptEntry], late: Sequence[Item] = ()
) -> list[Item]:
    """Return the items that a model is given, from the first one of a user on.

    Words of other agents are marked. ``late`` are results that this turn adds.
    """
    told = [one for entry in entries if (one := _told(session, entry)) is not None]
    start = next((n for n, one in enumerate(told) if one.get("role") == "user"), len(told))
    return _complete(_in_place([*told[start:], *late]))


def as_item(message: Item) -> Item | None:
    """Return a message as an item, or ``None`` if it is of another form."""
    kind, content = message.get("type"), message.get("content")
    if not isinstance(message.get("call_id", ""), str | None):
        return None
    if isinstance(kind, str) and kind != "message":
        return message if openai_responses.FORM.recognise(message) else None
    if message.get("role") not in _ROLES:
        return None
    if isinstance(content, str):
        return message if message.keys() <= {"role", "content", "type"} else None
    if not isinstance(content, list) or not content:
        return None
    blocks = [_block(block, message["role"]) for block in content]
    return None if None in blocks else {**message, "content": blocks}


def open_ids(messages: Iterable[Item]) -> list[str]:
    """Return the ids of the function calls at the end of a transcript that have no result."""
    calls: dict[str, None] = {}
    for message in messages:
        if as_item(message) is None or message.get("role") not in (None, "assistant"):
            calls.clear()  # a result could not stand behind its call
        elif message.get("type") == "function_call":
            calls[str(message.get("call_id"))] = None
        elif message.get("type") == "function_call_output":
            calls.pop(str(message.get("call_id")), None)
    return list(calls)


def without_result(messages: Iterable[Item], call_ids: Collection[str]) -> list[str]:
    """Return those of some function calls that a transcript has without a result."""
    found: dict[str, None] = {}
    for message in messages:
        id = str(message.get("call_id"))
        if message.get("type") == "function_call" and id in call_ids:
            found[id] = None
        elif is_result(message):
            found.pop(id, None)
    return list(found)


def result_item(call_id: str, text: str) -> Item:
    """Return the item with the result of a function call."""
    return {"type": "function_call_output", "call_id": call_id, "output": text}


def is_result(item: Item) -> bool:
    """Return whether an item is the result of a call."""
    return str(item.get("type")).endswith("_output")


def _told(session: SessionDetails, entry: TranscriptEntry) -> Item | None:
    if not is_from_another_agent(session, entry):
        item = as_item(entry.message)
        if item is not None:
            return item
    text = told_text(session, entry)
    if not text:  # reasoning of another form
        return None
    return {"role": "assistant" if is_by_model(entry) else "user", "content": text}


def _block(block: Any, role: str) -> Item | None:
    """Return a block of the Responses API. A user's text or image of a chat completion is one."""
    kind = block.get("type") if isinstance(block, dict) else None
    if not isinstance(kind, str):
        return None
    if role == "assistant":
        return block if kind in _OUTPUT else None
    if kind in _INPUT:
        known: Item = block
        return known
    if kind == "text" and isinstance(block.get("text"), str):
        return {"type": "input_text", "text": block["text"]}
    image = block.get("image_url") if kind == "image_url" else None
    if isinstance(image, dict) and isinstance(image.get("url"), str):
        return {"type": "input_image", "image_url": image["url"], "detail": "auto"}
    return None


def _in_place(items: Sequence[Item]) -> list[Item]:
    """Return the items with each result in front of the next message of a user.

    A result that was added late stands behind such a message. Endpoints of chat completions refuse
    that.
    """
    results = {one.get("call_id"): one for one in items if is_result(one)}
    placed: list[Item] = []
    moved: list[Item] = []
    open: dict[Any, None] = {}
    for item in items:
        if is_result(item):
            if any(item is one for one in moved):
                continue
            open.pop(item.get("call_id"), None)
        elif item.get("call_id") is not None:
            open[item["call_id"]] = None
        elif item.get("role") not in (None, "assistant"):
            late = [results[id] for id in open if id in results]
            placed += late
            moved += late
            open.clear()
        placed.append(item)
    return placed


def _complete(items: Sequence[Item]) -> list[Item]:
    """Return the items without calls and results that miss the other one."""
    results = {one.get("call_id") for one in items if is_result(one)}
    called: set[Any] = set()
    kept: list[Item] = []
    reasoning: list[Item] = []
    for item in items:
        if item.get("type") == "reasoning":
            reasoning.append(item)
            continue
        call_id = item.get("call_id")
        if is_result(item):
            is_kept = call_id in called
        else:
            is_kept = call_id is None or call_id in results
            called.add(call_id)
        if is_kept:
            kept += [*reasoning, item]
        reasoning = []
    return kept

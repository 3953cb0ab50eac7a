"""A run of a graph that waits for a person, and is resumed by the answer.

The checkpointer of the graph keeps the run. The data of the question names the checkpoint, so a
turn of the answer that is run again resumes from the same place.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from langchain_core.messages import AIMessage, BaseMessage
from langgraph.types import Command

from sessionsdb.approvals import EXPIRED, ToolCall, describe_calls, question_data, refusal
from sessionsdb.types import Answer, Question
from sessionsdb.worker import Turn

CHECKPOINT_KEY: Final = "langgraph"
"""The key of the question's data."""


class Pause(NamedTuple):
    """A run that waits, and the command that resumes it."""

    config: dict[str, Any]
    messages: list[BaseMessage]
    command: Command[Any]


async def read_pause(turn: Turn, graph: Any, config: dict[str, Any]) -> Pause | None:
    """Return the run that the answer of this turn is for. ``None`` if the run is gone."""
    answer = turn.answer
    if answer is None or answer.status == "withdrawn" or not graph.checkpointer:
        return None
    data = answer.question.data
    place = data.get(CHECKPOINT_KEY) if isinstance(data, dict) else None
    if not isinstance(place, dict):
        return None
    config = {**config, "configurable": {**config["configurable"], **place}}
    state = await graph.aget_state(config)
    if not state.interrupts:
        return None
    messages = state.values.get("messages", [])
    resumed = {one.id: _resume(answer, one, messages) for one in state.interrupts}
    return Pause(config, messages, Command(resume=resumed))


async def ask(graph: Any, config: dict[str, Any]) -> Question | None:
    """Return the question about the interrupts of a run, ``None`` if it has none."""
    if not graph.checkpointer:
        return None
    thread = {"thread_id": config["configurable"]["thread_id"]}
    state = await graph.aget_state({"configurable": thread})
    if not state.interrupts:
        return None
    messages = state.values.get("messages", [])
    calls: list[ToolCall] = []
    lines: list[str] = []
    for interrupt in state.interrupts:
        asked = _calls(interrupt.value, messages)
        calls += asked
        lines.append(describe_calls(asked) if asked else _text(interrupt.value))
    place = {**thread, "checkpoint_id": state.config["configurable"]["checkpoint_id"]}
    return Question(
        prompt="\n".join(lines), data={**question_data(calls, calls), CHECKPOINT_KEY: place}
    )


def _resume(answer: Answer, interrupt: Any, messages: Sequence[BaseMessage]) -> Any:
    """Return the value for an interrupt: decisions for the middleware, else the answer's text."""
    calls = _calls(interrupt.value, messages)
    if not calls:
        return EXPIRED if answer.message is None else answer.message.content
    decisions = []
    for call in calls:
        reason = refusal(answer, call)
        decisions.append(
            {"type": "approve"} if reason is None else {"type": "reject", "message": reason}
        )
    return {"decisions": decisions} if "action_requests" in interrupt.value else decisions[0]


def _calls(value: Any, messages: Sequence[BaseMessage]) -> list[ToolCall]:
    """Return the calls that ``HumanInTheLoopMiddleware`` asks about, in its order."""
    if not isinstance(value, dict):
        return []
    requests = value.get("action_requests")
    if value.get("type") == "tool_approval":
        requests = [value]
    if not isinstance(requests, list):
        return []
    last = next((one for one in reversed(messages) if isinstance(one, AIMessage)), None)
    made = [] if last is None else list(last.tool_calls)
    calls: list[ToolCall] = []
    for request in requests:
        name, arguments = request.get("name"), request.get("args")
        same = next((one for one in made if (one["name"], one["args"]) == (name, arguments)), None)
        if same is not None:
            made.remove(same)
        id = str(len(calls)) if same is None else str(same["id"])
        calls.append(ToolCall(id, str(name), arguments))
    return calls


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)

"""Trajectories in the Agent Trajectory Interchange Format (ATIF) of Harbor, versions 1.0 to 1.8.

A step is ``{"step_id", "source": "system" | "user" | "agent", "message", "tool_calls",
"observation": {"results": […]}}``: a message with the calls of tools and their results.
"""

from __future__ import annotations

from typing import Any

from sessionsdb.messages import marks
from sessionsdb.messages.blocks import content_text
from sessionsdb.messages.formats.form import Form, Record

_ROLES = {"agent": "assistant", "user": "user", "system": "system"}


def recognise(record: Record) -> bool:
    source = record.get("source")
    return "step_id" in record and isinstance(source, str) and source in _ROLES


def role(record: Record) -> str:
    return _ROLES[record["source"]]


def text(record: Record) -> str:
    texts = [content_text(record.get("message"))]
    calls = record.get("tool_calls")
    for call in calls if isinstance(calls, list) else ():
        texts.append(_call_text(call))
    observation = record.get("observation")
    results = observation.get("results") if isinstance(observation, dict) else None
    for result in results if isinstance(results, list) else ():
        texts.append(_result_text(result))
    return "\n".join(one for one in texts if one)


def _call_text(call: Any) -> str:
    if not isinstance(call, dict):
        return marks.shown_json(call)
    return marks.tool_call(call.get("function_name"), call.get("arguments"))


def _result_text(result: Any) -> str:
    if not isinstance(result, dict):
        return marks.shown_json(result)
    shown = content_text(result.get("content"))
    subagents = result.get("subagent_trajectory_ref")
    for one in subagents if isinstance(subagents, list) else ():
        if isinstance(one, dict) and isinstance(id := one.get("session_id"), str):
            shown = "\n".join(text for text in (shown, f"[subagent: {id}]") if text)
    return marks.tool_result(shown, failed=result.get("is_error") is True)


FORM = Form(
    "atif",
    "ATIF",
    recognise,
    keys=("step_id",),
    role=role,
    text=text,
    lists=("steps",),
    ids=("session_id", "trajectory_id", "id"),
)

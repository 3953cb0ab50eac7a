"""A run of the OpenAI Agents SDK that waits for the approval of a person.

The SDK can go on from a ``RunState``. It is kept in the session's state while the question is open,
without the conversation before the turn, which the transcript has.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from agents import Agent, RunContextWrapper, RunState, UserError
from agents.result import RunResultStreaming

from sessionsdb.agents.openai_agents_memory import Item, remembered_items, without_result
from sessionsdb.approvals import (
    ToolCall,
    asked_calls,
    describe_calls,
    question_data,
    refusal,
)
from sessionsdb.messages.digests import digest
from sessionsdb.messages.tool_values import parsed_arguments
from sessionsdb.messages.whole_characters import whole_characters
from sessionsdb.types import Question, TranscriptEntry
from sessionsdb.worker import Turn

STATE_KEY: Final = "openai-agents.run"
"""The key of the session's state."""


class Pause(NamedTuple):
    """A run that waits, and the end of the transcript that belongs to it.

    The end has all that came since the run began: its items, and the answers to earlier questions.
    """

    run: dict[str, Any]
    items: int
    """The number of messages of that end."""
    digest: str
    """The digest of these messages."""
    call_ids: frozenset[str]
    """The calls of the transcript that have no result yet."""
    asked_ids: frozenset[str]
    """The calls that a person is asked about. An agent that is a tool has calls of its own."""

    async def resume(
        self, turn: Turn, agent: Agent[Any], context: Any, entries: Sequence[TranscriptEntry]
    ) -> RunState[Any, Any] | None:
        """Return the state with the decisions of a person, or ``None`` if it is of no use.

        It is of no use if the question was withdrawn, or if the transcript was changed meanwhile.
        Nor is it if the agent or the SDK is another one than at the time of the question.
        """
        answer = turn.answer
        if answer is None or answer.status == "withdrawn":
            return None
        if _digest(self.messages_in(entries)) != self.digest:
            return None
        if asked_calls(answer.question).keys() != self.asked_ids:
            return None
        before = remembered_items(turn.session, entries[: self._start(entries)])
        try:
            state = await RunState.from_json(
                agent,
                {**self.run, "original_input": before},
                context_override=RunContextWrapper(context),
            )
        except UserError:
            return None
        for item in state.get_interruptions():
            reason = refusal(answer, _call(item))
            if reason is None:
                state.approve(item)
            else:
                state.reject(item, rejection_message=reason)
        return state

    def messages_in(self, entries: Sequence[TranscriptEntry]) -> list[Item]:
        """Return the messages of the end that belongs to the run."""
        return [entry.message for entry in entries[self._start(entries) :]]

    def _start(self, entries: Sequence[TranscriptEntry]) -> int:
        return max(0, len(entries) - self.items)


async def read_pause(turn: Turn) -> Pause | None:
    """Return the run that the answer of this turn is for, and remove it from the state."""
    if turn.answer is None:
        return None
    kept = (await turn.state()).pop(STATE_KEY, None)
    if kept is None:
        return None
    calls, asked = frozenset(kept["calls"]), frozenset(kept["asked"])
    return Pause(kept["run"], kept["items"], kept.get("digest", ""), calls, asked)


async def ask(turn: Turn, result: RunResultStreaming, items: Sequence[Item]) -> Question:
    """Keep the run, and return the question about its calls.

    ``items`` are the messages of the transcript since the run began, with those of this turn.
    """
    run = result.to_state().to_json(context_serializer=lambda _: {})
    calls = [_call(item) for item in result.interruptions]
    # The context is made anew by the turn of the answer.
    context = {**run["context"], "context": None, "context_meta": None}
    kept = {**run, "original_input": [], "context": context, "trace": None}
    (await turn.state())[STATE_KEY] = {
        "run": kept,
        "items": len(items),
        "digest": _digest(items),
        "calls": without_result(items, {str(item.get("call_id")) for item in items}),
        "asked": [call.id for call in calls],
    }
    return Question(prompt=describe_calls(calls), data=question_data(calls, calls))


def _digest(items: Sequence[Item]) -> str:
    # Of whole characters, as the entries of the transcript are read.
    return digest(json.dumps([whole_characters(one) for one in items], sort_keys=True))


def _call(item: Any) -> ToolCall:
    return ToolCall(str(item.call_id), str(item.name), parsed_arguments(item.arguments))

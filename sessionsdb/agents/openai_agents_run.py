"""One run of the OpenAI Agents SDK in a turn, from its start to its end."""

from __future__ import annotations

import asyncio
from typing import Any

from agents import Agent, Runner, RunState
from agents.result import RunResultStreaming

from sessionsdb.agents.openai_agents_memory import Item
from sessionsdb.worker import Turn


class Run:
    """Streams the text and the calls to the followers of the session, and counts tokens."""

    def __init__(self, turn: Turn, agent: Agent[Any], options: dict[str, Any]) -> None:
        self._turn = turn
        self._agent = agent
        self._options = options
        self._counted = (0, 0)
        self.model: str | None = None
        self.new_items: list[Item] = []
        """The items of this turn."""

    async def finish(self, given: list[Item] | RunState[Any, Any]) -> RunResultStreaming:
        """Run the agent to its end, or until it waits for a person.

        A run that is cancelled has left the connection to the endpoint when this returns.
        """
        result = Runner.run_streamed(self._agent, given, **self._options)
        before = len(result.new_items)
        self._counted = _tokens(result)
        try:
            async for event in result.stream_events():
                self._show(event)
                self._count(result)
        finally:
            self._count(result)
            await _leave(result)
        self.new_items = [
            item.to_input_item()
            for item in result.new_items[before:]
            if item.type != "tool_approval_item"
        ]
        return result

    def _show(self, event: Any) -> None:
        if event.type == "raw_response_event":
            if event.data.type == "response.output_text.delta":
                self._turn.stream(event.data.delta)
            elif event.data.type == "response.completed":
                self.model = event.data.response.model or self.model
        elif event.type == "run_item_stream_event" and event.name == "tool_called":
            name, id = _call_of(event.item.raw_item)
            self._turn.emit("tool_call", {"name": name[:200], "id": id[:200]})

    def _count(self, result: RunResultStreaming) -> None:
        """Count tokens at once: an attempt that fails later has used them too."""
        now = _tokens(result)
        if now != self._counted:
            read, written = (max(0, n - b) for n, b in zip(now, self._counted, strict=True))
            self._counted = now
            self._turn.usage(input_tokens=read, output_tokens=written)


def _tokens(result: RunResultStreaming) -> tuple[int, int]:
    """Return the tokens of the run, also of its part before a pause."""
    usage = result.context_wrapper.usage
    return usage.input_tokens, usage.output_tokens


def _call_of(raw: Any) -> tuple[str, str]:
    """Return the name and the id of a call, which is an object of the SDK or a dict."""
    fields = raw if isinstance(raw, dict) else vars(raw)
    name = fields.get("name") or fields.get("type")
    return str(name), str(fields.get("call_id") or fields.get("id"))


async def _leave(result: RunResultStreaming) -> None:
    """Stop the task of a run that has not ended, and wait for its end."""
    if not result.is_complete:
        result.cancel()
    if result.run_loop_task is not None:
        await asyncio.gather(result.run_loop_task, return_exceptions=True)

"""An agent over Anthropic's Messages API. Extra ``anthropic``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, Final

from anthropic import AnthropicError, AsyncAnthropic

from sessionsdb import validation
from sessionsdb.agents.anthropic_memory import (
    alternating,
    asked_message,
    called_names,
    conversation,
)
from sessionsdb.agents.functions import function_tools
from sessionsdb.agents.loop_clients import LoopClients
from sessionsdb.agents.turn_tools import (
    Sessions,
    TurnTools,
    checked_approvals,
    checked_sessions,
)
from sessionsdb.approvals import Message, ToolApprovals, ToolResult, result_messages, tool_calls
from sessionsdb.errors import InvalidArgument
from sessionsdb.messages.whole_characters import whole_characters
from sessionsdb.types import Question
from sessionsdb.worker import Reply, Turn
from sessionsdb.worker.handler import Handler
from sessionsdb.worker.turn_entries import newest_entries

BLANK: Final = "[a blank message]"
"""Stands in place of a text that the API would refuse."""


def agent(
    *,
    model: str | None = None,
    base_url: str | None = None,
    api_key: str | None = None,
    system: str | None = None,
    tools: Sequence[Callable[..., Any]] = (),
    sessions: Sessions | None = None,
    approve: Collection[str] = (),
    max_steps: int = 20,
    max_tokens: int = 8192,
    memory: int = 100,
    client: Any = None,
    options: dict[str, Any] | None = None,
) -> Handler:
    """Return a handler that answers with a model of Anthropic, and runs the tools that it calls.

    - ``model``, ``system``: used where the session's settings have none.
    - ``base_url``, ``api_key``: the endpoint. Default: Anthropic's, with ``ANTHROPIC_API_KEY``. A
      ``client`` takes their place: an ``AsyncAnthropic``, or one of its forms for other clouds.
    - ``tools``: functions with a docstring and a type for each parameter. The model is told the
      error of a tool. A list of tools in the session's settings allows only its tools.
    - ``sessions``: offer the tools of ``SessionsTool`` with this visibility too.
    - ``approve``: the names of the tools that a person has to approve. The turn asks a question and
      ends. The turn of the answer runs the approved calls: see ``ToolApprovals``.
    - ``max_steps``: calls of the model in a turn. In the last one the model may call no tool.
    - ``max_tokens``: the tokens that the model writes in one step at most. Calls in an answer that
      was cut are not run, and the model is told so.
    - ``memory``: the newest messages of the transcript that the model sees.
    - ``options``: other arguments of the endpoint, such as ``thinking`` or ``cache_control``. Its
      ``tools`` are offered too, so they may be tools that run at Anthropic.

    The text is streamed to followers of the session. The reply has every message of the turn, also
    calls and results, and the tokens of all steps. Tokens of a cache are read tokens. A turn that
    is cancelled closes the connection to the endpoint and writes nothing. Raises
    ``InvalidArgument``.
    """
    functions = function_tools(tools)
    checked_sessions(sessions)
    approved = checked_approvals(approve, functions, sessions)
    validation.integer(max_steps, "max_steps", minimum=1)
    validation.integer(max_tokens, "max_tokens", minimum=1)
    validation.integer(memory, "memory", minimum=0)
    clients = LoopClients(partial(_client, base_url, api_key), client)
    given_options = {"max_tokens": max_tokens, **(options or {})}

    async def anthropic(turn: Turn) -> Reply:
        if (name := turn.settings.model or model) is None:
            raise InvalidArgument(f"session {turn.session.id} has no model, and the agent has none")
        fixed = {"model": name, **given_options}
        if prompt := turn.settings.system or system:
            fixed["system"] = prompt
        run = _Run(turn, clients.get(), fixed, TurnTools(turn, functions, sessions))
        approvals = ToolApprovals(run.tools.run, requires_approval=approved) if approved else None
        # Results of calls that waited for a person are added to the transcript by this turn.
        late = [] if approvals is None else await approvals.resume(turn)
        entries = await newest_entries(turn, memory)
        given = conversation(turn.session, entries, late, _asked(turn))
        if not given or given[-1]["role"] != "user":
            given.append(_prompt(turn))
        said: list[Message] = []
        question: Question | None = None
        for step in range(1, max_steps + 1):
            answer = await run.step(alternating(given + said), with_tools=step < max_steps)
            if answer["content"]:
                said.append(answer)
            if run.stop_reason == "pause_turn":  # a tool at Anthropic needs more time
                continue
            if not tool_calls(answer):
                break
            if approvals is not None and run.stop_reason == "tool_use":
                done = await approvals.run_or_ask(answer)
            else:
                done = await run.call_all(answer)
            if isinstance(done, Question):
                question = done
                break
            said += done
        return Reply(said, run.model, run.input_tokens, run.output_tokens, question)

    return anthropic


def _client(base_url: str | None, api_key: str | None) -> AsyncAnthropic:
    try:
        client = AsyncAnthropic(base_url=base_url, api_key=api_key)
    except AnthropicError as error:  # a profile that can't be read
        raise InvalidArgument(str(error)) from error
    found = (client.api_key, client.auth_token, getattr(client, "credentials", None))
    if any(one is not None for one in found):
        _ = client.messages  # imported at the first use
        return client
    if base_url is None:
        raise InvalidArgument("give an api_key, or set ANTHROPIC_API_KEY in the environment")
    # The client wants a key. A gateway in the own network often does not.
    return AsyncAnthropic(base_url=base_url, api_key="none")


def _asked(turn: Turn) -> Message | None:
    """Return what the turn answers: one message of a user whole, with its images, else the text."""
    if turn.answer is not None and turn.answer.status == "expired":
        return None
    [first, *others] = turn.inputs
    if not others and turn.senders == [None] and (message := asked_message(first)) is not None:
        return message
    return _prompt(turn)


def _prompt(turn: Turn) -> Message:
    text = turn.prompt
    return {"role": "user", "content": text if text.strip() else BLANK}


class _Run:
    """The steps of one turn."""

    def __init__(self, turn: Turn, client: Any, options: dict[str, Any], tools: TurnTools) -> None:
        self._turn = turn
        self._client = client
        self._options = options
        self.tools = tools
        self.model: str | None = None
        self.stop_reason: str | None = None
        """Why the model ended its last message."""
        self.input_tokens = self.output_tokens = 0

    async def step(self, messages: list[Message], *, with_tools: bool) -> Message:
        """Call the model once, and return its message."""
        options = dict(self._options)
        tools = [*options.pop("tools", ()), *(one.as_anthropic() for one in self.tools.definitions)]
        if not tools:
            # The API wants a definition of each tool that is called in the conversation.
            tools = [_gone(name) for name in called_names(messages)]
            with_tools = False
        if tools:
            options["tools"] = tools
            if not with_tools:
                options["tool_choice"] = {"type": "none"}
        counted = _Counted(self)
        # A cancelled turn leaves the block, which closes the connection.
        given = whole_characters(messages)
        async with self._client.messages.stream(messages=given, **options) as stream:
            async for event in stream:
                if event.type == "text":
                    self._turn.stream(event.text)
                elif event.type == "message_start":
                    self.model = event.message.model or self.model
                    counted.add(event.message.usage)
                elif event.type == "message_delta":
                    counted.add(event.usage)
            answer = await stream.get_final_message()
        self.stop_reason = answer.stop_reason
        content = [one.model_dump(mode="json", exclude_none=True) for one in answer.content]
        return {"role": "assistant", "content": whole_characters(content)}

    def count(self, input_tokens: int, output_tokens: int) -> None:
        """Count tokens at once: an attempt that fails later has used them too."""
        self.input_tokens += input_tokens
        self.output_tokens += output_tokens
        self._turn.usage(input_tokens=input_tokens, output_tokens=output_tokens)

    async def call_all(self, answer: Message) -> list[Message]:
        """Run the calls of a message at once, and return the message with their results.

        The arguments of a call may be incomplete in an answer that was cut, so none is run then.
        """
        calls = tool_calls(answer)
        if self.stop_reason == "tool_use":
            results = await asyncio.gather(*map(self.tools.result, calls))
        else:
            text = f"Error: not run, because the answer ended with {self.stop_reason}"
            results = [ToolResult(text, is_error=True) for _ in calls]
        return result_messages(answer, list(zip(calls, results, strict=True)))


class _Counted:
    """The tokens of one step. The API tells sums, first at the beginning of the stream."""

    def __init__(self, run: _Run) -> None:
        self._run = run
        self._input = self._output = 0

    def add(self, usage: Any) -> None:
        names = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
        read = max(self._input, sum(getattr(usage, name, None) or 0 for name in names))
        written = max(self._output, usage.output_tokens or 0)
        self._run.count(read - self._input, written - self._output)
        self._input, self._output = read, written


def _gone(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "description": "Not available any more.",
        "input_schema": {"type": "object"},
    }

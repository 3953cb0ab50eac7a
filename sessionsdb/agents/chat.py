"""An agent of any endpoint that speaks OpenAI's chat completions API. Extra ``chat``."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

from openai import AsyncOpenAI, OpenAIError

from sessionsdb import validation
from sessionsdb.agents.chat_memory import as_chat, remembered
from sessionsdb.agents.functions import FunctionTool, function_tools
from sessionsdb.agents.loop_clients import LoopClients
from sessionsdb.agents.turn_tools import (
    Sessions,
    TurnTools,
    checked_approvals,
    checked_sessions,
)
from sessionsdb.approvals import ToolApprovals, ToolResult, result_messages, tool_calls
from sessionsdb.errors import InvalidArgument
from sessionsdb.messages.whole_characters import whole_characters
from sessionsdb.types import Question
from sessionsdb.worker import Reply, Turn
from sessionsdb.worker.handler import Handler

Message = dict[str, Any]


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
    memory: int = 100,
    client: AsyncOpenAI | None = None,
    options: dict[str, Any] | None = None,
) -> Handler:
    """Return a handler that answers with a model, and runs the tools that the model calls.

    - ``model``, ``system``: used where the session's settings have none.
    - ``base_url``, ``api_key``: the endpoint. Default: OpenAI's, with ``OPENAI_API_KEY``. A
      ``client`` takes their place.
    - ``tools``: functions with a docstring and a type for each parameter. The model is told the
      error of a tool. A list of tools in the session's settings allows only its tools.
    - ``sessions``: offer the tools of ``SessionsTool`` with this visibility too.
    - ``approve``: the names of the tools that a person has to approve. The turn asks a question and
      ends. The turn of the answer runs the approved calls: see ``ToolApprovals``.
    - ``max_steps``: calls of the model in a turn. The last one is not offered the tools.
    - ``memory``: the newest messages of the transcript that the model sees.
    - ``options``: other arguments of the endpoint, such as ``temperature``.

    The text is streamed to followers of the session. The reply has every message of the turn, also
    calls and results, and the tokens of all steps. A turn that is cancelled closes the connection
    to the endpoint and writes nothing. Calls in an answer that was cut are not run, and the model
    is told so. Raises ``InvalidArgument``.
    """
    functions = function_tools(tools)
    checked_sessions(sessions)
    approved = checked_approvals(approve, functions, sessions)
    validation.integer(max_steps, "max_steps", minimum=1)
    validation.integer(memory, "memory", minimum=0)
    clients = LoopClients(partial(_client, base_url, api_key), client)

    async def chat(turn: Turn) -> Reply:
        if (name := turn.settings.model or model) is None:
            raise InvalidArgument(f"session {turn.session.id} has no model, and the agent has none")
        run = _Run(turn, clients.get(), {"model": name, **(options or {})}, functions, sessions)
        approvals = ToolApprovals(run.tools.run, requires_approval=approved) if approved else None
        # Results of calls that waited for a person are added to the transcript by this turn.
        resumed = [] if approvals is None else await approvals.resume(turn)
        late = [one for one in resumed if one.get("role") == "tool"]
        given: list[Message] = []
        if prompt := turn.settings.system or system:
            given.append({"role": "system", "content": prompt})
        given += await remembered(turn, memory, late) if memory else []
        if turn.answer is None or turn.answer.status != "expired":
            given.append(_asked(turn))
        said: list[Message] = []
        question: Question | None = None
        for step in range(1, max_steps + 1):
            answer = await run.step(given + said, with_tools=step < max_steps)
            said.append(answer)
            if not answer.get("tool_calls"):
                break
            if approvals is None or run.is_cut:
                said += await run.call_all(answer)
                continue
            done = await approvals.run_or_ask(answer)
            if isinstance(done, Question):
                question = done
                break
            said += done
        return Reply(said, run.model, run.input_tokens, run.output_tokens, question)

    return chat


def _asked(turn: Turn) -> Message:
    """Return what the turn answers: one message of a user whole, with its images, else the text."""
    [first, *others] = turn.inputs
    if not others and turn.senders == [None] and isinstance(first.get("content"), list):
        message = as_chat(first)
        if message is not None and message["role"] == "user":
            return {"role": "user", "content": message["content"]}
    return {"role": "user", "content": turn.prompt}


def _client(base_url: str | None, api_key: str | None) -> AsyncOpenAI:
    if api_key is None and base_url is not None and "OPENAI_API_KEY" not in os.environ:
        api_key = "none"  # the client wants one, most local endpoints do not
    try:
        client = AsyncOpenAI(base_url=base_url, api_key=api_key)
    except OpenAIError as error:  # there is no key
        raise InvalidArgument(str(error)) from error
    _ = client.chat.completions  # imported at the first use
    return client


class _Run:
    """The steps of one turn."""

    def __init__(
        self,
        turn: Turn,
        client: AsyncOpenAI,
        options: dict[str, Any],
        functions: dict[str, FunctionTool],
        sessions: Sessions | None,
    ) -> None:
        self._turn = turn
        self._client = client
        self._options = options
        self.model: str | None = None
        self.finish_reason: str | None = None
        """Why the model ended its last message."""
        self.input_tokens = self.output_tokens = 0
        self.tools = TurnTools(turn, functions, sessions)
        self._definitions = [one.as_openai() for one in self.tools.definitions]

    async def step(self, messages: list[Message], *, with_tools: bool) -> Message:
        """Call the model once, and return its message."""
        options = dict(self._options)
        if self._definitions and with_tools:
            options["tools"] = self._definitions
        texts: list[str] = []
        calls = _Calls()
        self.finish_reason = None
        stream = await self._client.chat.completions.create(
            messages=whole_characters(messages),
            stream=True,
            stream_options={"include_usage": True},
            **options,
        )
        async with stream:  # a cancelled turn closes the connection
            async for chunk in stream:
                self._count(chunk)
                for choice in chunk.choices:
                    self.finish_reason = choice.finish_reason or self.finish_reason
                    if choice.delta.content:
                        texts.append(choice.delta.content)
                        self._turn.stream(choice.delta.content)
                    for part in choice.delta.tool_calls or ():
                        calls.add(part)
        answer: Message = {"role": "assistant", "content": whole_characters("".join(texts))}
        if made := calls.made():
            answer["tool_calls"] = made
        return answer

    def _count(self, chunk: Any) -> None:
        self.model = chunk.model or self.model
        if (usage := chunk.usage) is not None:
            self.input_tokens += usage.prompt_tokens
            self.output_tokens += usage.completion_tokens
            # Counted at once: an attempt that fails later has used them too.
            self._turn.usage(
                input_tokens=usage.prompt_tokens, output_tokens=usage.completion_tokens
            )

    @property
    def is_cut(self) -> bool:
        """Whether the last message was cut, so that the arguments of a call may be incomplete."""
        return self.finish_reason in ("length", "content_filter")

    async def call_all(self, answer: Message) -> list[Message]:
        """Run the calls of a message at once, and return their results as messages.

        An error is a result too. None is run in an answer that was cut.
        """
        calls = tool_calls(answer)
        if self.is_cut:
            text = f"Error: not run, because the answer ended with {self.finish_reason}"
            results = [ToolResult(text, is_error=True) for _ in calls]
        else:
            results = await asyncio.gather(*map(self.tools.result, calls))
        return result_messages(answer, list(zip(calls, results, strict=True)))


class _Calls:
    """The calls of one answer, built of the parts that are streamed."""

    def __init__(self) -> None:
        self._calls: list[Message] = []
        self._by_index: dict[int | None, Message] = {}

    def add(self, part: Any) -> None:
        """Add a part. Some endpoints give all calls one index, so another id begins a new call."""
        call = self._by_index.get(part.index)
        if call is None or (part.id and call["id"] not in ("", part.id)):
            call = {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
            self._by_index[part.index] = call
            self._calls.append(call)
        call["id"] = part.id or call["id"]
        if part.function is not None:
            call["function"]["name"] += part.function.name or ""
            call["function"]["arguments"] += part.function.arguments or ""

    def made(self) -> list[Message]:
        """Return the calls, each with an id."""
        for number, call in enumerate(self._calls):
            call["id"] = call["id"] or f"call_{number}"
        return self._calls

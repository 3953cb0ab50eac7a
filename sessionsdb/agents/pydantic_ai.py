"""An agent of Pydantic AI as a handler. Extra ``pydantic-ai``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from typing import Any, Final

from pydantic_ai import (
    Agent,
    DeferredToolRequests,
    DeferredToolResults,
    ToolDenied,
    UsageLimitExceeded,
)
from pydantic_ai.capabilities import Hooks, ReinjectSystemPrompt
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.tools import RunContext, Tool, ToolDefinition
from pydantic_ai.toolsets import FunctionToolset
from pydantic_ai.usage import RunUsage, UsageLimits

from sessionsdb import validation
from sessionsdb.adapters.forms import require_form
from sessionsdb.agents.pydantic_ai_memory import (
    asked_prompt,
    open_calls,
    remembered_messages,
    results_message,
    stored_messages,
    without_result,
)
from sessionsdb.agents.turn_tools import (
    Definition,
    Sessions,
    TurnTools,
    checked_names,
    checked_sessions,
    session_tool_names,
)
from sessionsdb.approvals import (
    EXPIRED,
    UNFINISHED,
    WITHDRAWN,
    ToolCall,
    asked_calls,
    describe_call,
    describe_calls,
    question_data,
    refusal,
)
from sessionsdb.errors import InvalidArgument
from sessionsdb.messages.tool_values import parsed_arguments
from sessionsdb.types import Answer, Edit, Question
from sessionsdb.worker import Reply, Turn
from sessionsdb.worker.handler import Handler
from sessionsdb.worker.turn_entries import newest_entries

CHANGED: Final = "Not run: the transcript was changed while a person was asked."
STOPPED: Final = "Stopped: the model asked for tools in each of its {} calls."
_NO_RESULT: Final = {"withdrawn": WITHDRAWN, "expired": EXPIRED}


def agent(
    agent: Agent[Any, Any],
    *,
    sessions: Sessions | None = None,
    approve: Collection[str] = (),
    max_steps: int = 20,
    memory: int = 100,
    deps: Callable[[Turn], Any] | None = None,
    options: dict[str, Any] | None = None,
) -> Handler:
    """Return a handler that runs this agent of the framework. Its memory is the transcript.

    - ``agent``: where the session's settings have a ``model``, it replaces the agent's, as a name
      that the framework knows. A ``system`` prompt there replaces the agent's ``instructions``. A
      list of ``tools`` there allows only its tools, in all toolsets of the agent.
    - ``sessions``: offer the tools of ``SessionsTool`` with this visibility too.
    - ``approve``: the names of the tools that a person has to approve. The turn asks a question and
      ends. The turn of the answer goes on. A turn fails if no tool has such a name. Tools with
      ``requires_approval`` are asked for too, if the agent has ``DeferredToolRequests`` among its
      output types, as the framework demands.
    - ``max_steps``: calls of the model in a turn. In the last one it may call no function tool. If
      it does so, the turn ends with a text that says so.
    - ``memory``: the newest messages of the transcript that the model sees.
    - ``deps``: returns the ``deps`` of the framework for a turn.
    - ``options``: other arguments of ``Agent.run_stream_events``, such as ``retries``.

    The text is streamed to followers of the session, and each call is a piece of data of the kind
    ``tool_call``. The reply has every message of the turn, and the tokens of all steps. A turn that
    is cancelled closes the connection to the endpoint and writes nothing. Raises
    ``InvalidArgument``.
    """
    validation.strict_instance(agent, Agent, "agent")
    validation.integer(max_steps, "max_steps", minimum=1)
    validation.integer(memory, "memory", minimum=0)
    checked_sessions(sessions)
    approved = checked_names(approve)
    fixed = _options(agent, approved, max_steps, options or {})

    async def pydantic_ai(turn: Turn) -> Reply:
        require_form(turn.session, "an agent of Pydantic AI", unmarked=True)
        entries = await newest_entries(turn, memory)
        history = remembered_messages(turn.session, entries)
        run = _Run(
            turn,
            agent,
            max_steps,
            {**fixed, **_options_of(turn, agent, fixed, approved, sessions, deps)},
        )
        left = open_calls(history)
        decided = _decisions(turn.answer, left) if left else None
        if decided is not None:
            await run.finish(history, None, decided)
            # The results stand behind their calls, so before the message with the answer.
            turn.edit(Edit(append=stored_messages(run.new_messages[:1])))
        else:
            status = "" if turn.answer is None else turn.answer.status
            reason = UNFINISHED
            if turn.answer is not None and not left:  # there may be messages behind the calls
                left = without_result(history, asked_calls(turn.answer.question))
                reason = CHANGED
            if left:
                closing = [results_message(left, _NO_RESULT.get(status, reason))]
                turn.edit(Edit(append=stored_messages(closing)))
                history = remembered_messages(turn.session, entries, closing)
            await run.finish(history, asked_prompt(turn))
        # The first message is the request, which the transcript has already.
        said = stored_messages(run.new_messages[1:])
        return Reply([*said], run.model, ask=_question(run.output))

    return pydantic_ai


def _options(
    agent: Agent[Any, Any], approve: frozenset[str], max_steps: int, options: dict[str, Any]
) -> dict[str, Any]:
    """Return the arguments that are the same for all turns."""
    given = {"usage_limits": UsageLimits(request_limit=max_steps), **options}
    given["model_settings"] = _settings(max_steps, options.get("model_settings"))
    given["capabilities"] = [
        # The transcript has no system prompt of the agent, and so the framework adds it again.
        ReinjectSystemPrompt(),
        *(options.get("capabilities") or ()),
    ]
    if approve and "output_type" not in given:
        types = agent.output_type
        types = list(types) if isinstance(types, list | tuple) else [types]
        if DeferredToolRequests not in types:
            given["output_type"] = [*types, DeferredToolRequests]
    return given


def _settings(max_steps: int, given: Any) -> Callable[[RunContext[Any]], Any]:
    """Return the settings of each step: the last one may call no function tool."""

    def settings(context: RunContext[Any]) -> Any:
        own = given(context) if callable(given) else given or {}
        is_last = context.usage.requests >= max_steps - 1
        return {**own, "tool_choice": "none"} if is_last else own

    return settings


def _options_of(
    turn: Turn,
    agent: Agent[Any, Any],
    fixed: dict[str, Any],
    approve: frozenset[str],
    sessions: Sessions | None,
    deps: Callable[[Turn], Any] | None,
) -> dict[str, Any]:
    """Return the arguments of one turn."""
    options: dict[str, Any] = {"conversation_id": turn.session.id}
    if deps is not None:
        options["deps"] = deps(turn)
    if turn.settings.model is not None:
        options["model"] = turn.settings.model
    if approve or turn.settings.tools is not None:
        known = {*_function_names(agent), *session_tool_names(sessions)}
        hooks = Hooks(prepare_tools=_prepare(turn.settings.tools, approve, approve - known))
        options["capabilities"] = [*fixed["capabilities"], hooks]
    if sessions is not None:
        tools = TurnTools(turn, {}, sessions)
        offered = FunctionToolset([_tool(tools, one) for one in tools.definitions])
        options["toolsets"] = [*(fixed.get("toolsets") or ()), offered]
    return options


def _function_names(agent: Agent[Any, Any]) -> set[str]:
    """Return the names of an agent's functions, also of those that a step does not offer."""
    return {
        name for one in agent.toolsets if isinstance(one, FunctionToolset) for name in one.tools
    }


def _prepare(
    allowed: Collection[str] | None, approve: frozenset[str], unknown: frozenset[str]
) -> Callable[[RunContext[Any], list[ToolDefinition]], list[ToolDefinition]]:
    """Return a hook that removes tools, and demands approval of others.

    The first step of the run must offer the tools with the names of ``approve`` that are
    ``unknown``. A tool that was meant by another name would run without approval.
    """
    is_first = True

    def prepare(_: RunContext[Any], tools: list[ToolDefinition]) -> list[ToolDefinition]:
        nonlocal is_first
        if is_first and (missing := unknown - {tool.name for tool in tools}):
            raise InvalidArgument(f"approve names {min(missing)}, which is no tool of the agent")
        is_first = False
        return [
            dataclasses.replace(tool, kind="unapproved")
            if tool.name in approve and tool.kind == "function"
            else tool
            for tool in tools
            if allowed is None or tool.name in allowed
        ]

    return prepare


def _tool(tools: TurnTools, definition: Definition) -> Tool[Any]:
    async def invoke(context: RunContext[Any], **arguments: Any) -> str:
        # The run tells the followers of all its calls.
        call = ToolCall(str(context.tool_call_id), definition.name, arguments)
        return await tools.execute(call)

    return Tool.from_schema(
        invoke, definition.name, definition.description, definition.schema, takes_ctx=True
    )


class _Run:
    """The run of one turn."""

    def __init__(
        self, turn: Turn, agent: Agent[Any, Any], max_steps: int, options: dict[str, Any]
    ) -> None:
        self._turn = turn
        self._agent = agent
        self._max_steps = max_steps
        self._options = options
        self._used = RunUsage()
        self._counted = (0, 0)
        self.model: str | None = None
        self.output: Any = None
        self.new_messages: list[ModelMessage] = []

    async def finish(
        self,
        history: Sequence[ModelMessage],
        prompt: Any,
        decided: DeferredToolResults | None = None,
    ) -> None:
        """Run the agent to its end, or until it waits for a person."""
        system = self._turn.settings.system
        with nullcontext() if system is None else self._agent.override(instructions=system):
            try:
                # A cancelled turn leaves the block, which closes the connection.
                async with self._agent.run_stream_events(
                    prompt,
                    message_history=history,
                    deferred_tool_results=decided,
                    usage=self._used,
                    **self._options,
                ) as events:
                    try:
                        async for event in events:
                            self._show(event)
                            self._count()
                    except UsageLimitExceeded:
                        if self._used.requests < self._max_steps:
                            raise
                        self.new_messages = [*events.new_messages(), self._stopped()]
            finally:
                self._count()
        for message in self.new_messages:
            if isinstance(message, ModelResponse):
                self.model = message.model_name or self.model

    def _stopped(self) -> ModelResponse:
        """Return the end of a turn whose model calls tools although it may not."""
        text = STOPPED.format(self._max_steps)
        self._turn.stream(text)
        return ModelResponse(parts=[TextPart(text)])

    def _show(self, event: Any) -> None:
        kind = event.event_kind
        if kind == "part_start" and event.part.part_kind == "text":
            self._turn.stream(event.part.content)
        elif kind == "part_delta" and event.delta.part_delta_kind == "text":
            self._turn.stream(event.delta.content_delta)
        elif kind == "function_tool_call":
            name, id = event.part.tool_name, event.part.tool_call_id
            self._turn.emit("tool_call", {"name": name[:200], "id": id[:200]})
        elif kind == "agent_run_result":
            self.output = event.result.output
            self.new_messages = event.result.new_messages()

    def _count(self) -> None:
        """Count tokens at once: an attempt that fails later has used them too."""
        now = (self._used.input_tokens, self._used.output_tokens)
        if now != self._counted:
            read, written = (max(0, n - b) for n, b in zip(now, self._counted, strict=True))
            self._counted = now
            self._turn.usage(input_tokens=read, output_tokens=written)


def _question(output: Any) -> Question | None:
    """Return the question about the calls that a run left open."""
    if not isinstance(output, DeferredToolRequests):
        return None
    approvals = [_call(part) for part in output.approvals]
    others = [_call(part) for part in output.calls]
    lines = [describe_calls(approvals)] if approvals else []
    lines += [f"Give the result of {describe_call(one)}." for one in others]
    return Question(prompt="\n".join(lines), data=question_data([*approvals, *others], approvals))


def _call(part: ToolCallPart) -> ToolCall:
    return ToolCall(part.tool_call_id, part.tool_name, parsed_arguments(part.args))


def _decisions(answer: Answer | None, left: Sequence[ToolCallPart]) -> DeferredToolResults | None:
    """Return the decisions of a person about open calls, or ``None`` if there are none.

    Calls that run elsewhere, which the framework calls external, get the text of the answer.
    """
    if answer is None or answer.status == "withdrawn":
        return None
    asked = asked_calls(answer.question)
    if not all(part.tool_call_id in asked for part in left):
        return None
    text = EXPIRED if answer.message is None else answer.message.content
    results = DeferredToolResults()
    for part in left:
        if not asked[part.tool_call_id].get("requires_approval", True):
            results.calls[part.tool_call_id] = text
            continue
        reason = refusal(answer, _call(part))
        results.approvals[part.tool_call_id] = True if reason is None else ToolDenied(reason)
    return results

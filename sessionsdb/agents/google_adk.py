"""An agent of Google's Agent Development Kit (ADK) as a handler. Extra ``google-adk``."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

# The runner imports these in its first turn otherwise, which blocks the event loop for a second.
import google.adk.auth.auth_preprocessor
import google.adk.flows.llm_flows.auto_flow  # noqa: F401
from google.adk.agents.base_agent import BaseAgent
from google.adk.agents.invocation_context import LlmCallsLimitExceededError
from google.adk.agents.llm_agent import LlmAgent
from google.adk.agents.run_config import RunConfig, StreamingMode
from google.adk.apps.app import App
from google.adk.events.event import Event
from google.adk.models.base_llm import BaseLlm
from google.adk.runners import Runner
from google.adk.sessions.session import Session
from google.adk.tools.base_tool import BaseTool
from google.adk.tools.tool_context import ToolContext
from google.genai import types

from sessionsdb import validation
from sessionsdb.agents.google_adk_session import (
    TurnSession,
    TurnStates,
    remembered,
    text_content,
)
from sessionsdb.agents.turn_tools import Definition, Sessions, TurnTools, checked_sessions
from sessionsdb.approvals import ToolCall, describe_calls, says_yes
from sessionsdb.types import Question
from sessionsdb.worker import Reply, Turn
from sessionsdb.worker.handler import Handler
from sessionsdb.worker.turn_entries import newest_entries

_CONFIRMATION = "adk_request_confirmation"
"""The name of the call with which the framework asks a person to confirm the call of a tool."""


def agent(
    root: BaseAgent | App,
    *,
    app_name: str | None = None,
    sessions: Sessions | None = None,
    max_steps: int = 20,
    memory: int = 500,
    run_config: RunConfig | None = None,
    runner_options: dict[str, Any] | None = None,
) -> Handler:
    """Return a handler that runs an agent, or the root agent of an app, with ADK's ``Runner``.

    - ``app_name``: default is the name in the session's channel ``adk:APP``, else that of the app
      or the agent. It decides which state has the keys ``app:…``.
    - ``sessions``: offer the tools of ``SessionsTool`` with this visibility to the root agent.
    - ``max_steps``: calls of models in a turn. The turn then ends with an event that has the error
      code ``MAX_STEPS``, and with all events before it.
    - ``memory``: the newest messages of the transcript that the agent sees.
    - ``run_config``: takes the place of the default, which streams. ``max_steps`` stays.
    - ``runner_options``: other arguments of ``Runner``, such as ``artifact_service``.

    The session's model, system prompt and list of tools take the place of the root agent's,
    if that is an ``LlmAgent``. A tool that requires a confirmation asks a question, and the turn of
    the answer runs it: ``yes`` confirms all calls, ``yes ID ID`` some, any other text none.

    The reply has the events of the turn in the form of ``sessionsdb.adapters.google_adk``. They and
    their changes of the three states are committed with the turn. The text is streamed to
    followers of the session. Tokens of all calls are counted. A turn that is cancelled ends the run
    and writes nothing.
    """
    validation.integer(max_steps, "max_steps", minimum=1)
    validation.integer(memory, "memory", minimum=0)
    checked_sessions(sessions)
    config = run_config or RunConfig(streaming_mode=StreamingMode.SSE)
    config = config.model_copy(update={"max_llm_calls": max_steps})
    app = root if isinstance(root, App) else None
    root_agent: Any = root.root_agent if isinstance(root, App) else root
    default_name = app.name if app is not None else root_agent.name

    async def google_adk(turn: Turn) -> Reply:
        name = app_name or turn.session.channel.partition("adk:")[2] or default_name
        states = await TurnStates.read(turn, name)
        entries = await newest_entries(turn, memory)
        found = await _with_settings(root_agent, turn, sessions)
        service = TurnSession(
            Session(
                app_name=name,
                user_id=turn.session.peer,
                id=turn.session.id,
                state=states.values(),
                events=remembered(turn.session, entries, root_agent.name),
            )
        )
        runs = {"agent": found} if app is None else {"app": _app_with(app, found)}
        runner = Runner(**runs, app_name=name, session_service=service, **(runner_options or {}))
        asked = _asked(turn, service.session)
        run = _Run(turn)
        try:
            stream = runner.run_async(
                user_id=turn.session.peer,
                session_id=turn.session.id,
                new_message=asked,
                run_config=config,
            )
            async with aclosing(stream) as events:
                async for event in events:
                    run.see(event)
        except LlmCallsLimitExceededError:
            error = f"The turn ended after {max_steps} calls of a model."
            event = Event(author=found.name, error_code="MAX_STEPS", error_message=error)
            await service.append_event(service.session, event)
        states.apply(service.events)
        said = service.events
        if said and _is_message_of_inbox(said[0], asked):
            said = said[1:]
        return Reply(
            [event.model_dump(mode="json", exclude_none=True) for event in said],
            run.model,
            run.input_tokens,
            run.output_tokens,
            _question(said),
        )

    return google_adk


# ---- the agent of a turn -------------------------------------------------------------------------


def _app_with(app: App, root_agent: Any) -> App:
    return (
        app if app.root_agent is root_agent else app.model_copy(update={"root_agent": root_agent})
    )


async def _with_settings(root_agent: Any, turn: Turn, sessions: Sessions | None) -> Any:
    """Return the agent with the session's settings and with the session tools."""
    if not isinstance(root_agent, LlmAgent):
        return root_agent
    settings = turn.settings
    changes: dict[str, Any] = {}
    if settings.system is not None:
        prompt = settings.system
        # As a function, because the framework looks for {names} in a text.
        changes["instruction"] = lambda _context: prompt
    if settings.model is not None:
        model = root_agent.model
        changes["model"] = (
            model.model_copy(update={"model": settings.model})
            if isinstance(model, BaseLlm)
            else settings.model
        )
    if settings.tools is not None or sessions is not None:
        tools = list(root_agent.tools)
        if settings.tools is not None:
            found = await root_agent.canonical_tools()
            tools = [one for one in found if one.name in settings.tools]
        session_tools = TurnTools(turn, {}, sessions)
        tools += [_SessionTool(one, session_tools) for one in session_tools.definitions]
        changes["tools"] = tools
    return root_agent.clone(changes) if changes else root_agent


class _SessionTool(BaseTool):
    """One of the session tools."""

    def __init__(self, definition: Definition, tools: TurnTools) -> None:
        super().__init__(name=definition.name, description=definition.description)
        self._definition = definition
        self._tools = tools

    def _get_declaration(self) -> types.FunctionDeclaration:
        return types.FunctionDeclaration(
            name=self.name,
            description=self.description,
            parameters_json_schema=self._definition.schema,
        )

    async def run_async(self, *, args: dict[str, Any], tool_context: ToolContext) -> str:
        id = tool_context.function_call_id or ""
        return await self._tools.execute(ToolCall(id, self.name, args))


# ---- what the turn answers -----------------------------------------------------------------------


def _asked(turn: Turn, session: Session) -> types.Content:
    """Return what the turn answers: the message, or the decision about calls of tools."""
    answer = turn.answer
    if answer is None or answer.status == "withdrawn":
        return text_content(turn.prompt)
    there = {call.id for event in session.events for call in event.get_function_calls()}
    calls = [call for call in _asked_calls(answer.question) if call.id in there]
    approved = [call for call in calls if says_yes(answer, call)]
    # A person who denies all calls has said why. The agent reads that as any other message.
    if not calls or (answer.status == "answered" and not approved):
        return text_content(turn.prompt)
    return types.Content(
        role="user",
        parts=[
            types.Part(
                function_response=types.FunctionResponse(
                    id=call.id, name=_CONFIRMATION, response={"confirmed": call in approved}
                )
            )
            for call in calls
        ],
    )


def _asked_calls(question: Question) -> list[ToolCall]:
    data: Any = question.data
    calls = data.get("tool_calls") if isinstance(data, dict) else None
    return [ToolCall(one["id"], one["name"], one["arguments"]) for one in calls or ()]


def _is_message_of_inbox(event: Event, asked: types.Content) -> bool:
    """Return whether an event says no more than the message of the inbox, which is stored."""
    return (
        event.author == "user"
        and event.content == asked
        and not event.get_function_responses()
        and not event.actions.state_delta
        and event.branch is None
        and event.isolation_scope is None
    )


def _question(events: Sequence[Event]) -> Question | None:
    """Return the question about the calls that wait for a confirmation."""
    calls: list[Any] = []
    asked: list[ToolCall] = []
    for event in events:
        for call in event.get_function_calls():
            if call.name != _CONFIRMATION:
                continue
            given = call.args or {}
            original = given.get("originalFunctionCall") or {}
            one = ToolCall(str(call.id), str(original.get("name")), original.get("args") or {})
            hint = (given.get("toolConfirmation") or {}).get("hint")
            calls.append({**one._asdict(), "requires_approval": True, "hint": hint})
            asked.append(one)
    if not asked:
        return None
    return Question(prompt=describe_calls(asked), data={"tool_calls": calls})


# ---- what followers see --------------------------------------------------------------------------


class _Run:
    """The pieces and the tokens of one turn."""

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        self._has_streamed = False
        """Whether the text of the next whole event was streamed in parts."""
        self.model: str | None = None
        self.input_tokens = self.output_tokens = 0

    def see(self, event: Event) -> None:
        """Stream the text of an event, and count its tokens."""
        parts = event.content.parts or [] if event.content else []
        text = "".join(part.text for part in parts if part.text and not part.thought)
        if text and event.author != "user" and (event.partial or not self._has_streamed):
            self._turn.stream(text)
        self._has_streamed = bool(event.partial) and (self._has_streamed or bool(text))
        if event.partial:
            return
        for call in event.get_function_calls():
            named = {"name": str(call.name)[:200], "id": str(call.id)[:200]}
            self._turn.emit("tool_call", named)
        self.model = event.model_version or self.model
        if (usage := event.usage_metadata) is not None:
            read = usage.prompt_token_count or 0
            written = (usage.candidates_token_count or 0) + (usage.thoughts_token_count or 0)
            self.input_tokens += read
            self.output_tokens += written
            # Counted at once: an attempt that fails later has used them too.
            self._turn.usage(input_tokens=read, output_tokens=written)

"""An agent of the OpenAI Agents SDK as a handler. Extra ``openai-agents``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from typing import Any, Final

from agents import Agent, FunctionTool, RunConfig

from sessionsdb import validation
from sessionsdb.adapters.forms import require_form
from sessionsdb.adapters.openai_agents import FORM
from sessionsdb.agents.openai_agents_memory import (
    Item,
    as_item,
    open_ids,
    remembered_items,
    result_item,
    without_result,
)
from sessionsdb.agents.openai_agents_pause import Pause, ask, read_pause
from sessionsdb.agents.openai_agents_run import Run
from sessionsdb.agents.turn_tools import (
    Definition,
    Sessions,
    TurnTools,
    checked_approvals,
    checked_sessions,
)
from sessionsdb.approvals import EXPIRED, UNFINISHED, WITHDRAWN, ToolCall
from sessionsdb.errors import InvalidArgument
from sessionsdb.messages.tool_values import parsed_arguments
from sessionsdb.messages.whole_characters import whole_characters
from sessionsdb.types import Edit
from sessionsdb.worker import Reply, Turn
from sessionsdb.worker.handler import Handler
from sessionsdb.worker.turn_entries import newest_entries

_NO_RESULT: Final = {"withdrawn": WITHDRAWN, "expired": EXPIRED}
CHANGED: Final = "Not run: the transcript or the agent was changed while a person was asked."
STOPPED: Final = "Stopped: the model asked for tools in each of its {} calls."


def agent(
    agent: Agent[Any],
    *,
    sessions: Sessions | None = None,
    approve: Collection[str] = (),
    max_steps: int = 20,
    memory: int = 100,
    context: Callable[[Turn], Any] | None = None,
    options: dict[str, Any] | None = None,
) -> Handler:
    """Return a handler that runs this agent of the SDK. Its memory is the session's transcript.

    - ``agent``: each turn begins with it, also after a handoff. Where the session's settings have a
      ``system`` prompt, it replaces the agent's ``instructions``. A ``model`` there replaces the
      models of all agents of the run, found by the ``model_provider`` of the run configuration. A
      list of ``tools`` there allows only its tools. An agent with handoffs or MCP servers can't
      honour a list, so its turns fail with ``InvalidArgument``.
    - ``sessions``: offer the tools of ``SessionsTool`` with this visibility too.
    - ``approve``: the names of the tools that a person has to approve, beside tools with
      ``needs_approval``. The turn asks a question and ends. The turn of the answer goes on. It
      can't hold for the tools of other agents, so an agent with handoffs needs ``needs_approval``.
    - ``max_steps``: calls of the model in a run. After the last one the run is stopped, and the
      reply says so.
    - ``memory``: the newest messages of the transcript that the model sees.
    - ``context``: returns the ``context`` of the SDK for a turn.
    - ``options``: other arguments of ``Runner.run_streamed``, such as ``hooks`` and ``run_config``.

    The text is streamed to followers of the session, and each call is a piece of data of the kind
    ``tool_call``. The reply has every item of the turn, and the tokens of all steps. A turn that is
    cancelled closes the connection to the endpoint and writes nothing. Raises ``InvalidArgument``.
    """
    validation.strict_instance(agent, Agent, "agent")
    validation.integer(max_steps, "max_steps", minimum=1)
    validation.integer(memory, "memory", minimum=0)
    checked_sessions(sessions)
    functions = {one.name for one in agent.tools if isinstance(one, FunctionTool)}
    approved = checked_approvals(approve, functions, sessions)
    _check_handoffs(agent, approved)
    fixed = _options(agent, max_steps, options)

    async def openai_agents(turn: Turn) -> Reply:
        require_form(turn.session, FORM, unmarked=True)
        tools = TurnTools(turn, {}, sessions)
        starting = _agent_of(turn, agent, tools, approved)
        turn_options = _options_of(turn, fixed, context)
        run = Run(turn, starting, turn_options)
        pause = await read_pause(turn)
        state = None
        if pause is not None:
            entries = await newest_entries(turn, memory + pause.items)
            state = await pause.resume(turn, starting, turn_options.get("context"), entries)
        given = await _input(turn, memory, pause) if state is None else state
        result = await run.finish(given)
        items, earlier = run.new_items, []
        if state is not None and pause is not None:
            late, items = _add_late_results(turn, pause, items)
            # An expired question has no answer in the transcript.
            answer = [] if turn.answer and turn.answer.status == "expired" else turn.inputs
            earlier = [*pause.messages_in(entries), *late, *answer]
        question = None
        if result.interruptions:
            question = await ask(turn, result, [*earlier, *items])
        return Reply(list(items), run.model, ask=question)

    return openai_agents


def _check_handoffs(agent: Agent[Any], approve: frozenset[str]) -> None:
    """Raise ``InvalidArgument`` if another agent could run a tool without approval."""
    for one in agent.tools if agent.handoffs else ():
        if isinstance(one, FunctionTool) and one.name in approve and one.needs_approval is not True:
            raise InvalidArgument(
                f"approve can't hold for {one.name}, because agent {agent.name} has handoffs; set "
                "needs_approval=True on that tool of each agent"
            )


def _options(agent: Agent[Any], max_steps: int, options: dict[str, Any] | None) -> dict[str, Any]:
    given = {"max_turns": max_steps, **(options or {})}
    if isinstance(config := given.get("run_config"), dict):
        given["run_config"] = RunConfig(**config)
    if agent.output_type is None:  # another type of output can't be this text
        stopped = STOPPED.format(max_steps)
        handlers = given.get("error_handlers") or {}
        given["error_handlers"] = {"max_turns": lambda _: stopped, **handlers}
    return given


def _options_of(
    turn: Turn, given: dict[str, Any], context: Callable[[Turn], Any] | None
) -> dict[str, Any]:
    options = dict(given)
    if context is not None:
        options["context"] = context(turn)
    if turn.settings.model is not None:
        config = options.get("run_config") or RunConfig()
        options["run_config"] = dataclasses.replace(config, model=turn.settings.model)
    return options


def _agent_of(
    turn: Turn, agent: Agent[Any], tools: TurnTools, approve: frozenset[str]
) -> Agent[Any]:
    """Return the agent with the settings of the session, and with the session tools."""
    allowed = turn.settings.tools
    if allowed is not None and (agent.handoffs or agent.mcp_servers):
        raise InvalidArgument(
            f"session {turn.session.id} has a list of tools. Agent {agent.name} can't honour "
            "that, because it has handoffs or MCP servers"
        )
    own = [one for one in agent.tools if allowed is None or one.name in allowed]
    names = {one.name for one in own}
    offered = [*own, *(_tool(tools, one) for one in tools.definitions if one.name not in names)]
    changes: dict[str, Any] = {
        "tools": [
            dataclasses.replace(one, needs_approval=True) if one.name in approve else one
            for one in offered
        ]
    }
    if turn.settings.system is not None:
        changes["instructions"] = turn.settings.system
    return agent.clone(**changes)


def _tool(tools: TurnTools, definition: Definition) -> FunctionTool:
    async def invoke(context: Any, arguments: str) -> str:
        call = ToolCall(context.tool_call_id, definition.name, parsed_arguments(arguments))
        return await tools.execute(call)  # the run tells the followers of all its calls

    return FunctionTool(
        name=definition.name,
        description=definition.description,
        params_json_schema=definition.schema,
        on_invoke_tool=invoke,
        strict_json_schema=False,
    )


async def _input(turn: Turn, memory: int, pause: Pause | None) -> list[Item]:
    """Return the memory and the messages of the turn. Calls that were left open get results.

    So do the calls of a run that can't go on, as the transcript was changed behind them.
    """
    entries = await newest_entries(turn, memory + (0 if pause is None else pause.items))
    messages = [entry.message for entry in entries]
    status = turn.answer.status if turn.answer else ""
    reason = _NO_RESULT.get(status, UNFINISHED if pause is None else CHANGED)
    ids = open_ids(messages)
    if pause is not None:
        ids += [id for id in without_result(messages, pause.call_ids) if id not in ids]
    left = [result_item(id, reason) for id in ids]
    if left:
        turn.edit(Edit(append=left))
    newest = entries[-memory:] if memory else []
    return [*remembered_items(turn.session, newest, left), _asked(turn)]


def _asked(turn: Turn) -> Item:
    """Return the messages of the turn as one item: a user's with its images, else the text."""
    [first, *others] = turn.inputs
    if not others and turn.senders == [None] and first.get("role") == "user":
        item = as_item(whole_characters(first))
        if item is not None:
            return item
    return {"role": "user", "content": turn.prompt}


def _add_late_results(turn: Turn, pause: Pause, items: list[Item]) -> tuple[list[Item], list[Item]]:
    """Stage the results that the turn before waited for. Return them, and the items behind them.

    They stand behind their calls, so before the message with the answer.
    """
    count = 0
    while count < len(items) and items[count].get("call_id") in pause.call_ids:
        count += 1
    if count:
        turn.edit(Edit(append=items[:count]))
    return items[:count], items[count:]

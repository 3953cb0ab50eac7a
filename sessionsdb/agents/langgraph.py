"""A graph of LangGraph as a handler. Extra ``langgraph``.

The transcript is the memory, as for all agents here. A turn gives the graph the conversation, and
its commit adds the new messages of the graph to the transcript. A checkpointer of the graph is not
the memory. Each run has a thread of its own there, for the inner state of a run that waits for a
person.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing
from contextvars import ContextVar
from typing import Any, Final
from uuid import uuid4

from langchain_core.messages import AIMessage, BaseMessage, SystemMessage
from langchain_core.tools import BaseTool, StructuredTool
from langgraph.errors import GraphRecursionError
from langgraph.pregel import Pregel

from sessionsdb import validation
from sessionsdb.adapters.forms import require_form
from sessionsdb.agents.langgraph_memory import (
    asked_message,
    entries_end,
    open_calls,
    remembered_messages,
    results,
    stored_messages,
)
from sessionsdb.agents.langgraph_pause import Pause, ask, read_pause
from sessionsdb.agents.turn_tools import Sessions, checked_sessions
from sessionsdb.approvals import EXPIRED, UNFINISHED, WITHDRAWN
from sessionsdb.errors import InvalidArgument
from sessionsdb.tools import SessionsTool
from sessionsdb.tools.definitions import DEFINITIONS
from sessionsdb.types import Edit
from sessionsdb.worker import Reply, Turn
from sessionsdb.worker.handler import Handler
from sessionsdb.worker.turn_entries import newest_entries

STOPPED: Final = "Stopped: the graph has not ended after {} steps."
_NO_RESULT: Final = {"withdrawn": WITHDRAWN, "expired": EXPIRED}
_NOT_RUN: Final = "Not run: the graph was stopped, because it took too many steps."

_turn: ContextVar[Turn] = ContextVar("_turn")


def agent(
    graph: Pregel[Any, Any, Any, Any] | Callable[[Turn], Pregel[Any, Any, Any, Any]],
    *,
    max_steps: int = 50,
    memory: int = 100,
    context: Callable[[Turn], Any] | None = None,
    config: dict[str, Any] | None = None,
) -> Handler:
    """Return a handler that runs this graph. Its memory is the session's transcript.

    - ``graph``: a compiled graph whose state has ``messages``, such as one of ``create_agent``. A
      function of the turn may return one, so that it can depend on the session's settings.
    - ``max_steps``: super-steps of the graph in a turn. After the last one the graph is stopped,
      and the reply says so.
    - ``memory``: the newest messages of the transcript that the graph is given.
    - ``context``: returns the ``context`` of the graph's runtime for a turn.
    - ``config``: the configuration of each run, such as ``callbacks`` and ``configurable``.

    A ``system`` prompt of the session's settings is the first message that the graph is given. A
    ``model`` there is ``configurable["model"]``, which a model of ``init_chat_model`` follows. A
    list of ``tools`` there is honoured by a function of the turn and by ``session_tools``. With a
    graph that is compiled already the turn fails with ``InvalidArgument``.

    An ``interrupt`` of the graph is a question to a person, if the graph has a checkpointer. The
    answer resumes the graph. ``yes`` approves the calls of ``HumanInTheLoopMiddleware``, and any
    other text rejects them. Other interrupts get the text of the answer.

    The text of chat models is streamed to followers of the session, and each call is a piece of
    data of the kind ``tool_call``. The reply has every new message of the graph, and the tokens of
    its models. A turn that is cancelled cancels the nodes and writes nothing to the session. Raises
    ``InvalidArgument``.
    """
    if not isinstance(graph, Pregel) and not callable(graph):
        raise InvalidArgument("graph must be a compiled graph, or a function that returns one")
    validation.integer(max_steps, "max_steps", minimum=1)
    validation.integer(memory, "memory", minimum=0)

    async def langgraph(turn: Turn) -> Reply:
        require_form(turn.session, "langgraph", unmarked=True)
        run = _Run(turn, _graph_of(turn, graph), max_steps)
        run.options = {"config": _config_of(turn, config, max_steps)}
        if context is not None:
            run.options["context"] = context(turn)
        token = _turn.set(turn)
        try:
            pause = await read_pause(turn, run.graph, run.options["config"])
            if pause is None:
                await run.begin(memory)
            else:
                await run.resume(pause)
            question = None if run.is_stopped else await ask(run.graph, run.options["config"])
        finally:
            _turn.reset(token)
        return Reply([*stored_messages(run.new_messages)], run.model, ask=question)

    return langgraph


def session_tools(visibility: Sessions = "tree") -> list[BaseTool]:
    """Return the tools of ``SessionsTool`` for a graph that ``agent`` runs.

    They act for the session of the turn that runs them. A list of tools in its settings allows only
    its tools. Outside of a turn they tell the model an error.
    """
    checked_sessions(visibility)
    return [_session_tool(one, visibility) for one in DEFINITIONS]


def _session_tool(definition: Any, visibility: Sessions) -> BaseTool:
    async def run(**arguments: Any) -> str:
        turn = _turn.get(None)
        if turn is None:
            return "Error: this tool works only in a turn of a session"
        allowed = turn.settings.tools
        if allowed is not None and definition.name not in allowed:
            return f"Error: this session is not allowed to use {definition.name}"
        tool = SessionsTool(turn.broker, turn.session.id, visibility=visibility)
        return (await tool.execute(definition.name, definition.name, arguments)).content

    return StructuredTool(
        name=definition.name,
        description=definition.description,
        args_schema=definition.input_schema,
        coroutine=run,
    )


def _graph_of(turn: Turn, graph: Any) -> Any:
    if not isinstance(graph, Pregel):
        return graph(turn)
    if turn.settings.tools is not None:
        raise InvalidArgument(
            f"session {turn.session.id} has a list of tools, which a compiled graph can't honour: "
            "give langgraph.agent a function of the turn that returns the graph"
        )
    return graph


def _config_of(turn: Turn, given: dict[str, Any] | None, max_steps: int) -> dict[str, Any]:
    config = {"recursion_limit": max_steps, **(given or {})}
    configurable = {**config.get("configurable", {}), "thread_id": str(uuid4())}
    if turn.settings.model is not None:
        configurable["model"] = turn.settings.model
    return {**config, "configurable": configurable}


class _Run:
    """The run of one turn."""

    def __init__(self, turn: Turn, graph: Any, max_steps: int) -> None:
        self._turn = turn
        self.graph = graph
        self._max_steps = max_steps
        self.options: dict[str, Any] = {}
        self.model: str | None = None
        self.is_stopped = False
        self.new_messages: list[BaseMessage] = []
        self._known: set[str | None] = set()

    async def begin(self, memory: int) -> None:
        """Give the graph the memory and the messages of the turn."""
        turn = self._turn
        entries = await newest_entries(turn, memory)
        answer = turn.answer
        reason = _NO_RESULT.get("" if answer is None else answer.status, UNFINISHED)
        left = results(entries_end(turn.session, entries), reason)
        if left:
            turn.edit(Edit(append=stored_messages(left)))
        given: list[Any] = [*remembered_messages(turn.session, entries, left), asked_message(turn)]
        if turn.settings.system is not None:
            given.insert(0, SystemMessage(turn.settings.system, id="system"))
        self._known = {one.id for one in given}
        await self._run({"messages": given})

    async def resume(self, pause: Pause) -> None:
        """Give the graph the answer of a person."""
        self._known = {one.id for one in pause.messages}
        self.options["config"] = pause.config
        await self._run(pause.command)
        # The results stand behind their calls, so before the message with the answer.
        waiting = {call["id"] for call in open_calls(pause.messages)}
        count = 0
        for message in self.new_messages:
            if getattr(message, "tool_call_id", None) not in waiting:
                break
            count += 1
        if count:
            self._turn.edit(Edit(append=stored_messages(self.new_messages[:count])))
            self.new_messages = self.new_messages[count:]

    async def _run(self, given: Any) -> None:
        stream = self.graph.astream(
            given,
            stream_mode=["messages", "values"],
            subgraphs=True,
            durability="exit" if self.graph.checkpointer else None,
            **self.options,
        )
        shown: set[str | None] = set(self._known)
        try:
            async with aclosing(stream):
                async for path, mode, data in stream:
                    if mode == "messages":
                        self._show(*data)
                    elif not path:
                        self._take(data, shown)
        except GraphRecursionError:
            self.is_stopped = True
            text = STOPPED.format(self._max_steps)
            self._turn.stream(text)
            self.new_messages += [
                *results(open_calls(self.new_messages), _NOT_RUN),
                AIMessage(text, id=str(uuid4())),
            ]

    def _show(self, message: Any, _: Any) -> None:
        if not isinstance(message, AIMessage):
            return
        if message.text:
            self._turn.stream(message.text)
        self.model = message.response_metadata.get("model_name") or self.model
        if (used := message.usage_metadata) is not None:
            # Counted at once: an attempt that fails later has used them too.
            self._turn.usage(input_tokens=used["input_tokens"], output_tokens=used["output_tokens"])

    def _take(self, state: Any, shown: set[str | None]) -> None:
        """Take the messages of a state of the graph, and show its new calls."""
        if not isinstance(state, dict) or "messages" not in state:
            raise InvalidArgument("the state of the graph has no messages")
        self.new_messages = [one for one in state["messages"] if one.id not in self._known]
        for message in self.new_messages:
            if message.id in shown:
                continue
            shown.add(message.id)
            for call in getattr(message, "tool_calls", ()):
                name, id = str(call["name"]), str(call["id"])
                self._turn.emit("tool_call", {"name": name[:200], "id": id[:200]})

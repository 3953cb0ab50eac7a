"""SessionsTool: the verbs of a broker as tools for a model."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, get_args

from sessionsdb import validation
from sessionsdb.errors import SessionsDBError
from sessionsdb.printable import escape_hidden
from sessionsdb.protocols import SessionBroker
from sessionsdb.tools import acting, definitions, inputs, reading, scheduling, waiting
from sessionsdb.tools.call import Call, CallRefused
from sessionsdb.tools.input_parsing import InvalidInput, parse_input
from sessionsdb.tools.outputs import Output
from sessionsdb.tools.rendering import replace_surrogates
from sessionsdb.tools.scope import NoCaller, Scope, Visibility
from sessionsdb.tools.values import SESSION_ID_KEY, ToolContext, ToolDefinition, ToolResult
from sessionsdb.types import SessionId
from sessionsdb.untrusted_values import text_or_short_repr

log = logging.getLogger("sessionsdb.tools")

MAX_WAIT_SECS = 600.0

MAX_NAME_CHARACTERS = 100


class _Tool(NamedTuple):
    input_model: type[inputs.Input]
    run: Callable[[Call, Any], Awaitable[Output]]


_TOOLS = {
    definitions.LIST: _Tool(inputs.ListInput, reading.list_sessions),
    definitions.HISTORY: _Tool(inputs.HistoryInput, reading.history),
    definitions.SEARCH: _Tool(inputs.SearchInput, reading.search),
    definitions.SEND: _Tool(inputs.SendInput, acting.send),
    definitions.SPAWN: _Tool(inputs.SpawnInput, acting.spawn),
    definitions.STATUS: _Tool(inputs.StatusInput, reading.status),
    definitions.WAIT: _Tool(inputs.WaitInput, waiting.wait),
    definitions.SCHEDULE: _Tool(inputs.ScheduleInput, scheduling.schedule),
    definitions.UNSCHEDULE: _Tool(inputs.UnscheduleInput, scheduling.unschedule),
    definitions.CANCEL: _Tool(inputs.CancelInput, acting.cancel),
    definitions.END: _Tool(inputs.EndInput, acting.end),
}


class SessionsTool:
    """The session tools of one caller. A model can list, read, search, message, spawn, await and
    end sessions.

    ::

        tool = SessionsTool(db.broker, turn.session.id)
        tools = [definition.as_anthropic() for definition in tool.definitions()]
        result = await tool.execute(block.id, block.name, block.input)

    ``current_session_id`` is the caller: the session whose agent uses the tools. A host that
    serves several sessions with one tool names the caller of each call in
    ``context.metadata["session_id"]``.

    ``visibility`` decides which sessions a caller can see and act on. ``"self"`` is its own
    session. ``"below"`` is that session and all sessions below it: choose it for an agent that
    reads the words of strangers. ``"tree"`` is the root of its tree and all sessions below it.
    ``"namespace"`` is every session of the namespace of the broker. Whatever is visible, a caller
    can end, and cancel messages of, only sessions below its own. Without a known caller no session
    is in scope, unless the host chose ``"namespace"``. An id outside the scope gets the same answer
    as an id that does not exist.

    ``max_wait_secs`` is the maximum wait of a call in seconds, whatever the model asks for.

    ``report_spawns`` decides whether spawned sessions report to the caller unless the model says
    otherwise: see ``SpawnRequest.report``. Choose false if no worker runs the caller's session.
    """

    def __init__(
        self,
        broker: SessionBroker,
        current_session_id: str | None = None,
        *,
        visibility: Visibility = "tree",
        max_wait_secs: float = MAX_WAIT_SECS,
        report_spawns: bool = True,
    ) -> None:
        self._broker = broker
        self._current = _caller_id(current_session_id)
        validation.one_of(visibility, get_args(Visibility), "visibility")
        self._visibility: Visibility = visibility
        self._max_wait_secs = validation.seconds(max_wait_secs, "max_wait_secs")
        self._report_spawns = validation.boolean(report_spawns, "report_spawns")

    def definitions(self) -> list[ToolDefinition]:
        """Return the definitions of the tools for a model."""
        return list(definitions.DEFINITIONS)

    async def execute(
        self,
        tool_use_id: str,
        name: str,
        input: Any,
        context: ToolContext | None = None,
    ) -> ToolResult:
        """Run a tool and return its result.

        Wrong arguments and all errors are results with ``is_error``. Only a cancellation is
        raised. It ends a wait and changes nothing for the messages.
        """
        name = text_or_short_repr(name)
        tool = _TOOLS.get(name)
        if tool is None:
            return _error_result(
                tool_use_id, f"Unknown sessions tool: {name[:MAX_NAME_CHARACTERS]}"
            )
        try:
            output = await self._run(tool, name, input, context)
            structured = output.model_dump(mode="json")
            return ToolResult(
                tool_use_id,
                escape_hidden(json.dumps(structured, ensure_ascii=False)),
                structured=structured,
            )
        except (InvalidInput, CallRefused) as error:
            return _error_result(tool_use_id, str(error))
        except (SessionsDBError, NoCaller) as error:
            return _error_result(tool_use_id, f"{name} failed: {error}")
        except Exception as error:
            log.exception("%s failed in an unforeseen way", name)
            return _error_result(tool_use_id, f"{name} failed: unexpected {type(error).__name__}")

    async def scope(self, context: ToolContext | None = None) -> Scope:
        """Return the scope of the caller. Raises ``NoCaller`` and ``UnknownSession``."""
        return await Scope.of_caller(self._broker, self._visibility, self._caller(context))

    async def _run(self, tool: _Tool, name: str, input: Any, context: ToolContext | None) -> Output:
        given = parse_input(tool.input_model, name, input)
        caller = self._caller(context)
        if caller is None and name == definitions.SPAWN:
            raise CallRefused(acting.NO_PARENT)  # more exact than NoCaller
        scope = await Scope.of_caller(self._broker, self._visibility, caller)
        progress = None if context is None else context.progress
        call = Call(self._broker, scope, caller, self._max_wait_secs, progress, self._report_spawns)
        return await tool.run(call, given)

    def _caller(self, context: ToolContext | None) -> SessionId | None:
        if context is None:
            return self._current
        metadata = validation.strict_instance(context, ToolContext, "context").metadata
        named = validation.mapping(metadata, "context.metadata").get(SESSION_ID_KEY)
        return _caller_id(named) or self._current


def _caller_id(id: Any) -> SessionId | None:
    """Check the session of the caller. An empty id counts as no caller."""
    return None if id is None or id == "" else validation.session_id(id)


def _error_result(tool_use_id: str, text: str) -> ToolResult:
    return ToolResult(tool_use_id, replace_surrogates(text), is_error=True)

"""SessionsTool: the broker as tools that a model can call."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple, get_args

from sessionsdb import validation
from sessionsdb.errors import InvalidArgument, SessionsDBError
from sessionsdb.protocols import SessionBroker
from sessionsdb.tools import acting, definitions, inputs, reading, waiting
from sessionsdb.tools.call import Call, Refused
from sessionsdb.tools.inputs import InvalidInput
from sessionsdb.tools.outputs import Output
from sessionsdb.tools.rendering import printable
from sessionsdb.tools.scope import NoCaller, Scope, Visibility
from sessionsdb.tools.values import SESSION_ID_KEY, ToolContext, ToolDefinition, ToolResult
from sessionsdb.types import SessionId

log = logging.getLogger("sessionsdb.tools")

MAX_WAIT_SECS = 600.0

NAME_CHARACTERS = 100


class _Served(NamedTuple):
    takes: type[inputs.Input]
    serve: Callable[[Call, Any], Awaitable[Output]]


_SERVED = {
    definitions.LIST: _Served(inputs.ListInput, reading.list_sessions),
    definitions.HISTORY: _Served(inputs.HistoryInput, reading.history),
    definitions.SEND: _Served(inputs.SendInput, acting.send),
    definitions.SPAWN: _Served(inputs.SpawnInput, acting.spawn),
    definitions.STATUS: _Served(inputs.StatusInput, reading.status),
    definitions.WAIT: _Served(inputs.WaitInput, waiting.wait),
    definitions.END: _Served(inputs.EndInput, acting.end),
}


class SessionsTool:
    """Lists, reads, sends to, spawns, waits for and ends sessions, for a model.

    ::

        tool = SessionsTool(db.broker, turn.session.id)
        tools = [definition.as_anthropic() for definition in tool.definitions()]
        result = await tool.execute(block.id, block.name, block.input)

    ``current_session_id`` is the caller: the session whose agent has these tools. A host that
    serves several with one tool says for each call, in ``context.metadata["session_id"]``.

    ``visibility`` is what a caller can see and act on: ``"self"``, its own session; ``"tree"``,
    the top of its tree and all below it; ``"namespace"``, every session of the broker's. Without
    a known caller nothing is in scope, unless the host chose ``"namespace"``. An id outside the
    scope gets the same answer as one that does not exist.

    ``max_wait_secs``: the most seconds a call waits, whatever the model asks for.
    """

    def __init__(
        self,
        broker: SessionBroker,
        current_session_id: str | None = None,
        *,
        visibility: Visibility = "tree",
        max_wait_secs: float = MAX_WAIT_SECS,
    ) -> None:
        self._broker = broker
        self._current = _known(current_session_id)
        validation.one_of(visibility, get_args(Visibility), "visibility")
        self._visibility: Visibility = visibility
        self._max_wait_secs = validation.seconds(max_wait_secs, "max_wait_secs")

    def definitions(self) -> list[ToolDefinition]:
        """The tools, as a model is told of them."""
        return list(definitions.DEFINITIONS)

    async def execute(
        self,
        tool_use_id: str,
        name: str,
        input: Any,
        context: ToolContext | None = None,
    ) -> ToolResult:
        """Run a tool. Whatever the model sent and whatever goes wrong, the answer is a result.

        Only a cancellation gets through: it ends a wait, and changes nothing for what is waited
        for.
        """
        name = (
            str.__str__(name) if validation.is_instance(name, str) else validation.short_repr(name)
        )
        served = _SERVED.get(name)
        if served is None:
            return _error(tool_use_id, f"Unknown sessions tool: {name[:NAME_CHARACTERS]}")
        try:
            output = await self._serve(served, name, input, context)
            structured = output.model_dump(mode="json")
            return ToolResult(
                tool_use_id,
                json.dumps(structured, ensure_ascii=False),
                structured=structured,
            )
        except (InvalidInput, Refused) as error:
            return _error(tool_use_id, str(error))
        except (SessionsDBError, NoCaller) as error:
            return _error(tool_use_id, f"{name} failed: {error}")
        except Exception as error:
            log.exception("%s failed in an unforeseen way", name)
            return _error(tool_use_id, f"{name} failed: unexpected {type(error).__name__}")

    async def scope(self, context: ToolContext | None = None) -> Scope:
        """What the caller can see. Raises ``NoCaller`` and ``UnknownSession``."""
        return await Scope.of(self._broker, self._visibility, self._caller(context))

    async def _serve(
        self, served: _Served, name: str, input: Any, context: ToolContext | None
    ) -> Output:
        given = inputs.read(served.takes, name, input)
        caller = self._caller(context)
        if caller is None and name == definitions.SPAWN:
            raise Refused(acting.NO_PARENT)  # says more than that nothing is in scope
        scope = await Scope.of(self._broker, self._visibility, caller)
        progress = None if context is None else context.progress
        call = Call(self._broker, scope, caller, self._max_wait_secs, progress)
        return await served.serve(call, given)

    def _caller(self, context: ToolContext | None) -> SessionId | None:
        if context is None:
            return self._current
        metadata = validation.strict_instance(context, ToolContext, "context").metadata
        if not validation.is_instance(metadata, Mapping):
            raise InvalidArgument(
                f"context.metadata must be a mapping, not {validation.type_name(metadata)}"
            )
        return _known(metadata.get(SESSION_ID_KEY)) or self._current


def _known(id: Any) -> SessionId | None:
    """The caller's session; the empty id is as good as none."""
    return None if id is None or id == "" else validation.session_id(id)


def _error(tool_use_id: str, text: str) -> ToolResult:
    return ToolResult(tool_use_id, printable(text), is_error=True)

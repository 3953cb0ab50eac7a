"""The tools that the model of one turn may call: functions, and the session tools."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any, Literal, NamedTuple, get_args

from sessionsdb.agents.functions import FunctionTool
from sessionsdb.approvals import ToolCall, ToolResult
from sessionsdb.errors import InvalidArgument
from sessionsdb.tools import SessionsTool
from sessionsdb.tools.definitions import DEFINITIONS
from sessionsdb.worker import Turn

Sessions = Literal["tree", "below"]
"""The visibility of the session tools that are offered to a model."""


def checked_sessions(sessions: Any) -> None:
    """Raise ``InvalidArgument`` for a visibility that agents do not offer."""
    if sessions is not None and sessions not in get_args(Sessions):
        raise InvalidArgument(f'sessions must be "tree", "below" or None, not {sessions!r}')


def checked_approvals(
    approve: Collection[str], functions: Collection[str], sessions: Sessions | None
) -> frozenset[str]:
    """Return the names of the tools that need approval.

    Raises ``InvalidArgument`` for a name that no function and no session tool has: the tool that
    was meant would run without approval.
    """
    approved = checked_names(approve)
    if missing := approved - {*functions, *session_tool_names(sessions)}:
        raise InvalidArgument(
            f"approve names {min(missing)}, which is no function tool of the agent"
        )
    return approved


def checked_names(approve: Collection[str]) -> frozenset[str]:
    """Return the names of ``approve``. A text is none: it would be a list of letters."""
    if isinstance(approve, str) or not isinstance(approve, Collection):
        raise InvalidArgument(f"approve must be a list of names, not {approve!r}")
    if not all(isinstance(name, str) for name in approve):
        raise InvalidArgument(f"approve must be a list of names, not {approve!r}")
    return frozenset(approve)


def session_tool_names(sessions: Sessions | None) -> list[str]:
    """Return the names of the session tools that may be offered."""
    return [] if sessions is None else [one.name for one in DEFINITIONS]


class Definition(NamedTuple):
    """The definition of a tool, in no provider's form."""

    name: str
    description: str
    schema: dict[str, Any]
    """The JSON schema of the arguments, an object."""

    def as_openai(self) -> dict[str, Any]:
        """Return an item of ``tools`` for OpenAI's chat completions API."""
        function = {
            "name": self.name,
            "description": self.description,
            "parameters": self.schema,
        }
        return {"type": "function", "function": function}

    def as_anthropic(self) -> dict[str, Any]:
        """Return an item of ``tools`` for Anthropic's messages API."""
        return {"name": self.name, "description": self.description, "input_schema": self.schema}


class TurnTools:
    """The tools of one turn. A list of tools in the session's settings allows only its tools."""

    def __init__(
        self, turn: Turn, functions: Mapping[str, FunctionTool], sessions: Sessions | None
    ) -> None:
        allowed = turn.settings.tools
        self._turn = turn
        self._functions = {
            name: one for name, one in functions.items() if allowed is None or name in allowed
        }
        self.definitions = [
            Definition(name, one.description, one.schema()) for name, one in self._functions.items()
        ]
        self._sessions: SessionsTool | None = None
        self._session_tools: set[str] = set()
        if sessions is None:
            return
        self._sessions = SessionsTool(turn.broker, turn.session.id, visibility=sessions)
        for one in self._sessions.definitions():
            if (allowed is None or one.name in allowed) and one.name not in self._functions:
                self._session_tools.add(one.name)
                definition = Definition(one.name, one.description, one.input_schema)
                self.definitions.append(definition)

    async def run(self, call: ToolCall) -> str:
        """Run one tool, and return its result as text. Raises the error of a function.

        Followers of the session see a piece of the kind ``tool_call``.
        """
        self._turn.emit("tool_call", {"name": call.name[:200], "id": call.id[:200]})
        return await self.execute(call)

    async def execute(self, call: ToolCall) -> str:
        """Run one tool as ``run`` does, without a piece for the followers."""
        if (function := self._functions.get(call.name)) is not None:
            given = call.arguments
            return await function.run(given if isinstance(given, str) else json.dumps(given))
        if self._sessions is not None and call.name in self._session_tools:
            return (await self._sessions.execute(call.id, call.name, call.arguments)).content
        return f"Error: there is no tool {call.name}"

    async def result(self, call: ToolCall) -> ToolResult:
        """Run one tool, and return its result. An error of a function is a result too."""
        try:
            return ToolResult(await self.run(call))
        except Exception as error:
            return ToolResult(f"Error: {type(error).__name__}: {error}", is_error=True)

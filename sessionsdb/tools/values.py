"""What goes in and out of a tool call."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

SESSION_ID_KEY = "session_id"
"""Where in a context's metadata the host puts the id of the caller's session."""

Progress = Callable[[float, float, str], Awaitable[None]]
"""Told while a call waits: seconds waited, seconds it will wait at most, and what it waits for."""


@dataclass(frozen=True)
class ToolContext:
    """What the host knows about a call and the model has no say in."""

    metadata: Mapping[str, str] = field(default_factory=dict)
    """``metadata["session_id"]`` is the caller's session; it overrides the tool's own."""
    progress: Progress | None = None


@dataclass(frozen=True)
class ToolResult:
    """The answer to a call: always one, errors included."""

    tool_use_id: str
    content: str
    """For the model: JSON, or with ``is_error`` a sentence that says what to do."""
    is_error: bool = False
    structured: dict[str, Any] | None = None
    """The same as ``content``, as an object of the tool's output schema; ``None`` for an error."""

    def as_anthropic(self) -> dict[str, Any]:
        """The block that answers a ``tool_use`` block, for a message with the role ``user``."""
        block = {"type": "tool_result", "tool_use_id": self.tool_use_id, "content": self.content}
        return block | ({"is_error": True} if self.is_error else {})

    def as_openai(self) -> dict[str, Any]:
        """The message that answers one of ``tool_calls``."""
        return {"role": "tool", "tool_call_id": self.tool_use_id, "content": self.content}


@dataclass(frozen=True)
class ToolDefinition:
    """A tool as a model, a host and an MCP client are told of it."""

    name: str
    title: str
    description: str
    """What it does, and when a model should use it."""
    input_schema: dict[str, Any]
    output_schema: dict[str, Any]
    requires_approval: bool
    """Whether the host should ask before it runs this: it acts on other sessions."""
    read_only: bool
    destructive: bool
    idempotent: bool

    def as_anthropic(self) -> dict[str, Any]:
        """An item of ``tools`` for Anthropic's messages API."""
        return {
            "name": self.name,
            "description": self.description,
            "input_schema": self.input_schema,
        }

    def as_openai(self) -> dict[str, Any]:
        """An item of ``tools`` for OpenAI's chat completions API, and for those like it."""
        return {
            "type": "function",
            "function": {
                "name": self.name,
                "description": self.description,
                "parameters": self.input_schema,
            },
        }

"""The values that a host exchanges with the tools: context, result and definition."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

SESSION_ID_KEY = "session_id"
"""The key in the metadata of a context for the id of the caller's session."""

Progress = Callable[[float, float, str], Awaitable[None]]
"""A callback during a wait. It gets the seconds so far, the maximum of seconds, and a text."""


@dataclass(frozen=True)
class ToolContext:
    """The part of a call that the host decides, not the model."""

    metadata: Mapping[str, str] = field(default_factory=dict)
    """``metadata["session_id"]`` is the session of the caller. It overrides the one of the tool."""
    progress: Progress | None = None


@dataclass(frozen=True)
class ToolResult:
    """The answer to a call. An error is a result too."""

    tool_use_id: str
    content: str
    """The text for the model: JSON, or with ``is_error`` the error and the next step."""
    is_error: bool = False
    structured: dict[str, Any] | None = None
    """The object of ``content``, in the output schema of the tool. ``None`` for an error."""

    def as_anthropic(self) -> dict[str, Any]:
        """Return the block that answers a ``tool_use`` block, for a message with role ``user``."""
        block = {"type": "tool_result", "tool_use_id": self.tool_use_id, "content": self.content}
        return block | ({"is_error": True} if self.is_error else {})

    def as_openai(self) -> dict[str, Any]:
        """Return the message that answers an item of ``tool_calls``."""
        return {"role": "tool", "tool_call_id": self.tool_use_id, "content": self.content}


@dataclass(frozen=True)
class ToolDefinition:
    """The description of a tool for a model, a host and an MCP client."""

    name: str
    title: str
    description: str
    """The effect of the tool, and when a model should use it."""
    input_schema: dict[str, Any]
    output_schema: dict[str, Any]
    requires_approval: bool
    """Whether the host should ask a person first, because the tool acts on other sessions."""
    read_only: bool
    destructive: bool
    idempotent: bool

    def as_anthropic(self) -> dict[str, Any]:
        """Return an item of ``tools`` for Anthropic's messages API."""
        return {
            "name": self.name,
            "description": self.description,
            "input_schema": self.input_schema,
        }

    def as_openai(self) -> dict[str, Any]:
        """Return an item of ``tools`` for OpenAI's chat completions API and compatible ones."""
        return {
            "type": "function",
            "function": {
                "name": self.name,
                "description": self.description,
                "parameters": self.input_schema,
            },
        }

"""Session tools for agents: a model can list, read, message, spawn, await and end sessions."""

from sessionsdb.messages.attribution import attributed
from sessionsdb.tools.scope import NoCaller, Scope, Visibility
from sessionsdb.tools.tool import SessionsTool
from sessionsdb.tools.values import ToolContext, ToolDefinition, ToolResult

__all__ = [
    "NoCaller",
    "Scope",
    "SessionsTool",
    "ToolContext",
    "ToolDefinition",
    "ToolResult",
    "Visibility",
    "attributed",
]

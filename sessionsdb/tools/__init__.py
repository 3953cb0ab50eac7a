"""Sessions as tools for agents: a model lists, reads, sends to, spawns and waits for others."""

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

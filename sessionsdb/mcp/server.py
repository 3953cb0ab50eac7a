"""The MCP server: the session tools and the transcripts, for one caller or for many."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from mcp import MCPError
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp_types import (
    INVALID_PARAMS,
    CallToolRequestParams,
    CallToolResult,
    ListResourcesResult,
    ListResourceTemplatesResult,
    ListToolsResult,
    PaginatedRequestParams,
    ReadResourceRequestParams,
    ReadResourceResult,
    TextContent,
    TextResourceContents,
    Tool,
    ToolAnnotations,
)

from sessionsdb._version import __version__
from sessionsdb.database import SessionsDB
from sessionsdb.mcp import resources
from sessionsdb.mcp.callers import CHANNEL, Caller
from sessionsdb.tools import SessionsTool, ToolContext, ToolDefinition, ToolResult

log = logging.getLogger("sessionsdb.mcp")

MAX_WAIT_SECS = 45.0
"""The most a call waits. Common clients give up on a call after 60 seconds; then nobody would
be told the receipt."""

INSTRUCTIONS = (
    "Sessions are conversations of AI agents, kept in a database and worked on by a worker. List "
    "and read them, send messages to them, spawn new ones for work of their own, and wait for "
    "their answers. Each message you send or prompt you spawn with has a receipt, a session_id "
    "and a position: sessions_wait and sessions_status take it. A wait that runs out leaves the "
    "work going on: wait again."
)

Context = ServerRequestContext[Any, Any]


class SessionsServer:
    """What the server answers. ``caller_of`` tells from a request whose it is."""

    def __init__(
        self,
        db: SessionsDB,
        caller_of: Callable[[Context], Caller],
        *,
        max_wait_secs: float = MAX_WAIT_SECS,
    ) -> None:
        self._db = db
        self._caller_of = caller_of
        self._max_wait_secs = max_wait_secs

    def build(self) -> Server[Any]:
        """The SDK's server, ready to run over a transport."""
        return Server(
            "sessionsdb",
            version=__version__,
            title="sessionsdb",
            instructions=INSTRUCTIONS,
            on_list_tools=self.list_tools,
            on_call_tool=self.call_tool,
            on_list_resources=self.list_resources,
            on_list_resource_templates=self.list_resource_templates,
            on_read_resource=self.read_resource,
        )

    async def list_tools(
        self, context: Context, params: PaginatedRequestParams | None
    ) -> ListToolsResult:
        tool = self._tool(context)
        return ListToolsResult(tools=[as_mcp(one) for one in tool.definitions()])

    async def call_tool(self, context: Context, params: CallToolRequestParams) -> CallToolResult:
        result = await self._run(context, params.name, params.arguments or {})
        return CallToolResult(
            content=[TextContent(text=result.content)],
            structured_content=result.structured,
            is_error=result.is_error,
        )

    async def list_resources(
        self, context: Context, params: PaginatedRequestParams | None
    ) -> ListResourcesResult:
        """The transcripts of the sessions in scope, a page at a time."""
        arguments = {"cursor": params.cursor if params is not None else None}
        found = _or_raise(await self._run(context, "sessions_list", arguments))
        return ListResourcesResult(
            resources=[resources.listed(session) for session in found["sessions"]],
            next_cursor=found.get("next_cursor"),
        )

    async def list_resource_templates(
        self, context: Context, params: PaginatedRequestParams | None
    ) -> ListResourceTemplatesResult:
        return ListResourceTemplatesResult(resource_templates=[resources.TEMPLATE])

    async def read_resource(
        self, context: Context, params: ReadResourceRequestParams
    ) -> ReadResourceResult:
        """A transcript: the same, by the same rules, as ``sessions_history`` gives."""
        wanted = resources.parse(params.uri)
        if wanted is None:
            raise MCPError(INVALID_PARAMS, f"not a session's address: {params.uri[:200]}")
        result = await self._run(context, "sessions_history", wanted.arguments())
        _or_raise(result)
        return ReadResourceResult(
            contents=[
                TextResourceContents(
                    uri=params.uri, mime_type=resources.MIME_TYPE, text=result.content
                )
            ]
        )

    def _tool(self, context: Context) -> SessionsTool:
        caller = self._caller_of(context)
        db = self._db if caller.namespace is None else self._db.in_namespace(caller.namespace)
        return SessionsTool(
            db.broker,
            caller.session,
            visibility=caller.visibility,
            max_wait_secs=self._max_wait_secs,
        )

    async def _run(self, context: Context, name: str, arguments: dict[str, Any]) -> ToolResult:
        async def progress(waited: float, most: float, what: str) -> None:
            with suppress(Exception):  # a client that can't be told still gets its result
                await context.session.report_progress(waited, most, what)

        return await self._tool(context).execute(
            str(context.request_id), name, arguments, ToolContext(progress=progress)
        )


def as_mcp(definition: ToolDefinition) -> Tool:
    """A tool as MCP describes it."""
    return Tool(
        name=definition.name,
        title=definition.title,
        description=definition.description,
        input_schema=definition.input_schema,
        output_schema=definition.output_schema,
        annotations=ToolAnnotations(
            title=definition.title,
            read_only_hint=definition.read_only,
            destructive_hint=definition.destructive,
            idempotent_hint=definition.idempotent,
            open_world_hint=False,
        ),
    )


async def register(db: SessionsDB, caller: Caller) -> None:
    """Make the caller's session if there is none, so that it can spawn."""
    if caller.session is not None:
        home = db if caller.namespace is None else db.in_namespace(caller.namespace)
        await home.broker.register(
            caller.session, channel=CHANNEL, peer="mcp-client", exist_ok=True
        )


def _or_raise(result: ToolResult) -> dict[str, Any]:
    if result.structured is None:
        raise MCPError(INVALID_PARAMS, result.content)
    return result.structured

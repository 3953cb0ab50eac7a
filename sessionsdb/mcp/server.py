"""The MCP server of the session tools and the transcripts, for one caller or for many."""

from __future__ import annotations

import json
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
    ListPromptsResult,
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
from sessionsdb.tools.rendering import replace_surrogates

log = logging.getLogger("sessionsdb.mcp")

MAX_WAIT_SECS = 45.0
"""The maximum wait of a call. Common clients give up on a call after 60 seconds, and would not
get the receipt."""

INSTRUCTIONS = (
    "Sessions are conversations of AI agents. A database keeps them, and a worker runs their "
    "agents. You can list and read sessions, send messages to them, spawn new sessions for "
    "separate work, and wait for answers. Each message that you send and each prompt that you "
    "spawn a session with has a receipt: a session_id and a position. Pass receipts to "
    "sessions_wait and sessions_status. If the time of a wait ends, the work goes on: wait again."
)

Context = ServerRequestContext[Any, Any]


class SessionsServer:
    """The request handlers of the server. ``caller_of`` returns the caller of a request."""

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
        """Return the server of the SDK, ready to run over a transport."""
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
            on_list_prompts=self.list_prompts,
        )

    async def list_tools(
        self, context: Context, params: PaginatedRequestParams | None
    ) -> ListToolsResult:
        tool = self._tool(context)
        return ListToolsResult(tools=[as_mcp(one) for one in tool.definitions()])

    async def call_tool(self, context: Context, params: CallToolRequestParams) -> CallToolResult:
        result = await self._run_tool(context, params.name, params.arguments or {})
        return CallToolResult(
            content=[TextContent(text=result.content)],
            structured_content=_in_unicode(result.structured),
            is_error=result.is_error,
        )

    async def list_resources(
        self, context: Context, params: PaginatedRequestParams | None
    ) -> ListResourcesResult:
        """Return a page of the transcripts of the sessions in scope."""
        cursor = params.cursor if params is not None else None
        arguments = {"cursor": cursor, "newest_first": True}
        page = _structured(await self._run_tool(context, "sessions_list", arguments))
        return ListResourcesResult(
            resources=[resources.as_resource(session) for session in page["sessions"]],
            next_cursor=page.get("next_cursor"),
        )

    async def list_resource_templates(
        self, context: Context, params: PaginatedRequestParams | None
    ) -> ListResourceTemplatesResult:
        return ListResourceTemplatesResult(resource_templates=[resources.TEMPLATE])

    async def list_prompts(
        self, context: Context, params: PaginatedRequestParams | None
    ) -> ListPromptsResult:
        """Return no prompts: some clients ask, and take an unknown method for a broken server."""
        return ListPromptsResult(prompts=[])

    async def read_resource(
        self, context: Context, params: ReadResourceRequestParams
    ) -> ReadResourceResult:
        """Return a transcript, exactly as ``sessions_history`` does."""
        request = resources.parse_uri(params.uri)
        if request is None:
            raise MCPError(INVALID_PARAMS, f"not a session's address: {params.uri[:200]}")
        result = await self._run_tool(context, "sessions_history", request.arguments())
        _structured(result)  # raises for an error
        return ReadResourceResult(
            contents=[
                TextResourceContents(
                    uri=params.uri, mime_type=resources.MIME_TYPE, text=result.content
                )
            ]
        )

    def _tool(self, context: Context) -> SessionsTool:
        caller = self._caller_of(context)
        return SessionsTool(
            _handle_of(self._db, caller).broker,
            caller.session,
            visibility=caller.visibility,
            max_wait_secs=self._max_wait_secs,
            # The agent of the caller is the client, not a worker that takes messages.
            report_spawns=False,
        )

    async def _run_tool(self, context: Context, name: str, arguments: dict[str, Any]) -> ToolResult:
        async def progress(waited: float, total: float, text: str) -> None:
            with suppress(Exception):  # a client without progress reports still gets its result
                await context.session.report_progress(waited, total, text)

        wants_progress = "progress_token" in (context.meta or {})
        return await self._tool(context).execute(
            str(context.request_id),
            name,
            arguments,
            ToolContext(progress=progress if wants_progress else None),
        )


def as_mcp(definition: ToolDefinition) -> Tool:
    """Return the definition of a tool in the form of MCP."""
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


async def register_caller(db: SessionsDB, caller: Caller) -> None:
    """Create the session of the caller if it does not exist, so that it can spawn children."""
    if caller.session is not None:
        handle = _handle_of(db, caller)
        await handle.broker.register(
            caller.session, channel=CHANNEL, peer="mcp-client", exist_ok=True
        )


def _handle_of(db: SessionsDB, caller: Caller) -> SessionsDB:
    return db if caller.namespace is None else db.in_namespace(caller.namespace)


def _in_unicode(structured: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return values without lone surrogates, which UTF-8 has no form for. The text escapes them."""
    text = json.dumps(structured, ensure_ascii=False)
    sent = replace_surrogates(text)
    if sent == text:
        return structured
    replaced: dict[str, Any] = json.loads(sent)
    return replaced


def _structured(result: ToolResult) -> dict[str, Any]:
    if result.structured is None:
        raise MCPError(INVALID_PARAMS, result.content)
    return result.structured

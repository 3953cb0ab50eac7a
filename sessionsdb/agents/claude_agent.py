"""An agent of the Claude Agent SDK as a handler. Extra ``claude-agent``.

The SDK runs Claude Code, a program that comes with it. Each turn starts the program once.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection
from dataclasses import replace
from typing import Any

from claude_agent_sdk import (
    AssistantMessage,
    ClaudeAgentOptions,
    HookMatcher,
    ResultMessage,
    SdkMcpTool,
    SystemMessage,
    create_sdk_mcp_server,
    query,
)
from claude_agent_sdk.types import StreamEvent

from sessionsdb import validation
from sessionsdb.agents.claude_agent_transcript import (
    TurnStore,
    deferred_calls,
    native_id,
    new_messages,
    remembered,
)
from sessionsdb.agents.turn_tools import (
    Definition,
    Sessions,
    TurnTools,
    checked_names,
    checked_sessions,
    session_tool_names,
)
from sessionsdb.approvals import EXPIRED, WITHDRAWN, ToolCall, describe_calls, says_yes
from sessionsdb.errors import InvalidArgument, SessionsDBError
from sessionsdb.types import Question
from sessionsdb.worker import Reply, Turn
from sessionsdb.worker.handler import Handler
from sessionsdb.worker.turn_entries import newest_entries

_SERVER = "sessionsdb"
"""The name of the MCP server with the session tools."""

_OWN = ("session_store", "resume", "session_id", "resume_session_at")
"""Options that this handler sets itself."""

_BEGIN_SECONDS = 60
"""How long the program may take to go on with a call that was approved."""


class ClaudeRunFailed(SessionsDBError):
    """The program ended a run with an error. The attempt of the turn fails, and is tried again."""


def agent(
    options: ClaudeAgentOptions | None = None,
    *,
    sessions: Sessions | None = None,
    approve: Collection[str] = (),
    max_steps: int = 20,
    memory: int = 2000,
) -> Handler:
    """Return a handler that runs Claude Code with these options.

    - ``options``: the SDK's own, without a session: the transcript is the memory. Their tools,
      hooks and permissions hold.
    - ``sessions``: offer the tools of ``SessionsTool`` with this visibility, as an MCP server.
    - ``approve``: the names of the tools that a person has to approve, such as ``Bash``, or ``add``
      for ``mcp__numbers__add``. The turn asks a question and ends. The turn of the answer goes on
      with the call. Several calls at once are denied, and Claude is told to make one. A turn fails
      if the program has no tool of such a name.
    - ``max_steps``: where the options have no ``max_turns``. The reply then has what was done.
    - ``memory``: the newest messages of the transcript that Claude sees.

    The session's model and system prompt take the place of the options'. A list of tools in
    the settings denies all other tools. The reply has the entries of the turn, in the form of the
    program's session files. They are committed with the turn. The text is streamed to followers of
    the session. Tokens are counted when a run ends.

    A turn that is cancelled ends the program, and writes nothing. What the program has done to
    files stays done. Raises ``InvalidArgument``.
    """
    options = options or ClaudeAgentOptions()
    validation.integer(max_steps, "max_steps", minimum=1)
    validation.integer(memory, "memory", minimum=0)
    if options.continue_conversation or any(getattr(options, name) for name in _OWN):
        raise InvalidArgument(
            f"the options must name no session ({', '.join(_OWN)}): the transcript is the memory"
        )
    checked_sessions(sessions)
    approved = checked_names(approve)
    unknown = approved - {*session_tool_names(sessions), *options.disallowed_tools}
    if approved and options.permission_mode == "bypassPermissions":
        raise InvalidArgument("with bypassPermissions no tool can wait for an approval")

    async def claude_agent(turn: Turn) -> Reply:
        before = remembered(turn.session, await newest_entries(turn, memory))
        store = TurnStore(before)
        waiting = deferred_calls(before)
        gate = _Gate(turn, approved, waiting)
        run = _Run(turn)
        given = replace(
            _with_tools(_with_settings(options, turn), turn, sessions, gate, approved),
            session_store=store,
            resume=native_id(turn.session) if before else None,
            max_turns=options.max_turns or max_steps,
            include_partial_messages=True,
            # The text of another agent must not make the program read files or run commands.
            verbatim_prompts=options.verbatim_prompts or any(turn.senders),
        )
        # The program goes on with a call that waits by itself. A withdrawn question has a message.
        is_answer = turn.answer is not None and turn.answer.status != "withdrawn"
        asked = None if is_answer and waiting else turn.prompt
        prompt = run.until_result(gate.is_in_use) if asked is None else asked
        try:
            async with contextlib.aclosing(query(prompt=prompt, options=given)) as messages:
                async for message in messages:
                    run.see(message)
                    if isinstance(message, SystemMessage) and message.subtype == "init":
                        gate.check_names(unknown, message.data)
        except Exception:
            # The program ends with an error after some results, which tell the same.
            if run.result is None or not run.result.is_error:
                raise
        finally:
            run.has_result.set()
        if gate.fault is not None:
            raise gate.fault
        run.check()
        return Reply(
            new_messages(store.appended, asked),
            run.model,
            run.input_tokens,
            run.output_tokens,
            run.question(),
        )

    return claude_agent


# ---- options -------------------------------------------------------------------------------------


def _with_settings(options: ClaudeAgentOptions, turn: Turn) -> ClaudeAgentOptions:
    settings = turn.settings
    if settings.model is not None:
        options = replace(options, model=settings.model)
    if settings.system is not None:
        # Without a snapshot: the program would go on with the prompt of the session's first turn.
        prompt: Any = {"type": "custom", "prompt": settings.system, "snapshot": False}
        options = replace(options, system_prompt=prompt)
    return options


def _with_tools(
    options: ClaudeAgentOptions,
    turn: Turn,
    sessions: Sessions | None,
    gate: _Gate,
    approve: Collection[str],
) -> ClaudeAgentOptions:
    """Return the options with the session tools, and with the hook that guards all tools."""
    servers = options.mcp_servers
    allowed = [name for name in options.allowed_tools if not _is_named(name, approve)]
    if sessions is not None:
        if not isinstance(servers, dict):
            raise InvalidArgument("for the session tools mcp_servers must be a dict")
        tools = TurnTools(turn, {}, sessions)
        offered = [_session_tool(one, tools) for one in tools.definitions]
        servers = {**servers, _SERVER: create_sdk_mcp_server(_SERVER, tools=offered)}
        names = [f"mcp__{_SERVER}__{one.name}" for one in offered]
        allowed += [name for name in names if not _is_named(name, approve)]
    hooks = dict(options.hooks or {})
    # First, so that no other hook lets a call pass.
    hooks["PreToolUse"] = [HookMatcher(hooks=[gate.before_tool]), *hooks.get("PreToolUse", [])]
    return replace(options, mcp_servers=servers, allowed_tools=allowed, hooks=hooks)


def _session_tool(definition: Definition, tools: TurnTools) -> SdkMcpTool[Any]:
    async def run(arguments: dict[str, Any]) -> dict[str, Any]:
        call = ToolCall("", definition.name, arguments)
        text = await tools.execute(call)
        return {"content": [{"type": "text", "text": text}]}

    return SdkMcpTool(definition.name, definition.description, definition.schema, run)


def _is_named(name: str, names: Collection[str]) -> bool:
    """Whether a list has a tool, by its whole name or by its name at its MCP server."""
    return name in names or (name.startswith("mcp__") and name.split("__", 2)[-1] in names)


class _Gate:
    """Decides about each call of a tool, before the program runs it."""

    def __init__(self, turn: Turn, approve: Collection[str], waiting: Collection[str]) -> None:
        self._turn = turn
        self._approve = approve
        self._waiting = waiting
        self.is_in_use = asyncio.Event()
        """Set when the program has asked about a call."""
        self.fault: InvalidArgument | None = None
        """Why the turn fails. No tool runs then."""

    def check_names(self, names: Collection[str], begun: dict[str, Any]) -> None:
        """Note a fault if one of these names of ``approve`` is no tool of the program.

        The program tells its tools before it calls the model. It does not know those of a server
        that is not connected yet.
        """
        if any(one.get("status") != "connected" for one in begun.get("mcp_servers") or ()):
            return
        tools = begun.get("tools") or ()
        for name in names:
            if not any(_is_named(tool, (name,)) for tool in tools):
                text = f"approve names {name}, which is no tool of the program"
                self.fault = InvalidArgument(text)

    async def before_tool(self, given: Any, tool_use_id: str | None, _context: Any) -> Any:
        self.is_in_use.set()
        if self.fault is not None:
            # A run that is only stopped has run the tool of this call.
            return {"continue_": False, **_decision("deny", str(self.fault))}
        name, allowed = str(given["tool_name"]), self._turn.settings.tools
        if allowed is not None and not _is_named(name, allowed):
            return _decision("deny", f"The settings of this session do not allow {name}.")
        call = ToolCall(str(tool_use_id or given.get("tool_use_id")), name, given.get("tool_input"))
        if call.id in self._waiting:
            return self._answered(call)
        return _decision("defer") if _is_named(name, self._approve) else {}

    def _answered(self, call: ToolCall) -> Any:
        answer = self._turn.answer
        if answer is None or answer.status == "withdrawn":
            return _decision("deny", WITHDRAWN)
        if answer.status == "expired":
            return _decision("deny", EXPIRED)
        if says_yes(answer, call):
            return _decision("allow")
        text = "" if answer.message is None else answer.message.content
        return _decision("deny", f"Not run: a person denied it, with the words: {text}")


def _decision(decision: str, reason: str | None = None) -> dict[str, Any]:
    output = {"hookEventName": "PreToolUse", "permissionDecision": decision}
    if reason is not None:
        output["permissionDecisionReason"] = reason
    return {"hookSpecificOutput": output}


# ---- messages ------------------------------------------------------------------------------------


class _Run:
    """The messages of the program in one turn."""

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        self.has_result = asyncio.Event()
        self.result: ResultMessage | None = None
        self.model: str | None = None
        self.input_tokens = self.output_tokens = 0

    async def until_result(self, begun: asyncio.Event) -> AsyncIterator[dict[str, Any]]:
        """Yield no prompt, but keep the input of the program open: its hooks are answered there.

        ``begun`` is set when the program goes on. If it does not, the input is closed, and so the
        program ends without a result.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_BEGIN_SECONDS):
                await begun.wait()
            await self.has_result.wait()
        nothing: tuple[dict[str, Any], ...] = ()
        for message in nothing:
            yield message

    def see(self, message: Any) -> None:
        if isinstance(message, StreamEvent) and message.parent_tool_use_id is None:
            self._see_event(message.event)
        elif isinstance(message, AssistantMessage) and message.parent_tool_use_id is None:
            self.model = message.model or self.model
        elif isinstance(message, ResultMessage):
            self.result = message
            self.has_result.set()
            self._count(message.usage or {})

    def check(self) -> None:
        """Raise ``ClaudeRunFailed`` if the last run has failed."""
        result = self.result
        if result is None:
            raise ClaudeRunFailed("the program ended without a result")
        if result.is_error and result.subtype != "error_max_turns":
            details = result.result or "; ".join(result.errors or ()) or result.subtype
            raise ClaudeRunFailed(f"the program ended a run with an error: {details}")

    def question(self) -> Question | None:
        """Return the question about the call that the program has deferred."""
        call = None if self.result is None else self.result.deferred_tool_use
        if call is None:
            return None
        asked = ToolCall(call.id, call.name, call.input)
        data: Any = {"tool_calls": [{**asked._asdict(), "requires_approval": True}]}
        return Question(prompt=describe_calls([asked]), data=data)

    def _see_event(self, event: dict[str, Any]) -> None:
        kind = event.get("type")
        if kind == "content_block_delta" and event["delta"].get("type") == "text_delta":
            self._turn.stream(event["delta"]["text"])
        elif kind == "content_block_start" and event["content_block"].get("type") == "tool_use":
            block = event["content_block"]
            named = {"name": str(block["name"])[:200], "id": str(block["id"])[:200]}
            self._turn.emit("tool_call", named)

    def _count(self, usage: dict[str, Any]) -> None:
        names = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
        read = sum(usage.get(name) or 0 for name in names)
        written = usage.get("output_tokens") or 0
        self.input_tokens += read
        self.output_tokens += written
        # Counted at once: an attempt that fails later has used them too.
        self._turn.usage(input_tokens=read, output_tokens=written)

"""The text of content: a string, a block, or a list of blocks, in the forms of all providers.

The type of a block is the value of its key ``type`` (OpenAI, Anthropic, LangChain, Vercel), or its
key itself (Gemini, Bedrock). A block of an unknown type is shown by its text, or by its type, or as
JSON: it is never left out. Reasoning is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sessionsdb.messages import marks
from sessionsdb.messages.reasoning import is_reasoning

MAX_RENDERED_DEPTH = 8
"""The depth of nested tool results that are rendered. Deeper ones are shown as JSON."""

Block = Mapping[str, Any]

_RESULTS = ("_output", "tool_result", "tool-result", "function_result")
_CALLS = ("_call", "tool_use", "tool-call")
_OTHER_CALLS = ("mcp_approval_request", "program")
_CALL_SUFFIX = "_call"
_ARGUMENTS = (
    *("input", "arguments", "args", "action", "actions", "operation", "queries", "code", "command"),
)
_RESULT = ("content", "output", "result", "tools")
_UNNAMED = ("step-start", "cache-point", "cachePoint")
"""Parts that say nothing to a reader."""


def is_call(kind: str) -> bool:
    """Return whether a block of this type is the call of a tool."""
    return kind.endswith(_CALLS) or kind in _OTHER_CALLS


def is_result(kind: str) -> bool:
    """Return whether a block of this type is the result of a tool."""
    return kind.endswith(_RESULTS)


def content_text(content: Any, depth: int = 0) -> str:
    """Return the text of a string, a block, or a list of both, joined with newlines."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, dict) and is_reasoning(content):
        return ""
    if depth >= MAX_RENDERED_DEPTH:
        return marks.shown_json(content)
    if isinstance(content, (list, tuple)):
        return "\n".join(text for block in content if (text := content_text(block, depth + 1)))
    if isinstance(content, dict):
        return block_text(content, depth)
    return marks.shown_json(content)


def block_text(block: Block, depth: int = 0) -> str:
    """Return the text of one block."""
    kind = block.get("type")
    if not isinstance(kind, str):
        return _part_text(block, depth)
    if (render := _RENDERERS.get(kind)) is not None:
        return render(block, depth)
    if kind.startswith("tool-") and kind not in ("tool-call", "tool-result"):
        return _vercel_tool(block, kind.removeprefix("tool-"), depth)
    if is_call(kind):
        return _call_block(block, kind, depth)
    if is_result(kind):
        return _result_block(block, depth)
    if (medium := marks.medium_of_type(kind)) is not None:
        return _medium_block(block, kind, medium)
    if "stdout" in block or "stderr" in block:
        return _console_text(block)
    text = block.get("text", block.get(kind))  # {"type": "refusal", "refusal": "…"}
    if isinstance(text, str):
        return text
    if "content" in block:
        return content_text(block["content"], depth + 1)
    return _named(block, kind)


def call_text(call: Block) -> str:
    """Return the mark of a call that has a name and arguments, in any spelling."""
    name = next((call[key] for key in ("name", "toolName", "tool_name") if key in call), None)
    arguments = next((call[key] for key in _ARGUMENTS if key in call), None)
    return marks.tool_call(name, arguments)


def has_failed(block: Block) -> bool:
    """Return whether the result of a tool is an error."""
    return (
        block.get("is_error") is True
        or block.get("isError") is True
        or block.get("status") in ("error", "failed")
        or isinstance(block.get("exception"), str)
    )


def _call_block(block: Block, kind: str, depth: int) -> str:
    given = block
    if not block.keys() & {"name", "toolName", "tool_name"}:
        given = {**block, "name": kind.removesuffix(_CALL_SUFFIX)}
    texts = [call_text(given)]
    error = block.get("error")
    if kind == "image_generation_call" and block.get("result") is not None:
        texts.append("[image]")
    elif error is not None and not kind.startswith("invalid"):
        texts.append(marks.tool_result(content_text(error, depth + 1), failed=True))
    elif block.get("output") is not None:  # a call that the server made, with its result
        texts.append(marks.tool_result(content_text(block["output"], depth + 1)))
    elif isinstance(outputs := block.get("outputs"), list) and outputs:
        texts.append(marks.tool_result(content_text(outputs, depth + 1)))
    return "\n".join(texts)


def _result_block(block: Block, depth: int) -> str:
    content = next((block[key] for key in _RESULT if key in block), None)
    failed = has_failed(block)
    if isinstance(content, dict):
        kind = content.get("type")
        if isinstance(kind, str):
            failed = failed or kind.endswith(("_error", "error-text", "error-json"))
            if "value" in content and kind in _VALUES:  # Vercel
                content = content["value"]
    return marks.tool_result(_result_text(content, depth), failed=failed)


_VALUES = ("text", "json", "error-text", "error-json", "content", "execution-denied")


def _result_text(content: Any, depth: int) -> str:
    """Return the text of a tool's result. A result that is an object is shown as JSON."""
    return content_text(content, depth + 1)


def _vercel_tool(block: Block, name: str, depth: int) -> str:
    """Render a tool of Vercel's UI messages: its call, and its result when there is one."""
    texts = [marks.tool_call(name, block.get("input", block.get("args", block.get("rawInput"))))]
    error = block.get("errorText")
    if isinstance(error, str):
        texts.append(marks.tool_result(error, failed=True))
    elif block.get("state") == "output-denied":
        texts.append(marks.tool_result("denied", failed=True))
    elif "output" in block or "result" in block:
        output = block.get("output", block.get("result"))
        texts.append(marks.tool_result(_result_text(output, depth)))
    return "\n".join(texts)


def _vercel_dynamic_tool(block: Block, depth: int) -> str:
    name = block.get("toolName")
    return _vercel_tool(block, name if isinstance(name, str) else "tool", depth)


def _vercel_invocation(block: Block, depth: int) -> str:
    """Render a tool of the UI messages before version 5."""
    invocation = block.get("toolInvocation")
    return (
        _vercel_dynamic_tool(invocation, depth)
        if isinstance(invocation, dict)
        else _named(block, "tool-invocation")
    )


def _medium_block(block: Block, kind: str, medium: str) -> str:
    for holder in (block, block.get(kind)):
        transcript = holder.get("transcript") if isinstance(holder, dict) else None
        if isinstance(transcript, str) and transcript:
            return f"[{medium}: {transcript}]"
    return marks.medium(block, medium)


def _search_result(block: Block, depth: int) -> str:
    """Render a result of a search: its title, its place, and its text."""
    texts = [block.get(key) for key in ("title", "url", "source")]
    shown = " ".join(text for text in texts if isinstance(text, str) and text)
    content = content_text(block.get("content"), depth + 1)
    return "\n".join(text for text in (shown, content) if text) or "[search_result]"


def _error_block(block: Block, _depth: int) -> str:
    for key in ("error_code", "error", "message"):
        if isinstance(text := block.get(key), str):
            return text
    return marks.shown_json(block)


def _summary(block: Block, depth: int) -> str:
    """Render a block that stands for older messages. Encrypted text is not shown."""
    text = content_text(block.get("content", block.get("summary")), depth + 1)
    return f"[summary: {text}]" if text else "[summary]"


def _approval(block: Block, _depth: int) -> str:
    reason = block.get("reason")
    verdict = "approved" if block.get("approve", block.get("approved")) is True else "denied"
    return f"[{verdict}: {reason}]" if isinstance(reason, str) and reason else f"[{verdict}]"


def _nothing(_block: Block, _depth: int) -> str:
    return ""


def _program_output(block: Block, depth: int) -> str:
    return marks.tool_result(_result_text(block.get("result"), depth))


def _function_result(block: Block, depth: int) -> str:
    """Render the result of a tool of Microsoft Agent Framework. A failed one may have no text."""
    shown = _result_text(block.get("result") or block.get("exception"), depth)
    return marks.tool_result(shown, failed=has_failed(block))


def _source_url(block: Block, depth: int) -> str:
    return f"[source: {_search_result({k: block.get(k) for k in ('title', 'url')}, depth)}]"


def _logs(block: Block, _depth: int) -> str:
    return logs if isinstance(logs := block.get("logs"), str) else "[logs]"


_RENDERERS: dict[str, Callable[[Block, int], str]] = {
    "dynamic-tool": _vercel_dynamic_tool,
    "tool-invocation": _vercel_invocation,
    "search_result": _search_result,
    "web_search_result": _search_result,
    "web_search_tool_result_error": _error_block,
    "code_execution_tool_result_error": _error_block,
    "bash_code_execution_tool_result_error": _error_block,
    "text_editor_code_execution_tool_result_error": _error_block,
    "tool_search_tool_result_error": _error_block,
    "web_fetch_tool_result_error": _error_block,
    "bash_code_execution_output": lambda block, _depth: marks.medium(block),
    "code_execution_output": lambda block, _depth: marks.medium(block),
    "program_output": _program_output,
    "compaction": _summary,
    "compaction_summary": _summary,
    "mcp_approval_response": _approval,
    "tool-approval-response": _approval,
    "source-url": _source_url,
    "logs": _logs,
    "uri": lambda block, _depth: marks.medium(block),
    "data": lambda block, _depth: marks.medium(block),
    "function_result": _function_result,
    **dict.fromkeys(_UNNAMED, _nothing),
}


def _named(block: Block, kind: str) -> str:
    """Return the mark of a block of a type without a text."""
    for key in ("name", "title", "tool_name", "toolName"):
        if isinstance(name := block.get(key), str) and name:
            return f"[{kind}: {name[: marks.MAX_NAME]}]"
    return f"[{kind}]"


# ---- parts whose key is their type: Gemini and Bedrock -------------------------------------------

_PART_CALLS = (
    *("functionCall", "function_call", "toolUse", "serverToolUse", "toolCall", "tool_call"),
)
_PART_RESULTS = (
    *("functionResponse", "function_response", "toolResult", "toolResponse", "tool_response"),
)
_PART_FILES = ("inlineData", "inline_data", "fileData", "file_data")
_PART_MEDIA = ("image", "audio", "video", "document")


def _part_text(part: Block, depth: int) -> str:
    if isinstance(text := part.get("text"), str):
        return text
    for key in _PART_CALLS:
        if isinstance(call := part.get(key), dict):
            return _keyed_call(call)
    for key in _PART_RESULTS:
        if isinstance(result := part.get(key), dict):
            return _keyed_result(result, depth)
    if any(isinstance(part.get(key), dict) for key in _PART_FILES):
        return marks.medium(part)
    if (code := _code_text(part, depth)) is not None:
        return code
    if isinstance(parts := part.get("parts"), list):
        return content_text(parts, depth + 1)
    if len(part) == 1:
        return _lone_part(*next(iter(part.items())), depth)
    if isinstance(part.get("stdout"), str):
        return _console_text(part)
    return marks.shown_json(part)


def _code_text(part: Block, depth: int) -> str | None:
    """Render code that Gemini ran, or its result. ``None`` for any other part."""
    for key in ("executableCode", "executable_code"):
        if isinstance(code := part.get(key), dict):
            return marks.tool_call("code_execution", code)
    for key in ("codeExecutionResult", "code_execution_result"):
        if isinstance(result := part.get(key), dict):
            failed = result.get("outcome") not in ("OUTCOME_OK", "ok", None)
            output = content_text(result.get("output"), depth + 1)
            return marks.tool_result(output, failed=failed)
    return None


def _lone_part(key: str, value: Any, depth: int) -> str:
    """Render a part of Bedrock that is no text and no tool."""
    if key in _UNNAMED:
        return ""
    if isinstance(value, dict):
        if key in _PART_MEDIA and value.keys() & {"source", "format"}:
            return marks.medium(value, key)
        if key == "citationsContent":
            return content_text(value.get("content"), depth + 1)
        if key == "searchResult":
            return _search_result(value, depth)
        if key == "guardContent":
            return content_text(value.get("text", value), depth + 1)
    return marks.shown_json(value if key == "json" else {key: value})


def _keyed_call(call: Block) -> str:
    if "name" in call or "toolType" not in call:
        return call_text(call)
    return call_text({**call, "name": call["toolType"]})


def _keyed_result(result: Block, depth: int) -> str:
    failed = has_failed(result)
    content = result.get("content", result.get("response", result.get("output")))
    parts = result.get("parts")
    if isinstance(content, dict) and len(content) == 1:
        # The SDKs of Gemini put a result that is no object under one of these keys.
        [(key, value)] = content.items()
        if key in ("result", "output", "error") and isinstance(value, str):
            content, failed = value, failed or key == "error"
    texts = [content_text(content, depth + 1)]
    if isinstance(parts, list):
        texts.append(content_text(parts, depth + 1))
    return marks.tool_result("\n".join(text for text in texts if text), failed=failed)


def _console_text(block: Block) -> str:
    texts = [block.get(key) for key in ("stdout", "stderr")]
    return "\n".join(text for text in texts if isinstance(text, str) and text)

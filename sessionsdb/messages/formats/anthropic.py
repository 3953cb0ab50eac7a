"""Messages of Anthropic's API: ``{"role", "content": TEXT or [{"type": "tool_use", …}, …]}``.

The blocks are shown by ``blocks.py``.
"""

from __future__ import annotations

from sessionsdb.messages.formats.form import Form, Record

_BLOCKS = frozenset(
    (
        *("tool_use", "tool_result", "thinking", "redacted_thinking", "server_tool_use"),
        *("mcp_tool_use", "mcp_tool_result", "search_result", "container_upload"),
    )
)


def recognise(record: Record) -> bool:
    content = record.get("content")
    return (
        isinstance(record.get("role"), str)
        and isinstance(content, list)
        and any(
            isinstance(block, dict)
            and isinstance(kind := block.get("type"), str)
            and (kind in _BLOCKS or kind.endswith("_tool_result") or "source" in block)
            for block in content
        )
    )


FORM = Form("anthropic", "Anthropic", recognise)

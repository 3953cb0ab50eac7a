"""Items of OpenAI's Responses API: messages, ``function_call``, ``function_call_output``, ….

The items are shown as messages and blocks are: see ``message_text.py`` and ``blocks.py``.
"""

from __future__ import annotations

from sessionsdb.messages.blocks import is_call
from sessionsdb.messages.formats.form import Form, Record

_TYPES = frozenset(
    (
        *("reasoning", "item_reference", "compaction", "mcp_list_tools", "mcp_approval_response"),
        *("program", "program_output"),
    )
)
_BLOCKS = ("input_text", "output_text", "input_image", "input_file")


def recognise(record: Record) -> bool:
    kind, content = record.get("type"), record.get("content")
    if isinstance(kind, str) and kind != "message":
        return "role" not in record and (
            kind in _TYPES or is_call(kind) or kind.endswith("_call_output")
        )
    return isinstance(record.get("role"), str) and (
        kind == "message"
        or (
            isinstance(content, list)
            and any(isinstance(one, dict) and one.get("type") in _BLOCKS for one in content)
        )
    )


FORM = Form(
    "openai-responses",
    "OpenAI Responses",
    recognise,
    aliases=("responses",),
    joined={"input": "user", "output": "assistant"},
    lists=("input", "items", "output", "data", "messages"),
    ids=("conversation_id", "session_id", "id"),
)

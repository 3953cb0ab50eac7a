"""Messages of Amazon Bedrock's Converse API.

A message is ``{"role", "content": [{"text": …}, {"toolUse": {…}}, …]}``: the key of a block is its
type. The blocks are shown by ``blocks.py``.
"""

from __future__ import annotations

from sessionsdb.messages.formats.form import Form, Record

_BLOCKS = frozenset(
    (
        *("text", "image", "document", "video", "audio", "toolUse", "toolResult", "guardContent"),
        *("cachePoint", "reasoningContent", "citationsContent", "searchResult"),
        *("toolAddition", "toolRemoval"),
    )
)


def recognise(record: Record) -> bool:
    content = record.get("content")
    return (
        isinstance(record.get("role"), str)
        and isinstance(content, list)
        and bool(content)
        and all(
            isinstance(block, dict) and len(block) == 1 and block.keys() <= _BLOCKS
            for block in content
        )
    )


FORM = Form(
    "bedrock",
    "Amazon Bedrock (Converse)",
    recognise,
    aliases=("converse", "bedrock-converse"),
    ids=("sessionId", "session_id"),
)

"""Messages of OpenAI's Chat Completions API: ``{"role", "content", "tool_calls"}``.

Most other providers and many data sets have this form too.
"""

from __future__ import annotations

from sessionsdb.messages.formats.form import Form, Record


def recognise(record: Record) -> bool:
    return isinstance(record.get("role"), str) and bool(
        record.keys() & {"content", "tool_calls", "function_call", "refusal", "audio"}
    )


FORM = Form(
    "openai-chat",
    "OpenAI Chat Completions",
    recognise,
    aliases=("openai", "chat", "chat-completions"),
)

"""The messages of Microsoft Agent Framework: ``Message.to_dict``.

A message is ``{"type": "message", "role": …, "contents": [{"type": …}, …]}``. Its file providers
write one in each line.
"""

from __future__ import annotations

from sessionsdb.messages.formats.form import Form, Record


def recognise(record: Record) -> bool:
    return (
        record.get("type") in ("message", "chat_message")
        and isinstance(record.get("role"), str)
        and isinstance(record.get("contents"), list)
    )


FORM = Form("agent-framework", "Microsoft Agent Framework", recognise)

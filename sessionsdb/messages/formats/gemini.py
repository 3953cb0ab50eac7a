"""Contents of the Gemini API: ``{"role": "user" | "model", "parts": [{"text": …}, …]}``.

The parts are shown by ``blocks.py``.
"""

from __future__ import annotations

from sessionsdb.messages.formats.form import Form, Record


def recognise(record: Record) -> bool:
    parts = record.get("parts")
    return (
        isinstance(parts, list)
        and "kind" not in record
        and all(isinstance(part, dict) and "type" not in part for part in parts)
    )


FORM = Form("gemini", "Gemini", recognise, lists=("contents", "history", "messages"))

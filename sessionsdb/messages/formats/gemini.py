"""Contents of the Gemini API: ``{"role": "user" | "model", "parts": [{"text": …}, …]}``.

The parts are shown by ``blocks.py``.
"""

from __future__ import annotations

from typing import Any

from sessionsdb.messages.formats.form import Form, Record


def recognise(record: Record) -> bool:
    parts = record.get("parts")
    return (
        isinstance(parts, list)
        and "kind" not in record
        and all(isinstance(part, dict) and "type" not in part for part in parts)
    )


def _system(prompt: Any) -> Record:
    parts = prompt if isinstance(prompt, list) else [prompt]
    return {
        "role": "system",
        "parts": [{"text": part} if isinstance(part, str) else part for part in parts],
    }


FORM = Form(
    "gemini",
    "Gemini",
    recognise,
    system=_system,
    lists=("contents", "history", "messages"),
)

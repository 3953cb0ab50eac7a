"""All foreign forms, and the search for the form of a record or of a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sessionsdb.messages.formats import (
    adk,
    agent_framework,
    anthropic,
    atif,
    bedrock,
    claude_code,
    codex,
    gemini,
    langchain,
    openai_chat,
    openai_responses,
    openhands,
    pydantic_ai,
    sharegpt,
    swe_agent,
    vercel,
)
from sessionsdb.messages.formats.form import Document, Form
from sessionsdb.messages.formats.reading import is_in_form

FORMS: tuple[Form, ...] = (
    # First the forms whose records hold a message. Then those of messages, the most special first:
    # a message of a role and a text is in all of them.
    claude_code.FORM,
    codex.FORM,
    pydantic_ai.FORM,
    langchain.FORM,
    atif.FORM,
    openhands.FORM,
    adk.FORM,
    agent_framework.FORM,
    swe_agent.FORM,
    sharegpt.FORM,
    vercel.FORM,
    bedrock.FORM,
    gemini.FORM,
    anthropic.FORM,
    openai_responses.FORM,
    openai_chat.FORM,
)
"""In the order in which they are tried."""

_BY_KEY: dict[str, tuple[Form, ...]] = {
    key: tuple(form for form in FORMS if key in form.keys) for form in FORMS for key in form.keys
}


def form_of(record: Mapping[str, Any]) -> Form | None:
    """Return the form of a record that holds a message.

    ``None``: the record is a message itself, or of no known form.
    """
    if isinstance(record.get("role"), str):
        return None
    for key in record:
        for form in _BY_KEY.get(key, ()):
            if form.recognise(record):
                return form
    return None


def form_named(name: str) -> Form | None:
    """Return the form with this name or alias, in any case, with ``_`` or ``-``."""
    plain = name.lower().replace("_", "-")
    return next((form for form in FORMS if plain in (form.name, *form.aliases)), None)


def form_of_document(document: Document) -> Form | None:
    """Return the form of a file. ``None``: it is of no known form."""
    return next((form for form in FORMS if is_in_form(form, document)), None)

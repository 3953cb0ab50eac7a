"""The role and the text of any message, for ``history`` and for SQL.

The reasoning of a model is in no text: it is not meant for the reader of an answer. A message that
is nothing else has an empty text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sessionsdb.messages.blocks import MAX_RENDERED_DEPTH
from sessionsdb.messages.message_text import message_role, message_text

if TYPE_CHECKING:
    from sessionsdb.messages.formats.form import Form

__all__ = ["MAX_RENDERED_DEPTH", "render_role", "render_text"]


def render_role(message: Mapping[str, Any], *, unsaid: str = "assistant") -> str:
    """Return the role of a message, derived from its form if it names none.

    ``unsaid`` is the role of a message that has neither a role nor a form that tells one.
    """
    if (form := _form_of(message)) is not None:
        return form.role(message)
    return message_role(message, unsaid=unsaid)


def render_text(message: Mapping[str, Any]) -> str:
    """Return the text of a message, its blocks joined with newlines, without reasoning."""
    if (form := _form_of(message)) is not None:
        return form.text(message)
    return message_text(message)


def _form_of(message: Mapping[str, Any]) -> Form | None:
    if isinstance(message.get("role"), str):  # as `form_of` itself decides
        return None
    # Here, because most messages have a role, and the forms are 17 modules.
    from sessionsdb.messages.formats.registry import form_of

    return form_of(message)

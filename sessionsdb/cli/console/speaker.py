"""Who speaks in a message, for people."""

from __future__ import annotations

from sessionsdb import SessionMessage
from sessionsdb.cli.console.output import cell_text


def speaker(message: SessionMessage) -> list[str]:
    """Return ``from SENDER`` and ``by AUTHOR``, as far as the message has them."""
    named = (("from", message.sender), ("by", message.author))
    return [f"{word} {cell_text(name)}" for word, name in named if name is not None]

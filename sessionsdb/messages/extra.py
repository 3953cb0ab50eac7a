"""The properties of a message that few messages have. They stand beside it, never in its payload.

They are a JSON object in the column ``extra``: ``metadata``, a JSON object that was given with the
message, or marks of ours in it.
"""

from __future__ import annotations

INTERRUPTED = '{"metadata":{"interrupted":true}}'
"""The extra of a reply that was stopped before its end."""


def is_interrupted(extra: str | None) -> bool:
    """Return whether a message is the streamed part of a reply that was stopped."""
    return extra == INTERRUPTED

"""The argument ``after`` of ``on_standby``: the writes that a read must see."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sessionsdb import operations, validation
from sessionsdb.errors import InvalidArgument
from sessionsdb.types import Outcome, Receipt
from sessionsdb.untrusted_values import is_instance, model_field, short_repr

if TYPE_CHECKING:
    from sessionsdb.operations.replayed import SeenWrite

ReadAfter = Receipt | Outcome | dict[str, int] | None
"""A message, its end, or versions of transcripts by the ids of their sessions."""

_FINAL = ("done", "dead", "cancelled")


def seen_writes(after: Any) -> tuple[SeenWrite, ...]:
    """Read the argument ``after`` of ``on_standby``. Raises ``InvalidArgument``."""
    if after is None:
        return ()
    if is_instance(after, Receipt):
        return (operations.replayed.SentMessage(*validation.receipt(after)),)
    if is_instance(after, Outcome):
        receipt = validation.receipt(model_field(after, "receipt"))
        return (
            operations.replayed.SentMessage(
                *receipt, finished=model_field(after, "status") in _FINAL
            ),
        )
    if is_instance(after, dict):
        return tuple(
            operations.replayed.SavedVersion(
                validation.session_id(id), validation.stored_number(version, "version")
            )
            for id, version in dict.items(after)
        )
    raise InvalidArgument(
        "after must be a Receipt, an Outcome, or a dict from ids of sessions to versions of "
        f"their transcripts, not {short_repr(after)}"
    )

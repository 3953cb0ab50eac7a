"""The newest messages of a transcript, as a process remembers them between two reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sessionsdb.engine.statement import Row
from sessionsdb.messages.extra import extra_fields
from sessionsdb.operations.history import messages_of
from sessionsdb.operations.history_page import FIRST_SEQ
from sessionsdb.operations.newer_rows import NO_STATE, NewRows, ReadState, memory_of, stand
from sessionsdb.types import SessionMessage

MESSAGE_BYTES = 600
"""The memory of a message without its texts, about."""


class KeptMessage(NamedTuple):
    """A message of a remembered page."""

    message: SessionMessage
    """It has no metadata, which a caller could change."""
    extra: str | None
    """The column ``extra`` of a message that has metadata."""
    size: int
    """Its memory in bytes, about."""

    def with_metadata(self) -> SessionMessage:
        """Return a message for one caller, who may change its metadata."""
        return SessionMessage.from_fields(**{**vars(self.message), **extra_fields(self.extra)})


class RememberedPage(NamedTuple):
    """The newest messages of a transcript."""

    kept: Sequence[KeptMessage]
    """Newest last. Nobody changes the list."""
    state: ReadState = NO_STATE
    size: int = 0
    """The memory of the messages in bytes, about. 0: the messages can't be remembered."""

    def messages(self) -> list[SessionMessage]:
        """Return the messages for a caller. Those without metadata are shared: they are frozen."""
        return [one.message if one.extra is None else one.with_metadata() for one in self.kept]


NO_PAGE = RememberedPage(())
"""Stands for the remembered page before the first one is remembered. All of it is read then."""


def join(remembered: RememberedPage, new: NewRows, limit: int) -> RememberedPage | None:
    """Join the remembered messages and the new ones into a page of at most ``limit``.

    ``None``: the remembered messages are not those of this database.
    """
    kept: Sequence[KeptMessage] = _keep(new.rows)
    size = sum(one.size for one in kept)
    if new.behind > FIRST_SEQ and len(kept) < limit:
        if not stand(remembered.state, new):
            return None
        dropped = max(0, len(remembered.kept) + len(kept) - limit)
        size += remembered.size - sum(one.size for one in remembered.kept[:dropped])
        kept = [*remembered.kept[dropped:], *kept] if kept else remembered.kept
    return RememberedPage(kept, new.state, size if _is_whole(kept, new.state, limit) else 0)


def _is_whole(kept: Sequence[KeptMessage], state: ReadState, limit: int) -> bool:
    """Return whether the messages are those that the counters of the session tell of."""
    if not kept or state.last_at is None:
        return False
    return len(kept) == min(state.message_count, limit) and kept[-1].message.seq == state.last_seq


def _keep(rows: Sequence[Row]) -> list[KeptMessage]:
    kept = []
    for message, (role, content, _timestamp, _seq, sender, extra, _page) in zip(
        messages_of(rows), rows, strict=True
    ):
        size = MESSAGE_BYTES + memory_of(role) + memory_of(content)
        if sender is not None:
            size += memory_of(sender)
        if extra is not None:
            size += 2 * memory_of(extra)  # the author is a part of it
        if message.metadata is None:
            kept.append(KeptMessage(message, None, size))
        else:
            plain = SessionMessage.from_fields(**{**vars(message), "metadata": None})
            kept.append(KeptMessage(plain, extra, size))
    return kept

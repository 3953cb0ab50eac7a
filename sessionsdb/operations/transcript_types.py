"""Values that operations on transcripts take."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from sessionsdb.messages.codec import StoredMessage


class Attributes(NamedTuple):
    """The values that stand beside a message in the transcript: columns of ``messages``."""

    position: int | None = None
    """The position in the inbox that the message came from or answers."""
    sender: str | None = None
    sent_at: datetime | str | None = None
    """When it was sent, if it came through the inbox or from the file of another program. As the
    driver returns and takes times."""
    extra: str | None = None
    """Author and metadata: see ``messages/extra.py``."""
    key: str | None = None


NO_ATTRIBUTES = Attributes()
ATTRIBUTE_COLUMNS = ", ".join(Attributes._fields)


class TranscriptState(NamedTuple):
    """The counters of a transcript whose session is locked."""

    version: int
    message_count: int
    is_new: bool = False
    """Whether this transaction has created the session."""


class Append(NamedTuple):
    """Messages to append to a transcript."""

    namespace: str
    session_id: str
    messages: Sequence[StoredMessage]
    expected_version: int | None = None


class SessionAppend(NamedTuple):
    """All appends of a batch to one session, done as one."""

    namespace: str
    session_id: str
    expected_version: int | None
    requests: list[tuple[int, int]]
    """For each append its index in the batch and by how much it raises the version: 0 or 1."""
    messages: list[StoredMessage]
    versions: int
    """By how much all of them raise the version."""

    @property
    def may_create(self) -> bool:
        """Whether they may create the session. Version 0 means that there is none."""
        return self.expected_version in (None, 0)


class NewSession(NamedTuple):
    """A session that a write to its transcript creates."""

    namespace: str
    session_id: str
    version: int
    incarnation: str
    epoch: int
    """The epoch of its mailbox."""


class TranscriptMark(NamedTuple):
    """A state of a transcript, and the message by which that state is recognised.

    A version alone does not identify a state: a session that was deleted and created again counts
    its versions from 1. So the message at ``seq`` must also bear this ``write_id``.
    """

    version: int
    seq: int
    write_id: str


HAS_MARK = """
    version = :version AND EXISTS (
        SELECT 1 FROM messages AS m
        WHERE m.namespace = :namespace AND m.session_id = :session_id
          AND m.seq = :mark_seq AND m.write_id = :mark_write_id
    )
"""
"""The condition that a row of ``sessions`` is in the state of a ``TranscriptMark``."""


def mark_parameters(mark: TranscriptMark) -> dict[str, str | int]:
    """Return the parameters of ``HAS_MARK``, without the key of the session."""
    return {"version": mark.version, "mark_seq": mark.seq, "mark_write_id": mark.write_id}

"""The messages of a transcript, changes of it, and the state beside it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import SerializerFunctionWrapHandler, SkipValidation, model_serializer

from sessionsdb.types.base import SessionId, Value

DEFAULT_HISTORY_LIMIT = 50
"""The number of messages that ``history`` returns without a limit."""

StateScope = Literal["session", "peer", "namespace"]
"""The owner of a state: one session, all sessions of a channel and peer, or a whole namespace."""


class SessionMessage(Value):
    """One message of a transcript, rendered as text for reading."""

    role: str
    """``user``, ``assistant``, ``system`` or ``tool``. Other roles are kept as they were saved."""
    content: str
    timestamp: datetime
    seq: int | None = None
    """The number of the message in the transcript, the cursor of ``history``. ``None`` before the
    commit of the turn."""
    sender: SessionId | None = None
    """The session whose agent sent the message. ``None`` for messages of users, for replies, and
    for messages that did not come through the inbox."""
    author: str | None = None
    """The speaker, for people, if the sender said so. It gives no authority."""
    metadata: dict[str, Any] | None = None
    """A JSON object that was given with the message, or ``None``."""
    interrupted: bool = False
    """Whether it is the streamed part of a reply that ``cancel`` or ``interrupt`` stopped. Left out
    on the wire if not."""

    @model_serializer(mode="wrap")
    def _leave_out_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = {name: value for name, value in handler(self).items() if value is not None}
        if not self.interrupted:
            fields.pop("interrupted", None)
        return fields


class TranscriptEntry(Value):
    """One message of a transcript, whole, with the values that stand beside it."""

    session_id: SessionId
    seq: int
    message: dict[str, Any]
    """The message as it was stored, equal to the last character."""
    created_at: datetime
    """When the message entered the transcript. Entries are in the order of ``seq``."""
    sent_at: datetime | None = None
    """When the message was sent, if it came through the inbox."""
    key: str | None = None
    """The key that the message was appended with: see ``SessionStore.append``."""
    sender: SessionId | None = None
    author: str | None = None
    metadata: dict[str, Any] | None = None
    interrupted: bool = False
    """Whether it is the streamed part of a reply that was stopped."""


class Edit(Value):
    """A change of a transcript, which is made in one transaction: see ``SessionStore.edit``.

    Its values are checked by the call that takes the edit.
    """

    append: Annotated[Sequence[dict[str, Any]], SkipValidation] = ()
    """The messages to append."""
    keys: Annotated[Sequence[str | None] | None, SkipValidation] = None
    """A key or ``None`` for each appended message. A session has a key at most once."""
    keep_through: Annotated[int | None, SkipValidation] = None
    """First remove all messages with a larger ``seq``."""
    expected_version: Annotated[int | None, SkipValidation] = None
    """Change nothing if the transcript is at another version. 0 means that there is no session."""
    expected_tail: Annotated[Sequence[int] | None, SkipValidation] = None
    """Change nothing unless the last messages have these ``seq``s, at most 1,000, newest last. An
    empty list means an empty transcript."""
    state: Annotated[dict[StateScope, dict[str, Any]] | None, SkipValidation] = None
    """Changes of the state by scope: see ``SessionStore.update_state``."""
    metadata: Annotated[dict[str, Any] | None, SkipValidation] = None
    """The new metadata of the session. ``None`` leaves the metadata as it is."""
    create: Annotated[bool, SkipValidation] = True
    """Create the session if it does not exist. With ``False`` that is ``UnknownSession``."""


class Edited(Value):
    """The result of an edit."""

    version: int
    """The version of the transcript, whether the edit changed it or not."""
    appended: list[int]
    """For each message of ``Edit.append`` its ``seq``. A message whose key the session had already
    has the ``seq`` of that one."""
    removed: list[dict[str, Any]]
    """The messages that were removed, newest last."""


class SearchHit(Value):
    """A message that ``search`` found."""

    session_id: SessionId
    seq: int
    """The number of the message in its transcript."""
    role: str
    snippet: str
    """The part of the message around the first word that was found: one line of plain text, at most
    200 characters."""
    marks: list[tuple[int, int]]
    """The places of found words in ``snippet``: the first character, and the one behind the last.
    They are numbers, so that a page can escape the text and mark it."""
    created_at: datetime
    """When the message was written into the transcript."""
    cursor: str
    """The place of the hit, for ``after``."""


class State(Value):
    """The state of one scope: JSON values by key."""

    values: dict[str, Any]
    version: int
    """A number that grows with every change of the scope. 0: nothing was ever written."""

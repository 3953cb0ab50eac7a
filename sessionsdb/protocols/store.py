"""The protocol of a store: load and change the transcripts of sessions."""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from sessionsdb.types import (
    Children,
    Edit,
    Edited,
    ListOptions,
    SessionRecord,
    State,
    StateScope,
    TranscriptEntry,
)


@runtime_checkable
class SessionStore(Protocol):
    """The persistence side: load and save the transcript of one session.

    Every method raises ``InvalidSessionId`` for an id that is not 1 to 512 characters of storable
    text, and ``StorageError`` when the database fails. When a method returns, its writes survive
    power loss.
    """

    async def load(self, id: str) -> builtins.list[dict[str, Any]] | None:
        """Return the whole transcript in order.

        The messages are new objects, equal to the saved ones to the last character. An unknown id
        gives ``None``, a session without messages gives an empty list.
        """

    async def save(
        self, id: str, messages: Sequence[dict[str, Any]], *, expected_version: int | None = None
    ) -> int:
        """Replace the transcript with ``messages`` in one transaction and return its version.

        Creates the session if it does not exist, and keeps ``created_at`` if it does. Only the
        difference is written: the common beginning stays. An equal transcript is not touched and
        keeps its version.

        With ``expected_version``, raises ``VersionConflict`` if the transcript is at another
        version. A session that exists has a version of 1 or more, so 0 means that there is no such
        session. Raises ``InvalidMessage`` before anything is written.
        """

    async def append(
        self,
        id: str,
        messages: Sequence[dict[str, Any]],
        *,
        keys: Sequence[str | None] | None = None,
        create: bool = True,
        expected_version: int | None = None,
    ) -> int:
        """Add ``messages`` to the end of the transcript and return its version.

        The cost does not depend on the length of the transcript. Creates the session if it does
        not exist. With ``create=False`` it raises ``UnknownSession`` instead. ``expected_version``
        and the errors are the same as in ``save``.

        ``keys``: a key or ``None`` for each message, of at most 256 bytes. A message whose key the
        session has already is left out. So a call that is repeated with the same keys appends
        nothing twice. The key of a message that was removed is free again.
        """

    async def entries(
        self, id: str, limit: int = 50, *, before: int | None = None, after: int | None = None
    ) -> builtins.list[TranscriptEntry]:
        """Return whole messages with their seq, times, key, sender, author and metadata.

        They are the messages that ``SessionBroker.history`` shows for the same cursors, newest
        last. The cost is O(limit). Raises ``UnknownSession``.
        """

    async def find(self, key: str, *, id: str | None = None) -> TranscriptEntry | None:
        """Return the message with a key, or ``None``.

        Without ``id`` it is searched in the whole namespace. If several sessions have the key,
        forks of one another for example, the session that was made first counts.
        """

    async def edit(self, id: str, edit: Edit) -> Edited:
        """Change the end of a transcript in one transaction, and return the changes.

        1. The keys are looked at. Messages whose key the session keeps are not appended again. All
           messages may have keys and stand in the transcript already, directly behind
           ``keep_through`` where it is given. Then an earlier try was committed: nothing is
           written, and nothing is expected. So an edit with keys can be repeated until its answer
           arrives.
        2. ``expected_version`` and ``expected_tail`` are compared. Raises ``VersionConflict``.
        3. The messages with a ``seq`` above ``keep_through`` are removed, and the others appended.
           ``metadata`` replaces the metadata of the session, ``state`` is merged. An appended
           message that equals a removed one keeps its sender, author, metadata and time of sending.
           The key of a removed message is free again.

        The cost depends on the messages that are removed and appended, not on the length of the
        transcript. A running turn of the session does not commit if messages were removed: it is
        run again over the new transcript. Inside the handler of that turn use ``Turn.edit``: here
        it raises ``InvalidArgument``. Raises ``InvalidMessage``, and ``UnknownSession`` with
        ``create=False``.
        """

    async def pop(
        self, id: str, count: int = 1, *, expected_version: int | None = None
    ) -> builtins.list[dict[str, Any]]:
        """Remove the newest ``count`` messages and return them, newest last.

        Of an empty transcript it returns an empty list, and the version stays. Raises
        ``UnknownSession`` and ``VersionConflict``.
        """

    async def truncate(
        self, id: str, *, keep_through: int, expected_version: int | None = None
    ) -> int:
        """Remove all messages with a ``seq`` above ``keep_through``, and return the version.

        0 removes all. Raises ``UnknownSession`` and ``VersionConflict``.
        """

    async def replace(
        self,
        id: str,
        seq: int,
        message: dict[str, Any],
        *,
        expected_version: int | None = None,
    ) -> int:
        """Replace the message at ``seq``, and return the version of the transcript.

        It keeps its place, key, sender, author, metadata and times. A running turn is run again, as
        with ``edit``. Raises ``UnknownSession``, ``VersionConflict``, ``InvalidMessage``, and
        ``InvalidArgument`` if the transcript has no message there.
        """

    async def version(self, id: str) -> int | None:
        """Return the version of the transcript, or ``None`` for an unknown id.

        The number grows with every change of the transcript.
        """

    async def list(self) -> builtins.list[SessionRecord]:
        """Return every session of the namespace by ``updated_at``, newest last.

        Sessions with equal times are ordered by id.
        """

    async def list_paginated(self, options: ListOptions) -> builtins.list[SessionRecord]:
        """Return one page of ``list``. It is empty if ``offset`` is past the end."""

    async def state(self, id: str, *, scope: StateScope = "session") -> State:
        """Return the state of a scope: JSON values by key, and a version.

        Agents keep facts, settings and progress in it, beside the messages. Each scope has its own
        state.

        - ``"session"``: of this session alone. It is deleted with the session.
        - ``"peer"``: of all sessions with the same channel and peer. Those of the root of the
          session's tree count, so spawned sessions share the state of their user.
        - ``"namespace"``: of all sessions of the namespace.

        A scope that was never written to is empty, at version 0. Raises ``UnknownSession``, and
        ``InvalidArgument`` for another scope.
        """

    async def update_state(
        self,
        id: str,
        changes: dict[str, Any],
        *,
        scope: StateScope = "session",
        expected_version: int | None = None,
    ) -> State:
        """Merge ``changes`` into the state of a scope, in one transaction, and return the state.

        Only the keys in ``changes`` are written: calls at the same time that write other keys lose
        nothing. A value is any JSON value, read back equal to the last character. ``None`` removes
        the key. Equal values change nothing, and leave the version as it is.

        With ``expected_version``, raises ``VersionConflict`` if the state of the scope is at
        another version. Raises ``UnknownSession``. Raises ``InvalidArgument`` for another scope,
        for a key that is not 1 to 256 characters, and for a value that is not JSON. Also for a
        state that would be larger than ``Limits.state_bytes``. Nothing was written then.
        """

    async def delete(self, id: str, *, children: Children = "detach") -> None:
        """Delete a session with its transcript, its inbox and its own state. An unknown id is not
        an error.

        ``children`` decides about child sessions. ``"detach"`` makes them roots. ``"cascade"``
        deletes them and all sessions below them. ``"refuse"`` raises ``SessionHasChildren`` and
        deletes nothing. A running turn of a deleted session is cancelled and can't commit.
        """

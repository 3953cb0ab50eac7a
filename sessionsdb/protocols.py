"""The two interfaces, as protocols: what a host may implement and what a caller may rely on.

Their semantics are those of the ``SessionStore`` and ``SessionBroker`` traits of the Brainwires
agent framework, made durable.
"""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from datetime import datetime
from types import EllipsisType
from typing import Any, Protocol, runtime_checkable

from sqlalchemy.ext.asyncio import AsyncConnection

from sessionsdb.types import (
    Children,
    ListOptions,
    Outcome,
    Receipt,
    SessionDetails,
    SessionMessage,
    SessionRecord,
    SessionSummary,
    SpawnedSession,
    SpawnRequest,
)


@runtime_checkable
class SessionStore(Protocol):
    """The persistence side: load and save the transcript of one session.

    Ids are 1 to 512 characters; every method raises ``InvalidSessionId`` for others, and
    ``StorageError`` when the database fails. What a method has written when it returns survives
    power loss.
    """

    async def load(self, id: str) -> builtins.list[dict[str, Any]] | None:
        """The whole transcript in order, as fresh objects equal to what was saved; ``None`` for
        an unknown id, an empty list for a session without messages."""

    async def save(
        self, id: str, messages: Sequence[dict[str, Any]], *, expected_version: int | None = None
    ) -> int:
        """Make the transcript equal to ``messages``, atomically; returns its version.

        Creates the session if need be and keeps its ``created_at``. Writes only what changed:
        the common beginning stays, and an equal transcript is not touched and keeps its version.
        With ``expected_version`` (0 for a session that is to be new) raises ``VersionConflict``
        if the transcript has changed since. Raises ``InvalidMessage`` before anything is written.
        """

    async def append(
        self, id: str, messages: Sequence[dict[str, Any]], *, expected_version: int | None = None
    ) -> int:
        """Add ``messages`` at the end of the transcript; returns its version.

        Costs the same however long the transcript is. Creates the session if need be.
        ``expected_version`` and errors as in ``save``.
        """

    async def version(self, id: str) -> int | None:
        """A number that grows with every change of the transcript; ``None`` for an unknown id."""

    async def list(self) -> builtins.list[SessionRecord]:
        """Every session of the namespace by ``updated_at``, newest last, equal times by id."""

    async def list_paginated(self, options: ListOptions) -> builtins.list[SessionRecord]:
        """A page of ``list``; empty when ``offset`` is past the end."""

    async def delete(self, id: str, *, children: Children = "detach") -> None:
        """Delete a session with its transcript and inbox; an unknown id is no error.

        Its children become roots (``"detach"``), go with it and all below them (``"cascade"``),
        or keep it from being deleted (``"refuse"``: raises ``SessionHasChildren``). A turn that
        runs on a deleted session is cancelled and can't commit.
        """


@runtime_checkable
class SessionBroker(Protocol):
    """The live side: list sessions, read history, send messages and spawn children.

    Every method raises ``UnknownSession`` for an id that does not exist in this namespace,
    ``InvalidSessionId`` and ``InvalidArgument`` for arguments no call could serve, and
    ``StorageError`` when the database fails.
    """

    async def register(
        self,
        id: str,
        *,
        channel: str,
        peer: str,
        parent: str | None = None,
        model: str | None = None,
        system: str | None = None,
        tools: Sequence[str] | None = None,
        metadata: dict[str, Any] | None = None,
        exist_ok: bool = False,
    ) -> SessionSummary:
        """Create a session, below ``parent`` if that is given; ``tools=None`` is no restriction.

        Raises ``SessionExists``; with ``exist_ok`` a session that exists is returned as it is,
        unchanged. Raises ``UnknownSession`` or ``SessionEnded`` for the parent.
        """

    async def get(self, id: str) -> SessionDetails:
        """All that is known of a session, without its transcript."""

    async def update(
        self,
        id: str,
        *,
        channel: str | EllipsisType = ...,
        peer: str | EllipsisType = ...,
        model: str | EllipsisType | None = ...,
        system: str | EllipsisType | None = ...,
        tools: Sequence[str] | EllipsisType | None = ...,
        metadata: dict[str, Any] | EllipsisType | None = ...,
    ) -> SessionDetails:
        """Change what is given, keep the rest; ``None`` clears a setting. A turn that runs keeps
        what it started with, and children keep what they were given."""

    async def list(
        self,
        *,
        channel: str | None = None,
        peer: str | None = None,
        parent: str | None = None,
        root: str | None = None,
        active_since: datetime | None = None,
        include_ended: bool = False,
        limit: int | None = None,
        after: SessionSummary | str | None = None,
    ) -> builtins.list[SessionSummary]:
        """Sessions by ``last_active``, oldest first, equal times by id; filtered, then limited.

        ``parent`` gives a session's children, ``root`` a session and all below it,
        ``active_since`` (a time with a zone) those active then or later; ended sessions are left
        out unless ``include_ended``. ``limit=None`` is no limit. ``after`` is the last session of
        the page before: as a summary, which also holds its place if it has been active since, or
        as an id, which stands where that session stands now. A filter that nothing matches, also
        the id of a session that does not exist, gives an empty list. Costs a page, not the table.
        """

    async def history(
        self,
        id: str,
        limit: int | None = None,
        *,
        before: int | None = None,
        after: int | None = None,
    ) -> builtins.list[SessionMessage]:
        """Messages of the transcript rendered as text, newest last.

        The last ``limit`` of them, 50 if ``None``, none if 0; with ``before`` the last before
        that ``seq``, with ``after`` the first behind it. What waits in the inbox is not among
        them. Costs O(limit).
        """

    async def send(
        self,
        id: str,
        text: str,
        *,
        sender: str | None = None,
        idempotency_key: str | None = None,
        connection: AsyncConnection | None = None,
    ) -> Receipt:
        """Queue a user's message for a session; returns when it is committed.

        A worker handles the messages of a session in the order in which their sends committed.
        With an ``idempotency_key`` a repeated send queues nothing and returns the first receipt
        with ``duplicate=True``. ``sender`` is the session whose agent sends it: who receives it is
        told, and its hops are counted (see ``Limits.hops``). With ``connection``, an
        ``AsyncConnection`` on this database, the message commits or rolls back with the caller's
        transaction.

        Raises ``SessionEnded``, ``InboxFull`` (back-pressure), ``HopLimitReached``,
        ``IdempotencyConflict`` and ``InvalidMessage`` (empty or too large).
        """

    async def spawn(
        self,
        parent: str,
        request: SpawnRequest,
        *,
        idempotency_key: str | None = None,
        connection: AsyncConnection | None = None,
    ) -> SpawnedSession:
        """Create a child of ``parent`` and queue its prompt, in one transaction.

        Settings that are ``None`` are the parent's. With ``wait_for_first_reply`` the child is
        committed first and then waited for, ``wait_timeout_secs`` at most: then ``first_reply``
        is ``None`` and the child lives on. ``idempotency_key`` and ``connection`` as in ``send``.

        Raises ``SpawnDenied`` (depth, number of children, tools outside the parent's),
        ``SessionEnded``, ``HopLimitReached``, ``IdempotencyConflict`` and ``InvalidMessage``.
        """

    async def outcome(self, receipt: Receipt) -> Outcome:
        """What has become of a message, now. Raises ``UnknownReceipt``."""

    async def wait(
        self, receipt: Receipt, timeout: float = 60.0, *, waiter: str | None = None
    ) -> Outcome:
        """The outcome of a message once it is ``done``, ``dead`` or ``cancelled``; at the timeout
        (seconds) as it is then. A cancelled or timed-out wait changes nothing for the message,
        and no connection is held while waiting.

        ``waiter`` is the session whose turn stands still meanwhile. If the message's session, or
        one that it waits for in turn, in whatever process, waits for the waiter, none of them
        would ever answer: raises ``CircularWait``. Raises ``UnknownReceipt``.
        """

    async def end(self, id: str, *, subtree: bool = False, reason: str | None = None) -> int:
        """End a session, with all below it if ``subtree``: it takes no more messages, what waits
        is ``cancelled``, a turn that runs is cancelled and can't commit. Returns how many
        sessions were ended; those that had ended before don't count."""

    async def dead_letters(
        self, id: str | None = None, *, limit: int = 100
    ) -> builtins.list[Outcome]:
        """The last ``limit`` messages, of one session or all, whose attempts are used up; newest
        last."""

    async def requeue(self, receipt: Receipt) -> None:
        """Give a dead message another life, ahead of those that wait, under its old receipt.
        Raises ``UnknownReceipt``, ``SessionEnded``, and ``InvalidArgument`` if it isn't dead."""

"""Sessions: lists of them, one with its settings, and spawned ones."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import Field, StrictBool, StrictStr

from sessionsdb.types.base import Number, Seconds, SessionId, Value
from sessionsdb.types.inbox import OpenQuestion
from sessionsdb.types.transcripts import SessionMessage

Children = Literal["detach", "cascade", "refuse"]
"""The fate of child sessions in ``delete``: they become roots, are deleted too, or prevent it."""

Report = Literal["none", "each"]
"""Whether a spawned session reports to its parent what came of it."""


class SessionRecord(Value):
    """One stored transcript, an item of ``SessionStore.list``."""

    id: SessionId
    message_count: int
    created_at: datetime
    updated_at: datetime
    """The time of the last change of the transcript."""


class SessionSummary(Value):
    """One session, an item of ``SessionBroker.list``."""

    id: SessionId
    channel: str
    """The origin of the session: ``cli``, ``discord``, … A spawned session has ``spawned``."""
    peer: str
    """The other end of the conversation: a user, a bot, or ``spawned-by-<parent>``."""
    created_at: datetime
    last_active: datetime
    """The time of the last send to the session or of the last change of its transcript."""
    message_count: int
    """The number of messages in the transcript. Messages in the inbox are not counted."""
    parent: SessionId | None = None


class ForkPoint(Value):
    """The place where a fork left its source."""

    id: SessionId
    """The session that was forked. It may have been deleted since."""
    seq: int
    """The last message that was copied, 0 if none was."""


class Settings(Value):
    """The settings of a session that its agent runs with."""

    model: str | None = None
    system: str | None = None
    tools: list[str] | None = None


class SessionDetails(SessionSummary):
    """One session with its settings, counters and state, but without its transcript."""

    root: SessionId | None = None
    """The topmost ancestor of the session. ``None`` for a session without a parent."""
    model: str | None = None
    system: str | None = None
    tools: list[str] | None = None
    """The names of the tools that the session may use. ``None`` means no restriction."""
    metadata: dict[str, Any] = Field(default_factory=dict)
    version: int
    """The version of the transcript. It grows with every change, see ``SessionStore.save``."""
    pending: int
    """The number of messages that wait in the inbox. Messages of a running turn are not counted."""
    running: bool
    """Whether a worker holds the lease of the session."""
    ended_at: datetime | None = None
    end_reason: str | None = None
    forked_from: ForkPoint | None = None
    """The session and the message that it is a fork of. ``None`` if it is no fork."""
    held: OpenQuestion | None = None
    """The question that the session waits for. Until its answer, its expiry or an interrupt no turn
    runs there, and messages queue behind it."""

    @property
    def summary(self) -> SessionSummary:
        return SessionSummary.from_fields(
            **{name: getattr(self, name) for name in SessionSummary.model_fields}
        )

    @property
    def settings(self) -> Settings:
        return Settings(model=self.model, system=self.system, tools=self.tools)


class ListOptions(Value):
    """The page that ``SessionStore.list_paginated`` returns. ``limit=None`` means no limit."""

    offset: Number = 0
    limit: Number | None = None


class SpawnRequest(Value):
    """A request to create a child session. ``None`` settings are copied from the parent."""

    prompt: StrictStr | dict[Any, Any]
    """The task: a text, or one JSON message of the role ``user``."""
    model: StrictStr | None = None
    system: StrictStr | None = None
    tools: list[StrictStr] | None = None
    wait_for_first_reply: StrictBool = False
    """Whether ``spawn`` waits for the answer to the prompt, up to the timeout."""
    wait_timeout_secs: Seconds = 60
    """The timeout of that wait in seconds. At the timeout the child goes on."""
    author: StrictStr | None = None
    """The giver of the task, for people. It stands with the prompt."""
    metadata: dict[Any, Any] | None = None
    """A JSON object that stays with the prompt. The session itself has metadata of its own."""
    report: Report = "none"
    """Whether the parent is told what came of the child. With ``"each"`` the child's first reply is
    sent into the parent's inbox, or the death of the prompt, or the end of the child: the first of
    these, once. It can't be used together with ``wait_for_first_reply``."""


class SpawnedSession(Value):
    """The result of ``spawn``."""

    id: SessionId
    first_reply: SessionMessage | None = None
    """The answer to the prompt. ``None`` without a wait, at the timeout, and without a reply."""

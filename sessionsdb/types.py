"""The values that callers pass and receive: frozen pydantic models and their wire form.

``model_dump`` and ``model_dump_json`` leave out fields that are ``None``. Ids are plain strings.
Timestamps are ISO 8601 in UTC.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Annotated, Any, Literal, NewType, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    SkipValidation,
    StrictBool,
    StrictInt,
    StrictStr,
    model_serializer,
)

from sessionsdb.private_apis import (
    set_model_extra,
    set_model_fields_set,
    set_model_private,
    set_model_values,
)

SessionId = NewType("SessionId", str)
"""The id of a session: text of 1 to 512 characters, chosen by the caller, unique in its
namespace. The package gives it no meaning."""

DEFAULT_HISTORY_LIMIT = 50
"""The number of messages that ``history`` returns without a limit."""

DEFAULT_NAMESPACE = "default"
"""The namespace of a handle that is created without one."""

# Strict: "5" and True are not numbers, and bytes are not text.
Number = Annotated[StrictInt, Field(ge=0)]
Count = Annotated[StrictInt, Field(ge=0, le=2**31 - 1)]
Seconds = Annotated[float, Field(strict=True, ge=0)]

Children = Literal["detach", "cascade", "refuse"]
"""The fate of child sessions in ``delete``: they become roots, are deleted too, or prevent it."""

StateScope = Literal["session", "peer", "namespace"]
"""The owner of a state: one session, all sessions of a channel and peer, or a whole namespace."""

Status = Literal["pending", "running", "done", "dead", "cancelled"]
"""The status of an inbox message. The last three are final, but ``dead`` can be requeued."""

FINAL_STATUSES: frozenset[Status] = frozenset(("done", "dead", "cancelled"))

AnswerStatus = Literal["answered", "expired", "withdrawn"]
"""What became of a question: a person answered it, its time ran out, or ``interrupt`` or the
``cancel`` of its answer withdrew it."""

StoppedBy = Literal["cancel", "interrupt", "end", "lease"]
"""Why a turn was stopped: by ``cancel``, by ``interrupt`` or a send that interrupts, by ``end`` or
``delete`` of its session, or because the worker lost its lease."""

WhenBusy = Literal["queue", "interrupt", "reject"]
"""The handling of a send to a session that is busy: behind the other messages, after the running
turn was stopped, or not at all."""

CatchUp = Literal["one", "all"]
"""The messages for the due times that passed while no worker ran: one for all of them, or one for
each."""

Report = Literal["none", "each"]
"""Whether a spawned session reports to its parent what came of it."""

Durability = Literal["full", "normal"]
"""The durability of a commit: ``"full"`` survives power loss, ``"normal"`` may lose the last
commits in a power loss, but not in a crash of the process."""


_new = object.__new__
_FIELDS: dict[type[BaseModel], set[str]] = {}


class Value(BaseModel):
    """Base of all values: frozen, without unknown fields, and without ``None`` on the wire."""

    # Each class is built at its first use: all of them together take 40 ms.
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    @classmethod
    def from_fields(cls, **fields: Any) -> Self:
        """Build a value from all of its fields without validation.

        The fields come from a table, which has checked them. ``model_construct`` does the same,
        but looks each field up: 4.9 µs for a message instead of 0.5 µs. A page of history has 50
        messages.
        """
        value = _new(cls)
        set_model_values(value, fields)
        set_model_fields_set(value, _FIELDS[cls])
        set_model_extra(value, None)
        set_model_private(value, None)
        return value

    @classmethod
    def list_from_fields(cls, values: Iterable[dict[str, Any]]) -> list[Self]:
        """Build many values like ``from_fields``: 0.4 µs for each message of a page, not 0.6."""
        field_names, made = _FIELDS[cls], []
        for fields in values:
            value = _new(cls)
            set_model_values(value, fields)
            set_model_fields_set(value, field_names)
            set_model_extra(value, None)
            set_model_private(value, None)
            made.append(value)
        return made

    @classmethod
    def __pydantic_init_subclass__(cls, **_options: Any) -> None:
        _FIELDS[cls] = set(cls.model_fields)

    @model_serializer(mode="wrap")
    def _leave_out_none(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in handler(self).items() if value is not None}


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


class Question(Value):
    """A question to a person, which a turn asks with ``Reply(ask=…)``.

    Its size is checked when the handler returns it: at most ``Limits.message_bytes``.
    """

    prompt: Annotated[StrictStr, Field(min_length=1)]
    """The text that the person reads."""
    data: JsonValue = None
    """Any JSON value for the program that shows the question, such as the choices."""
    expires_in: Annotated[float, Field(strict=True, gt=0, lt=1e10)] | None = None
    """The seconds until the question expires. ``None``: it stays open."""
    accept_message: StrictBool = False
    """Whether the next message without a sender is the answer."""


class OpenQuestion(Value):
    """A question that a session waits for."""

    id: str
    """The id for ``SessionBroker.answer``: ``<session>:<position>``. It is no secret."""
    session_id: SessionId
    prompt: str
    data: Any = None
    asked_at: datetime
    expires_at: datetime | None = None
    """From this moment on no answer is taken. ``None``: the question stays open."""
    receipt: Receipt
    """The last message of the turn that asked."""
    accept_message: bool = False
    """Whether the next message without a sender is the answer."""


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


class Settings(Value):
    """The settings of a session that its agent runs with."""

    model: str | None = None
    system: str | None = None
    tools: list[str] | None = None


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


class Answer(Value):
    """What became of a question: see ``Turn.answer``."""

    status: AnswerStatus
    question: Question
    message: SessionMessage | None = None
    """The answer, the same object as in ``Turn.messages``. ``Turn.inputs`` has it whole. ``None``
    without an answer."""
    author: str | None = None
    """The author of the answer, for people. It gives no authority."""


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


class ListOptions(Value):
    """The page that ``SessionStore.list_paginated`` returns. ``limit=None`` means no limit."""

    offset: Number = 0
    limit: Number | None = None


class Receipt(Value):
    """The result of ``send``: the session and the position of the message in its inbox."""

    session_id: SessionId
    position: StrictInt
    duplicate: StrictBool = False
    """``True`` if the idempotency key was known, so that nothing was queued."""


class Outcome(Value):
    """The state of a message that was sent, and the reply to it."""

    receipt: Receipt
    status: Status
    attempts: int
    """The number of turns that began with the message since it was last requeued. A turn that a
    stopping worker released is not counted."""
    reply: SessionMessage | None = None
    """The last assistant message of the turn that handled the message, or ``None``. For a cancelled
    message it is the streamed part of the reply, if that was kept."""
    error: str | None = None
    """The error of the last failed attempt: type, message and the last lines of the traceback."""
    enqueued_at: datetime
    finished_at: datetime | None = None
    message: SessionMessage | None = None
    """The message that was sent. Only ``SessionBroker.inbox`` gives it."""
    question: OpenQuestion | None = None
    """The question that the turn over the message has asked, while it is open."""

    @property
    def final(self) -> bool:
        """Whether the status is ``done``, ``dead`` or ``cancelled``."""
        return self.status in FINAL_STATUSES


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


class Schedule(Value):
    """A message that workers send to a session later, once or again and again."""

    id: str
    session_id: SessionId
    message: dict[str, Any]
    """The message as it is sent, whole."""
    at: datetime | None = None
    """The moment of a message that is sent once. ``None`` with ``cron``."""
    cron: str | None = None
    """The expression of a message that is sent again and again: minute, hour, day of the month,
    month, day of the week."""
    tz: str
    """The zone in which ``cron`` is read, by its name in the IANA database."""
    name: str | None = None
    """The name that the caller gave. A session has it at most once."""
    sender: SessionId | None = None
    """The session whose agent scheduled the message. ``None`` for users and applications."""
    author: str | None = None
    metadata: dict[str, Any] | None = None
    """The author and the metadata that the message is sent with."""
    catch_up: CatchUp
    created_at: datetime
    due_at: datetime
    """The next due time. It lies in the past while no worker runs, or while the inbox is full."""
    refused_at: datetime | None = None
    """When the inbox was full, if the message has waited for room since it was due."""
    last_fired_at: datetime | None = None
    """When the message was last sent."""


class State(Value):
    """The state of one scope: JSON values by key."""

    values: dict[str, Any]
    version: int
    """A number that grows with every change of the scope. 0: nothing was ever written."""


class Limits(Value):
    """The limits of a handle. They are checked before anything is written."""

    message_bytes: Annotated[StrictInt, Field(ge=1, le=2**30 - 1)] = 1_048_576
    """The size of a message in bytes, as JSON in UTF-8. At most 1 GiB - 1, because databases refuse
    larger texts."""
    state_bytes: Annotated[StrictInt, Field(ge=1, le=2**30 - 1)] = 262_144
    """The size of all keys and values of one scope of state, as JSON in UTF-8."""
    pending: Annotated[Count, Field(ge=1)] = 1_000
    """The number of unfinished messages in one inbox. Above it ``send`` raises ``InboxFull``."""
    depth: Count = 5
    """The number of ancestors of a spawned session. Above it ``spawn`` raises ``SpawnDenied``."""
    children: Count = 50
    """The number of children of one session that have not ended. Above it ``spawn`` raises
    ``SpawnDenied``."""
    hops: Count = 10
    """The number of times a message may be handed on from session to session.

    The message of a user has 0 hops. A message that a session sends during a turn has one hop more
    than the highest of the messages of that turn. Above the limit ``send`` and ``spawn`` raise
    ``HopLimitReached``."""
    schedules: Count = 100
    """The number of schedules of one session. Above it ``schedule`` raises ``InvalidArgument``."""
    stream_bytes: Annotated[StrictInt, Field(ge=1, le=2**30 - 1)] = 1_048_576
    """The text that one run of a turn may stream, in bytes of UTF-8. Text above it is dropped."""


DEFAULT_LIMITS: Limits = Limits.model_construct()
"""The limits of a handle that is created without any. It equals ``Limits()``.

``Limits()`` would build the validator of the class, and pydantic would first look for plugins in
all installed packages: 6 ms at each start.
"""

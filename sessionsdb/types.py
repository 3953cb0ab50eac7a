"""The values that callers give and get: frozen pydantic models, and their wire form.

On the wire (``model_dump``, ``model_dump_json``) a field that is ``None`` is left out, ids are
bare strings and timestamps are ISO 8601 in UTC.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, Any, Literal, NewType, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
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
"""A session's id: opaque text chosen by the caller, 1 to 512 characters, unique in its
namespace."""

DEFAULT_HISTORY_LIMIT = 50
"""How many messages ``history`` returns when it is given no limit."""

DEFAULT_NAMESPACE = "default"
"""The namespace of a handle that was given none."""

# What callers give is taken as it is: no "5" or True for a number, no bytes for text.
Number = Annotated[StrictInt, Field(ge=0)]
Count = Annotated[StrictInt, Field(ge=0, le=2**31 - 1)]
Seconds = Annotated[float, Field(strict=True, ge=0)]

Children = Literal["detach", "cascade", "refuse"]
"""What ``delete`` does with a session's children."""

Status = Literal["pending", "running", "done", "dead", "cancelled"]
"""Where an inbox message is in its life; the last three are final (``dead`` can be requeued)."""

FINAL: frozenset[Status] = frozenset(("done", "dead", "cancelled"))


_new = object.__new__
_FIELDS: dict[type[BaseModel], set[str]] = {}


class Value(BaseModel):
    """Base of the values: frozen, no unknown fields, ``None`` left out of the wire form."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def from_fields(cls, **fields: Any) -> Self:
        """The value with these fields, all of them, which a table has checked already.

        As ``model_construct``, without looking each field up: 0.5 µs for a message, not 4.9, and
        a page of history is fifty.
        """
        value = _new(cls)
        set_model_values(value, fields)
        set_model_fields_set(value, _FIELDS[cls])
        set_model_extra(value, None)
        set_model_private(value, None)
        return value

    @classmethod
    def list_from_fields(cls, values: Iterable[dict[str, Any]]) -> list[Self]:
        """The same for many, by their fields: 0.4 µs for each of a page of messages, not 0.6."""
        given, made = _FIELDS[cls], []
        for fields in values:
            value = _new(cls)
            set_model_values(value, fields)
            set_model_fields_set(value, given)
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
    """One stored transcript, as ``SessionStore.list`` shows it."""

    id: SessionId
    message_count: int
    created_at: datetime
    updated_at: datetime
    """When the transcript last changed."""


class SessionSummary(Value):
    """One session, as ``SessionBroker.list`` shows it."""

    id: SessionId
    channel: str
    """Where the session came from: ``cli``, ``discord``, …; ``spawned`` for a spawned child."""
    peer: str
    """Who is at the other end: a user, a bot, ``spawned-by-<parent>``."""
    created_at: datetime
    last_active: datetime
    """When a message was last sent to it or its transcript last changed."""
    message_count: int
    """Messages in the transcript. What waits in the inbox is not among them."""
    parent: SessionId | None = None


class SessionDetails(SessionSummary):
    """All that is known of one session, without its transcript."""

    root: SessionId | None = None
    """The top of the tree it was spawned in; ``None`` for a session without ancestors."""
    model: str | None = None
    system: str | None = None
    tools: list[str] | None = None
    """The tools it may use; ``None`` is no restriction."""
    metadata: dict[str, Any] = Field(default_factory=dict)
    version: int
    """Changes with every change of the transcript; see ``SessionStore.save``."""
    pending: int
    """Messages that wait in the inbox, without those a turn is working on."""
    running: bool
    """Whether a worker holds a lease on it."""
    ended_at: datetime | None = None
    end_reason: str | None = None

    @property
    def summary(self) -> SessionSummary:
        return SessionSummary.from_fields(
            **{name: getattr(self, name) for name in SessionSummary.model_fields}
        )

    @property
    def settings(self) -> Settings:
        return Settings(model=self.model, system=self.system, tools=self.tools)


class Settings(Value):
    """What an agent needs to run a session."""

    model: str | None = None
    system: str | None = None
    tools: list[str] | None = None


class SessionMessage(Value):
    """One message of a transcript, rendered as text for reading."""

    role: str
    """``user``, ``assistant``, ``system`` or ``tool``; another role a caller stored is kept."""
    content: str
    timestamp: datetime
    seq: int | None = None
    """Its place in the transcript, the cursor of ``history``; ``None`` before the commit."""
    sender: SessionId | None = None
    """The session whose agent sent it; ``None`` where a user did, for replies, and for messages
    that did not come through the inbox."""


class SpawnRequest(Value):
    """A child session to create. A setting that is ``None`` is the parent's, copied now."""

    prompt: StrictStr
    model: StrictStr | None = None
    system: StrictStr | None = None
    tools: list[StrictStr] | None = None
    wait_for_first_reply: StrictBool = False
    """Whether ``spawn`` returns only when the prompt has been answered, or the timeout is over."""
    wait_timeout_secs: Seconds = 60
    """Seconds; it bounds the wait and not the child, which lives on."""


class SpawnedSession(Value):
    """The answer to ``spawn``."""

    id: SessionId
    first_reply: SessionMessage | None = None
    """The answer to the prompt; set only if it was waited for, came in time, and there was one."""


class ListOptions(Value):
    """A page of ``SessionStore.list_paginated``; ``limit=None`` is all the rest."""

    offset: Number = 0
    limit: Number | None = None


class Receipt(Value):
    """What ``send`` returns: the message's place in its session's inbox."""

    session_id: SessionId
    position: StrictInt
    duplicate: StrictBool = False
    """True if the idempotency key was known and nothing was queued."""


class Outcome(Value):
    """What has become of a message."""

    receipt: Receipt
    status: Status
    attempts: int
    """Turns begun over it so far, since it was last requeued; those that were released without a
    verdict, by a worker that stopped, are not counted."""
    reply: SessionMessage | None = None
    """The last assistant message of the turn that answered it; ``None`` if it gave no reply."""
    error: str | None = None
    """Why the last attempt failed: type, message and the traceback's last lines."""
    enqueued_at: datetime
    finished_at: datetime | None = None

    @property
    def final(self) -> bool:
        """Whether it is ``done``, ``dead`` or ``cancelled``."""
        return self.status in FINAL


class Limits(Value):
    """Bounds that are checked before anything is written."""

    message_bytes: Annotated[StrictInt, Field(ge=1, le=2**30 - 1)] = 1_048_576
    """A message's size as JSON in UTF-8. Under 1 GiB: no database takes a larger text."""
    pending: Annotated[Count, Field(ge=1)] = 1_000
    """Unfinished messages in one inbox; beyond it ``send`` raises ``InboxFull``."""
    depth: Count = 5
    """How many ancestors a spawned session may have."""
    children: Count = 50
    """How many children of one session may live (not be ended) at once."""
    hops: Count = 10
    """How often a message may be handed on from session to session: a user's message has 0 hops,
    one that a session sends while it works on messages has one more than the highest of theirs.
    Beyond it ``send`` and ``spawn`` raise ``HopLimitReached``."""


Durability = Literal["full", "normal"]

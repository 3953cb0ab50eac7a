"""The events of ``SessionBroker.follow``: frozen values that are told apart by ``type``.

``Event`` is the union of all. ``event_from_json`` reads one from its wire form.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from sessionsdb.types import OpenQuestion, Receipt, SessionId, SessionMessage, Value

TurnStatus = Literal["started", "done", "failed", "dead", "cancelled", "held"]
"""The status in a ``turn`` event. ``done``, ``dead`` and ``cancelled`` are final for its messages,
but a dead message can be requeued."""


class _Event(Value):
    """The fields of all events."""

    session_id: SessionId
    at: datetime
    """The time that the database recorded for the change. Changes that have no recorded time bear
    the time at which they were seen."""
    cursor: str
    """The place behind this event. ``follow(id, after=cursor)`` goes on from there."""


class MessageEvent(_Event):
    """A message of the transcript. Each comes once, in the order of ``seq``."""

    type: Literal["message"] = "message"
    message: SessionMessage


class QueuedEvent(_Event):
    """A message entered the inbox. It is not in the transcript until its turn commits."""

    type: Literal["queued"] = "queued"
    receipt: Receipt
    message: SessionMessage


class TurnEvent(_Event):
    """A turn began or ended, or messages were cancelled before their turn began.

    Statuses may be skipped when they pass faster than a look at the database.
    """

    type: Literal["turn"] = "turn"
    status: TurnStatus
    run: int | None = None
    """The lease of the turn: a number that grows. ``None``: the messages never were in a turn."""
    attempt: int
    """The attempt of the first message, from 1 on. It may come again under another ``run``. 0 for
    messages that were cancelled before their first turn."""
    receipts: list[Receipt]
    """The messages of the turn."""
    error: str | None = None
    """The error of a turn that failed or is dead: type, message, last lines of the traceback."""
    retry_at: datetime | None = None
    """With ``failed``: the time of the next attempt. ``None``: the next worker takes it at once."""
    question: OpenQuestion | None = None
    """With ``held``: the question to a person that the session waits for.

    ``held`` comes behind the ``done`` of the turn that asks, with its run and its last receipt."""


class IdleEvent(_Event):
    """All messages of the inbox are finished.

    As the first event of a follower it says that no turn runs or is tried again later. Messages may
    then wait for a worker.
    """

    type: Literal["idle"] = "idle"


class DeltaEvent(_Event):
    """A piece of the text that a running turn streams."""

    type: Literal["delta"] = "delta"
    run: int
    offset: int
    """The number of characters of the run's text before this piece."""
    text: str


class DataEvent(_Event):
    """A piece of data that a running turn emits beside its text."""

    type: Literal["data"] = "data"
    run: int
    kind: str
    data: Any = None


class ResetEvent(_Event):
    """The pieces of a run are void: drop them. The same run or another one may stream again."""

    type: Literal["reset"] = "reset"
    run: int


class RewrittenEvent(_Event):
    """Messages of the transcript were removed or replaced: load it again.

    ``message`` events that follow may bear a ``seq`` that the loaded transcript has already.
    """

    type: Literal["rewritten"] = "rewritten"
    version: int
    """The version of the transcript at that time."""


class EndedEvent(_Event):
    """The session has ended. It may be reopened, so the iterator goes on."""

    type: Literal["ended"] = "ended"


class DeletedEvent(_Event):
    """The session was deleted. This is its last event."""

    type: Literal["deleted"] = "deleted"


Event = Annotated[
    MessageEvent
    | QueuedEvent
    | TurnEvent
    | IdleEvent
    | DeltaEvent
    | DataEvent
    | ResetEvent
    | RewrittenEvent
    | EndedEvent
    | DeletedEvent,
    Field(discriminator="type"),
]
"""An event of ``follow``. ``TypeAdapter(Event)`` reads its wire form."""

_ADAPTER: TypeAdapter[Any] = TypeAdapter(Event)


def event_from_json(text: str | bytes) -> Event:
    """Return the event with this wire form. Raises pydantic's ``ValidationError``."""
    event: Event = _ADAPTER.validate_json(text)
    return event

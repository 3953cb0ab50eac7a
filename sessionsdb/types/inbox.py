"""Messages of an inbox: receipts, outcomes, questions to people, and schedules."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, StrictBool, StrictInt, StrictStr

from sessionsdb.types.base import SessionId, Value
from sessionsdb.types.transcripts import SessionMessage

WhenBusy = Literal["queue", "interrupt", "reject"]
"""The handling of a send to a session that is busy: behind the other messages, after the running
turn was stopped, or not at all."""

AnswerStatus = Literal["answered", "expired", "withdrawn"]
"""What became of a question: a person answered it, its time ran out, or ``interrupt`` or the
``cancel`` of its answer withdrew it."""

Status = Literal["pending", "running", "done", "dead", "cancelled"]
"""The status of an inbox message. The last three are final, but ``dead`` can be requeued."""

FINAL_STATUSES: frozenset[Status] = frozenset(("done", "dead", "cancelled"))

StoppedBy = Literal["cancel", "interrupt", "end", "lease"]
"""Why a turn was stopped: by ``cancel``, by ``interrupt`` or a send that interrupts, by ``end`` or
``delete`` of its session, or because the worker lost its lease."""

CatchUp = Literal["one", "all"]
"""The messages for the due times that passed while no worker ran: one for all of them, or one for
each."""


class Receipt(Value):
    """The result of ``send``: the session and the position of the message in its inbox."""

    session_id: SessionId
    position: StrictInt
    duplicate: StrictBool = False
    """``True`` if the idempotency key was known, so that nothing was queued."""


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


class Answer(Value):
    """What became of a question: see ``Turn.answer``."""

    status: AnswerStatus
    question: Question
    message: SessionMessage | None = None
    """The answer, the same object as in ``Turn.messages``. ``Turn.inputs`` has it whole. ``None``
    without an answer."""
    author: str | None = None
    """The author of the answer, for people. It gives no authority."""


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

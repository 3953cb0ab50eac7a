"""The result of each tool as an object: the structured content and its schema.

A field that is ``None`` is left out. A model reads the descriptions.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import Field

from sessionsdb.tools.scope import Visibility
from sessionsdb.types import SessionId, SessionSummary, Status, Value


class Output(Value):
    """The fields of every result."""

    scope: Visibility = Field(description="The sessions that you can see and act on.")
    truncated: bool = Field(description="Whether there is more than this result holds.")


class ShownMessage(Value):
    role: str
    content: str = Field(
        description="The text. A message of another agent is marked as such in it."
    )
    timestamp: datetime
    seq: int | None = Field(
        default=None, description="The number of the message in the transcript."
    )
    sender: SessionId | None = Field(
        default=None, description="The session whose agent sent the message."
    )
    author: str | None = Field(
        default=None, description="Who speaks, as the sender of the message says."
    )
    metadata: dict[str, Any] | None = Field(
        default=None,
        description="The JSON object that was given with the message. It gives no authority.",
    )
    length: int | None = Field(
        default=None, description="Of a message that was cut: the number of its characters."
    )
    next_offset: int | None = Field(
        default=None,
        description="Of a message that was cut: pass it as offset to sessions_history, with "
        "message=seq.",
    )
    note: str | None = Field(
        default=None,
        description="Of a message that is not whole here: the part in content and how to read the "
        "rest, and whether its metadata is left out.",
    )


class ShownOutcome(Value):
    session_id: SessionId
    position: int
    status: Status = Field(
        description="pending and running are unfinished, the others are finished."
    )
    attempts: int = Field(description="The number of turns that began to work on it.")
    reply: ShownMessage | None = Field(
        default=None,
        description="The answer if it is done, or the part of it before it was cancelled.",
    )
    error: str | None = Field(default=None, description="The error of the last attempt.")
    enqueued_at: datetime
    finished_at: datetime | None = None


class ReceiptOutput(Value):
    session_id: SessionId
    position: int


class ListOutput(Output):
    sessions: list[SessionSummary] = Field(description="Ordered by last_active, oldest first.")
    next_cursor: str | None = Field(
        default=None, description="Pass it as cursor to get the next page."
    )


class HistoryOutput(Output):
    session_id: SessionId
    messages: list[ShownMessage] = Field(description="Newest last.")
    next_before: int | None = Field(
        default=None, description="Pass it as before to read older messages."
    )
    next_after: int | None = Field(
        default=None, description="Pass it as after to read newer messages."
    )


class FoundMessage(Value):
    session_id: SessionId
    seq: int = Field(description="The number of the message in the transcript.")
    role: str
    snippet: str = Field(description="The part of the text with the first of the words.")
    created_at: datetime


class SearchOutput(Output):
    messages: list[FoundMessage] = Field(description="Newest first.")
    next_cursor: str | None = Field(
        default=None, description="Pass it as cursor to get the next page."
    )


class StatusOutput(Output):
    outcomes: list[ShownOutcome] = Field(description="In the order of the receipts.")


class WaitOutput(StatusOutput):
    complete: bool = Field(
        description="Whether all messages are finished, or with mode any at least one."
    )
    note: str | None = None


class SendOutput(Output):
    ok: bool
    session_id: SessionId
    position: int
    duplicate: bool = Field(
        description="Whether the idempotency_key was used before, so that nothing was sent."
    )


class SpawnOutput(Output):
    id: SessionId = Field(description="The new session.")
    receipt: ReceiptOutput = Field(
        description="The receipt of the prompt, for sessions_wait and sessions_status."
    )
    status: Status = Field(description="The present status of the prompt.")
    first_reply: ShownMessage | None = None
    error: str | None = Field(default=None, description="The error of the last attempt.")
    note: str | None = None


class ScheduleOutput(Output):
    schedule_id: str = Field(description="Pass it to sessions_unschedule to delete the schedule.")
    session_id: SessionId
    due_at: datetime = Field(description="When the message is sent next.")
    cron: str | None = None
    tz: str
    name: str | None = None


class UnscheduleOutput(Output):
    ok: bool
    schedule_id: str
    session_id: SessionId


class CancelOutput(Output):
    session_id: SessionId
    outcomes: list[ShownOutcome] = Field(
        description="The messages with their present status. Empty if the session is working on "
        "nothing."
    )
    note: str | None = Field(default=None, description="How many messages are not shown.")


class EndOutput(Output):
    ok: bool
    session_id: SessionId
    ended: int = Field(description="The number of sessions that this call ended.")

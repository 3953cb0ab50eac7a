"""What each tool returns, as an object: the structured content and its schema.

A field that has nothing to say is left out.
"""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from sessionsdb.tools.scope import Visibility
from sessionsdb.types import SessionId, SessionSummary, Status, Value


class Output(Value):
    """What every result says of itself."""

    scope: Visibility = Field(description="Which sessions you can see and act on.")
    truncated: bool = Field(description="Whether there is more than this result shows.")


class ShownMessage(Value):
    role: str
    content: str = Field(description="A message of another agent is marked as such in here.")
    timestamp: datetime
    seq: int | None = Field(default=None, description="Its place in the transcript.")
    sender: SessionId | None = Field(default=None, description="The session whose agent sent it.")
    length: int | None = Field(
        default=None, description="Of a message that was cut: all its characters."
    )
    next_offset: int | None = Field(
        default=None,
        description="Of a message that was cut: pass it to sessions_history with message=seq.",
    )


class ShownOutcome(Value):
    session_id: SessionId
    position: int
    status: Status = Field(description="pending and running are not finished, the others are.")
    attempts: int = Field(description="How often its session has begun to work on it.")
    reply: ShownMessage | None = Field(default=None, description="The answer, once it is done.")
    error: str | None = Field(default=None, description="Why the last attempt failed.")
    enqueued_at: datetime
    finished_at: datetime | None = None


class ReceiptOutput(Value):
    session_id: SessionId
    position: int


class ListOutput(Output):
    sessions: list[SessionSummary] = Field(description="The longest inactive first.")
    next_cursor: str | None = Field(
        default=None, description="Pass it as cursor for the next page."
    )


class HistoryOutput(Output):
    session_id: SessionId
    messages: list[ShownMessage] = Field(description="Newest last.")
    next_before: int | None = Field(
        default=None, description="Pass it as before for the page before."
    )
    next_after: int | None = Field(default=None, description="Pass it as after for the page after.")


class StatusOutput(Output):
    outcomes: list[ShownOutcome] = Field(description="In the order of the receipts.")


class WaitOutput(StatusOutput):
    complete: bool = Field(description="Whether what was waited for has come about.")
    note: str | None = None


class SendOutput(Output):
    ok: bool
    session_id: SessionId
    position: int
    duplicate: bool = Field(description="Whether this key was sent before; then nothing was sent.")


class SpawnOutput(Output):
    id: SessionId = Field(description="The new session.")
    receipt: ReceiptOutput = Field(description="For sessions_wait and sessions_status.")
    status: Status = Field(description="What has become of the prompt by now.")
    first_reply: ShownMessage | None = None
    error: str | None = Field(default=None, description="Why the first turn failed.")
    note: str | None = None


class EndOutput(Output):
    ok: bool
    session_id: SessionId
    ended: int = Field(description="How many sessions were ended; those that had before are not.")

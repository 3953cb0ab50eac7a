"""The bodies of responses that are no single value of ``sessionsdb.types``."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from sessionsdb.types import (
    OpenQuestion,
    Outcome,
    Schedule,
    SearchHit,
    SessionDetails,
    SessionMessage,
    SessionRecord,
    SessionSummary,
    TranscriptEntry,
)


class Sessions(BaseModel):
    sessions: list[SessionSummary | SessionDetails]
    next: str | None = Field(default=None, description="Pass it as `after` for the next page.")


class Records(BaseModel):
    sessions: list[SessionRecord]


class History(BaseModel):
    messages: list[SessionMessage]


class Transcript(BaseModel):
    messages: list[dict[str, Any]]
    version: int


class Entries(BaseModel):
    entries: list[TranscriptEntry]


class Version(BaseModel):
    version: int


class Popped(BaseModel):
    messages: list[dict[str, Any]]


class Outcomes(BaseModel):
    outcomes: list[Outcome]


class Inbox(Outcomes):
    next: int | None = Field(default=None, description="Pass it as `after` for the next page.")


class Questions(BaseModel):
    questions: list[OpenQuestion]
    next: str | None = Field(default=None, description="Pass it as `after` for the next page.")


class Schedules(BaseModel):
    schedules: list[Schedule]


class Hits(BaseModel):
    hits: list[SearchHit]
    next: str | None = Field(default=None, description="Pass it as `after` for the next page.")


class Ended(BaseModel):
    ended: int = Field(description="How many sessions were ended.")


class Requeued(BaseModel):
    requeued: int = Field(description="How many messages were requeued.")

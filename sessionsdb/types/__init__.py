"""The values that callers pass and receive: frozen pydantic models and their wire form.

``model_dump`` and ``model_dump_json`` leave out fields that are ``None``. Ids are plain strings.
Timestamps are ISO 8601 in UTC.
"""

from sessionsdb.types.base import Count, Number, Seconds, SessionId, Value
from sessionsdb.types.handles import DEFAULT_LIMITS, DEFAULT_NAMESPACE, Durability, Limits
from sessionsdb.types.inbox import (
    FINAL_STATUSES,
    Answer,
    AnswerStatus,
    CatchUp,
    OpenQuestion,
    Outcome,
    Question,
    Receipt,
    Schedule,
    Status,
    StoppedBy,
    WhenBusy,
)
from sessionsdb.types.sessions import (
    Children,
    ForkPoint,
    ListOptions,
    Report,
    SessionDetails,
    SessionRecord,
    SessionSummary,
    Settings,
    SpawnedSession,
    SpawnRequest,
)
from sessionsdb.types.transcripts import (
    DEFAULT_HISTORY_LIMIT,
    Edit,
    Edited,
    SearchHit,
    SessionMessage,
    State,
    StateScope,
    TranscriptEntry,
)

__all__ = [
    "DEFAULT_HISTORY_LIMIT",
    "DEFAULT_LIMITS",
    "DEFAULT_NAMESPACE",
    "FINAL_STATUSES",
    "Answer",
    "AnswerStatus",
    "CatchUp",
    "Children",
    "Count",
    "Durability",
    "Edit",
    "Edited",
    "ForkPoint",
    "Limits",
    "ListOptions",
    "Number",
    "OpenQuestion",
    "Outcome",
    "Question",
    "Receipt",
    "Report",
    "Schedule",
    "SearchHit",
    "Seconds",
    "SessionDetails",
    "SessionId",
    "SessionMessage",
    "SessionRecord",
    "SessionSummary",
    "Settings",
    "SpawnRequest",
    "SpawnedSession",
    "State",
    "StateScope",
    "Status",
    "StoppedBy",
    "TranscriptEntry",
    "Value",
    "WhenBusy",
]

"""Durable sessions of AI agents in SQL: transcripts, trees of spawned sessions, and inboxes."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sessionsdb.database import SessionsDB
    from sessionsdb.errors import (
        CircularWait,
        DamagedValue,
        HandleOpenedElsewhere,
        HopLimitReached,
        IdempotencyConflict,
        InboxFull,
        InvalidArgument,
        InvalidCursor,
        InvalidMessage,
        InvalidSessionId,
        LeaseLost,
        QuestionAnswered,
        QuestionClosed,
        RetryAfter,
        SchemaOutOfDate,
        SearchUnavailable,
        SessionBusy,
        SessionEnded,
        SessionExists,
        SessionHasChildren,
        SessionsDBError,
        SpawnDenied,
        StorageError,
        TranscriptRewritten,
        UnknownQuestion,
        UnknownReceipt,
        UnknownSession,
        VersionConflict,
    )
    from sessionsdb.events import (
        DataEvent,
        DeletedEvent,
        DeltaEvent,
        EndedEvent,
        Event,
        IdleEvent,
        MessageEvent,
        QueuedEvent,
        ResetEvent,
        RewrittenEvent,
        TurnEvent,
    )
    from sessionsdb.protocols import SessionBroker, SessionStore
    from sessionsdb.types import (
        Answer,
        Edit,
        Edited,
        ForkPoint,
        Limits,
        ListOptions,
        OpenQuestion,
        Outcome,
        Question,
        Receipt,
        Schedule,
        SearchHit,
        SessionDetails,
        SessionId,
        SessionMessage,
        SessionRecord,
        SessionSummary,
        Settings,
        SpawnedSession,
        SpawnRequest,
        State,
        TranscriptEntry,
    )
    from sessionsdb.worker import Backoff, Handler, Reply, Retry, Turn, Worker

__all__ = [
    "Answer",
    "Backoff",
    "CircularWait",
    "DamagedValue",
    "DataEvent",
    "DeletedEvent",
    "DeltaEvent",
    "Edit",
    "Edited",
    "EndedEvent",
    "Event",
    "ForkPoint",
    "HandleOpenedElsewhere",
    "Handler",
    "HopLimitReached",
    "IdempotencyConflict",
    "IdleEvent",
    "InboxFull",
    "InvalidArgument",
    "InvalidCursor",
    "InvalidMessage",
    "InvalidSessionId",
    "LeaseLost",
    "Limits",
    "ListOptions",
    "MessageEvent",
    "OpenQuestion",
    "Outcome",
    "Question",
    "QuestionAnswered",
    "QuestionClosed",
    "QueuedEvent",
    "Receipt",
    "Reply",
    "ResetEvent",
    "Retry",
    "RetryAfter",
    "RewrittenEvent",
    "Schedule",
    "SchemaOutOfDate",
    "SearchHit",
    "SearchUnavailable",
    "SessionBroker",
    "SessionBusy",
    "SessionDetails",
    "SessionEnded",
    "SessionExists",
    "SessionHasChildren",
    "SessionId",
    "SessionMessage",
    "SessionRecord",
    "SessionStore",
    "SessionSummary",
    "SessionsDB",
    "SessionsDBError",
    "Settings",
    "SpawnDenied",
    "SpawnRequest",
    "SpawnedSession",
    "State",
    "StorageError",
    "TranscriptEntry",
    "TranscriptRewritten",
    "Turn",
    "TurnEvent",
    "UnknownQuestion",
    "UnknownReceipt",
    "UnknownSession",
    "VersionConflict",
    "Worker",
]

# A public name is imported at its first use (PEP 562), so that a command that prints its help does
# not wait for SQLAlchemy. The modules are searched in this order, those that import less first.
_MODULES = ("errors", "types", "events", "protocols", "database", "worker")

# Found without a search, which would import the events: a 30th of a short command.
_PLACES = {"SessionsDB": ("database",)}


def __getattr__(name: str) -> Any:
    if name in __all__:
        for module in _PLACES.get(name, _MODULES):
            found = getattr(import_module(f"{__name__}.{module}"), name, None)
            if found is not None:
                globals()[name] = found
                return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

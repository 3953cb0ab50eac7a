"""Durable sessions of AI agents in SQL: transcripts, trees of spawned sessions, and inboxes."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sessionsdb.database import SessionsDB
    from sessionsdb.errors import (
        CircularWait,
        HandleOpenedElsewhere,
        HopLimitReached,
        IdempotencyConflict,
        InboxFull,
        InvalidArgument,
        InvalidMessage,
        InvalidSessionId,
        LeaseLost,
        RetryAfter,
        SchemaOutOfDate,
        SessionBusy,
        SessionEnded,
        SessionExists,
        SessionHasChildren,
        SessionsDBError,
        SpawnDenied,
        StorageError,
        TranscriptRewritten,
        UnknownReceipt,
        UnknownSession,
        VersionConflict,
    )
    from sessionsdb.protocols import SessionBroker, SessionStore
    from sessionsdb.types import (
        ForkPoint,
        Limits,
        ListOptions,
        Outcome,
        Receipt,
        SessionDetails,
        SessionId,
        SessionMessage,
        SessionRecord,
        SessionSummary,
        Settings,
        SpawnedSession,
        SpawnRequest,
        State,
    )
    from sessionsdb.worker import Backoff, Handler, Reply, Retry, Turn, Worker

__all__ = [
    "Backoff",
    "CircularWait",
    "ForkPoint",
    "HandleOpenedElsewhere",
    "Handler",
    "HopLimitReached",
    "IdempotencyConflict",
    "InboxFull",
    "InvalidArgument",
    "InvalidMessage",
    "InvalidSessionId",
    "LeaseLost",
    "Limits",
    "ListOptions",
    "Outcome",
    "Receipt",
    "Reply",
    "Retry",
    "RetryAfter",
    "SchemaOutOfDate",
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
    "TranscriptRewritten",
    "Turn",
    "UnknownReceipt",
    "UnknownSession",
    "VersionConflict",
    "Worker",
]

# A public name is imported at its first use (PEP 562), so that a command that prints its help does
# not wait for SQLAlchemy. The modules are searched in this order, those that import less first.
_MODULES = ("errors", "types", "protocols", "database", "worker")


def __getattr__(name: str) -> Any:
    if name in __all__:
        for module in _MODULES:
            found = getattr(import_module(f"{__name__}.{module}"), name, None)
            if found is not None:
                globals()[name] = found
                return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""The operations on the tables: plain functions of a synchronous SQLAlchemy ``Connection``.

An operation reads and writes through its connection and never commits: the caller decides about the
transaction. A hot operation takes a list of requests and returns a result or an error for each, so
that a bad request fails alone.

A write ``x`` whose answer can be lost with the connection has a partner ``find_x``, for example
``send`` and ``find_sent``. The partner is given the same request, and returns the result of the
write if it was committed, ``None`` if not.

Statements that differ by database are in ``sqlite/`` and ``postgresql/``, behind ``dialect.py``.

The modules that the broker and the store use are attributes of the package, and each is imported at
its first use (PEP 562). A command uses one or two of them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sessionsdb.operations import (
        busy_send,
        editing,
        entries,
        forking,
        history,
        history_page,
        inbox_page,
        inbox_types,
        mailbox,
        outcomes,
        question_answers,
        question_list,
        question_rows,
        registry,
        replayed,
        requeuing,
        saving,
        schedules,
        search,
        search_types,
        session_changes,
        session_end,
        session_list,
        session_rows,
        spawning,
        state,
        stop_calls,
        transcript_types,
        transcripts,
        tree,
        wait_graph,
    )

__all__ = [
    "busy_send",
    "editing",
    "entries",
    "forking",
    "history",
    "history_page",
    "inbox_page",
    "inbox_types",
    "mailbox",
    "outcomes",
    "question_answers",
    "question_list",
    "question_rows",
    "registry",
    "replayed",
    "requeuing",
    "saving",
    "schedules",
    "search",
    "search_types",
    "session_changes",
    "session_end",
    "session_list",
    "session_rows",
    "spawning",
    "state",
    "stop_calls",
    "transcript_types",
    "transcripts",
    "tree",
    "wait_graph",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return import_module(f"{__name__}.{name}")  # which makes it an attribute of the package
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

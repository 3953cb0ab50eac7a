"""Every error is of the package, and documented for its call."""

from __future__ import annotations

from collections.abc import Iterator

from soak.history import History
from soak.tables import Tables
from soak.violation import Violation

ALWAYS = frozenset(("StorageError", "ConnectionLost", "GivenUp"))
"""The database failed, or the caller had no patience."""

POSSIBLE = {
    "send": {"InboxFull", "SessionEnded"},
    "send with order": {"InboxFull", "SessionEnded", "RolledBack"},
    "spawn": {"SpawnDenied", "SessionEnded"},
    "requeue": {"InvalidArgument", "SessionEnded", "UnknownReceipt", "UnknownSession"},
    "reopen": {"SpawnDenied"},
    "answer": {"UnknownQuestion", "QuestionAnswered", "QuestionClosed"},
    "save": {"VersionConflict"},
    "cut": {"VersionConflict"},
}


def check(history: History, _tables: Tables) -> Iterator[Violation]:
    deleted = history.deleted()
    for question in history.questions.values():
        error = question.error
        if error is None:
            continue
        session = str(question.asked.get("session", ""))
        text = f"{question.op} was answered with {error}: {question.answer.get('why')}"
        if question.answer.get("foreign"):
            yield Violation("typed errors", session, text)
        elif error == "SessionBusy" and question.asked.get("when_busy") == "reject":
            continue
        elif (
            error not in ALWAYS | POSSIBLE.get(question.op, set()) and session not in deleted
        ) or (error == "SessionEnded" and session.startswith("chat-")):
            yield Violation("unknown", session, text)
    for crash in history.crashes:
        yield Violation("alive", "", f"{crash['crash']} ended with {crash['code']}")
    if history.drained is None:
        yield Violation("drained", "", "messages were unfinished long after the last fault")

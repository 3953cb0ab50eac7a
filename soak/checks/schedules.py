"""Each scheduled message is sent once a due time, and not before it is due.

``inbox.py`` finds a message that is lost or doubled, if it has one due time.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

from soak.history import History
from soak.payloads import parsed
from soak.tables import Tables
from soak.violation import Violation


def check(history: History, tables: Tables) -> Iterator[Violation]:
    due = {
        parsed(question.asked["text"])["token"]: question.asked["due_at"]
        for question in history.of("schedule")
    }
    for row in tables.inbox:
        token = parsed(row["content"]).get("token")
        if token in due and row["enqueued_at"] < due[token]:
            text = f"{token} was due at {due[token]}, and sent at {row['enqueued_at']}"
            yield Violation("early", row["session_id"], text)
    yield from _each_minute(history, tables)
    for row in tables.schedules:
        yield Violation("drained", row["session_id"], f"a message is due since {row['due_at']}")


def _each_minute(history: History, tables: Tables) -> Iterator[Violation]:
    """A bell was rung once for each minute from its schedule to the removal of the schedule."""
    inbox = tables.by_session("inbox")
    hushed = {question.session: question for question in history.of("hush")}
    for question in history.of("ring"):
        session, last = question.session, hushed.get(question.session)
        if not question.ok or last is None or not last.ok:
            continue
        due = _minutes(question.answer["created_at"], last.asked["due_at"])
        rung = [row for row in inbox.get(session, []) if row["content"] == question.asked["text"]]
        # The next due time may have come while the schedule was removed.
        more = 1 if last.answer["by"] >= last.asked["due_at"] else 0
        if len(rung) < len(due):
            text = f"{len(due)} minutes have passed, and it was rung {len(rung)} times"
            yield Violation("lost", session, text)
        elif len(rung) > len(due) + more:
            text = f"{len(due)} minutes have passed, and it was rung {len(rung)} times"
            yield Violation("doubled", session, text)
        for moment, row in zip(due, rung, strict=False):
            if row["enqueued_at"] < moment:
                text = f"the message of {moment} was sent at {row['enqueued_at']}"
                yield Violation("early", session, text)


def _minutes(after: str, before: str) -> list[str]:
    """The full minutes between two moments, without both."""
    moment = datetime.fromisoformat(after).replace(second=0, microsecond=0)
    found = []
    while (told := f"{(moment := moment + timedelta(minutes=1)):%Y-%m-%d %H:%M:%S.%f}") < before:
        found.append(told)
    return found

"""Each scheduled message is sent once, and not before it is due.

``inbox.py`` finds a message that is lost or doubled.
"""

from __future__ import annotations

from collections.abc import Iterator

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
    for row in tables.schedules:
        yield Violation("drained", row["session_id"], f"a message is due since {row['due_at']}")

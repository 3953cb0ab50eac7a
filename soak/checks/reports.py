"""What came of a child is told to its parent once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from soak.history import History
from soak.payloads import is_report, parsed
from soak.tables import Row, Tables
from soak.violation import Violation


def check(history: History, tables: Tables) -> Iterator[Violation]:
    sessions = {row["id"]: row for row in tables.sessions}
    inbox = tables.by_session("inbox")
    told: dict[str, list[Row]] = defaultdict(list)
    for row in tables.inbox:
        if is_report(row["extra"]):
            told[row["sender"]].append(row)
    replies = {
        (row["session_id"], row["content"]) for row in tables.messages if row["role"] == "assistant"
    }
    for child, found in told.items():
        if child not in sessions or sessions[child]["report"] is None:
            yield Violation("unsent", found[0]["session_id"], f"{child} does not report")
    for child, row in sessions.items():
        if row["report"] is not None:
            yield from _reported(history, sessions, row, inbox[child], told[child])
            for report in told[child]:
                reply = parsed(report["content"])
                if reply and (child, report["content"]) not in replies:
                    text = f"its report is no reply of it: {report['content'][:80]}"
                    yield Violation("faithful", child, text)
    for question in history.of("spawn"):
        if question.ok and question.asked["reports"]:
            made = sessions.get(question.answer["child"])
            if made is not None and made["report"] is None:
                yield Violation("lost", made["id"], "it should report to its parent")


def _reported(
    history: History,
    sessions: dict[str, Row],
    child: Row,
    inbox: list[Row],
    told: list[Row],
) -> Iterator[Violation]:
    id, state = child["id"], child["report"]
    if len(told) > 1:
        yield Violation("doubled", id, f"it has reported {len(told)} times")
    if any(report["session_id"] != child["parent_id"] for report in told):
        yield Violation("atomic", id, "it has reported to a session that is not its parent")
    parent = sessions.get(child["parent_id"])
    if state == "sent" and not told and parent is not None:
        yield Violation("lost", id, "its report is marked as sent, and is not there")
    if state != "sent" and told:
        yield Violation("atomic", id, f"its report is there, and marked as {state}")
    gone = parent is None or parent["ended_at"] is not None or parent["id"] in history.reopened()
    if state == "dropped" and not gone:
        yield Violation("lost", id, "its report was dropped, and its parent is open")
    if state == "each" and (child["ended_at"] is not None or any(map(_came, inbox))):
        yield Violation("lost", id, "something came of it, and it has not reported")


def _came(message: Row) -> bool:
    """Whether a message has come to a reply, or is a prompt that died."""
    verb = parsed(message["content"]).get("verb")
    replied = message["status"] == "done" and verb not in ("none", "ask")
    return replied or (message["status"] == "dead" and message["position"] == 1)

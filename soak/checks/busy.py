"""A send to a busy session is rejected, or stops what runs."""

from __future__ import annotations

from collections.abc import Iterator

from soak.checks.leases import CLOCK_OF_THE_PROCESSES
from soak.history import History
from soak.payloads import parsed
from soak.tables import Row, Tables
from soak.violation import Violation


def check(history: History, tables: Tables, kind: str) -> Iterator[Violation]:
    if kind == CLOCK_OF_THE_PROCESSES and history.shifted:
        return  # the times of messages can't be compared
    ways = {}
    for question in history.of("send"):
        way = question.asked.get("when_busy", "queue")
        if way != "queue":
            ways[parsed(question.asked["text"])["token"]] = way
    requeued = {(q.session, q.asked["position"]) for q in history.of("requeue")}
    for session, inbox in tables.by_session("inbox").items():
        for row in inbox:
            way = ways.get(str(parsed(row["content"]).get("token")))
            if way is None:
                continue
            earlier = [
                one
                for one in inbox
                if one["position"] < row["position"]
                and one["finished_at"] is not None
                and one["finished_at"] > row["enqueued_at"]
                and (session, one["position"]) not in requeued
            ]
            yield from _free(row, earlier) if way == "reject" else _stopped(row, earlier)


def _free(row: Row, unfinished: list[Row]) -> Iterator[Violation]:
    if unfinished:
        text = f"message {row['position']} was accepted, and {_places(unfinished)} were unfinished"
        yield Violation("busy", row["session_id"], text)


def _stopped(row: Row, unfinished: list[Row]) -> Iterator[Violation]:
    """A turn that ran when the message came did not commit."""
    ran = [
        one
        for one in unfinished
        if one["status"] == "done" and one["claimed_at"] < row["enqueued_at"]
    ]
    if ran:
        text = f"message {row['position']} should have stopped {_places(ran)}"
        yield Violation("busy", row["session_id"], text)


def _places(rows: list[Row]) -> str:
    return ", ".join(f"{row['position']} ({row['status']})" for row in rows)

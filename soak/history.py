"""The history of a run, read from the journals: calls and answers, runs of handlers, faults."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from soak import journal
from soak.payloads import parsed

REFUSED = frozenset(
    (
        "InboxFull",
        "UnknownSession",
        "SessionEnded",
        "VersionConflict",
        "SpawnDenied",
        "IdempotencyConflict",
        "HopLimitReached",
        "UnknownReceipt",
        "InvalidArgument",
        "QuestionAnswered",
        "QuestionClosed",
        "UnknownQuestion",
        "SessionBusy",
        "RolledBack",
    )
)
"""Errors that promise that nothing was written, and a rollback of the caller."""

NEVER = float("inf")


@dataclass
class Question:
    """One call and its answer. ``told`` is ``None`` if the caller died before the answer."""

    id: str
    op: str
    at: float
    asked: dict[str, Any]
    told_at: float = NEVER
    told: dict[str, Any] | None = None
    error: str | None = None

    @property
    def ok(self) -> bool:
        return self.told is not None and self.error is None

    @property
    def refused(self) -> bool:
        return self.error in REFUSED

    @property
    def answer(self) -> dict[str, Any]:
        """The fields of the answer. Empty without an answer."""
        return self.told or {}

    @property
    def session(self) -> str:
        return str(self.asked["session"])

    @property
    def stops(self) -> Literal["cancel", "interrupt"] | None:
        """How the call may have stopped messages, if it may. A refused send has stopped none."""
        if self.op == "cancel":
            return "cancel"
        is_send = self.asked.get("when_busy") == "interrupt" and not self.refused
        return "interrupt" if self.op == "interrupt" or is_send else None


@dataclass
class SentMessage:
    """One message that a client sent, and all calls that tried to send it."""

    token: str
    session: str
    text: str
    key: str | None
    questions: list[Question] = field(default_factory=list)

    @property
    def answers(self) -> list[Question]:
        return [question for question in self.questions if question.ok]

    @property
    def refused(self) -> bool:
        """Whether every call promised that nothing was written."""
        return all(question.refused for question in self.questions)

    @property
    def began(self) -> float:
        return min(question.at for question in self.questions)

    @property
    def accepted(self) -> float:
        """The time of the first answer that accepted the message."""
        return min((question.told_at for question in self.answers), default=NEVER)


@dataclass
class Run:
    """One run of the handler."""

    id: str
    session: str
    positions: list[int]
    """The messages of the turn: first those that it began with, then those that it took."""
    attempt: int
    began: float
    shift: float = 0.0
    epoch: int | None = None
    """``None`` where the handler could not see its lease, or saw a successor's."""
    lease_until: str | None = None
    claimed_at: str | None = None
    ended: float = NEVER
    is_taking: bool = False
    """Whether the handler began to take messages. It records those that it got."""
    taken: list[int] = field(default_factory=list)
    how: str | None = None
    """``returned``, ``cancelled`` or the name of the error. ``None`` if the process was killed."""


@dataclass
class Fault:
    kind: str
    at: float
    fields: dict[str, Any]


@dataclass
class History:
    questions: dict[str, Question] = field(default_factory=dict)
    runs: dict[str, Run] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    hindered: int = 0
    crashes: list[dict[str, Any]] = field(default_factory=list)
    shifted: list[tuple[float, float]] = field(default_factory=list)
    """The intervals in which the wall clock of a process was wrong."""
    drained: float | None = None
    """The seconds from the last fault until no message was unfinished. ``None`` if never."""

    def of(self, *ops: str) -> list[Question]:
        return [question for question in self.questions.values() if question.op in ops]

    def sent_messages(self) -> dict[str, SentMessage]:
        """The messages of ``send`` (also in a caller's transaction), ``spawn``, ``answer`` and
        ``schedule``, by token."""
        found: dict[str, SentMessage] = {}
        for question in self.of("send", "send with order", "spawn", "answer", "schedule"):
            asked = question.asked
            token = parsed(asked["text"])["token"]
            message = found.setdefault(
                token, SentMessage(token, asked["session"], asked["text"], asked.get("key"))
            )
            message.questions.append(question)
        return found

    def deleted(self) -> set[str]:
        """Sessions that a client tried to delete, with or without an answer."""
        return {question.session for question in self.of("delete")}

    def reopened(self) -> set[str]:
        """Sessions that a client tried to reopen, with or without an answer."""
        return {question.session for question in self.of("reopen")}

    def stops(self, session: str, position: int, *, kept: bool = False) -> list[Question]:
        """The calls that may have stopped a message, or have kept its partial reply if ``kept``."""
        return [
            question
            for question in self.stops_in(session)
            if question.asked.get("position", position) == position
            and (question.asked.get("keep", True) or not kept)
        ]

    def stops_in(self, session: str) -> list[Question]:
        """The calls that may have stopped messages of a session, or a question."""
        return self._stops_of.get(session, [])

    @cached_property
    def _stops_of(self) -> dict[str, list[Question]]:
        found: dict[str, list[Question]] = {}
        for question in self.of("cancel", "interrupt", "send"):
            if question.stops:
                found.setdefault(question.session, []).append(question)
        return found

    def a_clock_was_wrong(self, since: float, until: float) -> bool:
        return any(begin <= until and end >= since for begin, end in self.shifted)


def read(folder: Path) -> History:
    history = History()
    shifting: dict[int, float] = {}
    # Each file is in order: an answer comes after its call.
    for entry in journal.read(folder):
        _read_call_or_run(history, entry)
        match entry:
            case {"fault": kind, "at": at}:
                history.faults.append(Fault(kind, at, entry))
            case {"hindered": _}:
                history.hindered += 1
            case {"shifting": number, "at": at}:
                shifting[number] = at
            case {"shifted": number, "at": at}:
                history.shifted.append((shifting.pop(number), at))
            case {"crash": _}:
                history.crashes.append(entry)
            case {"drained": seconds}:
                history.drained = seconds
    history.shifted += [(began, NEVER) for began in shifting.values()]
    return history


def _read_call_or_run(history: History, entry: dict[str, Any]) -> None:
    match entry:
        case {"ask": id, "op": op, "at": at}:
            history.questions[id] = Question(id, op, at, entry)
        case {"told": id, "at": at}:
            question = history.questions[id]
            question.told, question.told_at = entry, at
            question.error = entry.get("error")
        case {"begin": id, "at": at}:
            history.runs[id] = Run(
                id,
                entry["session"],
                entry["positions"],
                entry["attempt"],
                at,
                entry["shift"],
                entry.get("epoch"),
                entry.get("lease_until"),
                entry.get("claimed_at"),
            )
        case {"taking": id}:
            history.runs[id].is_taking = True
        case {"took": id, "positions": positions}:
            history.runs[id].taken += positions
            history.runs[id].positions += positions
        case {"end": id, "at": at, "how": how}:
            history.runs[id].ended, history.runs[id].how = at, how

"""What the journals say: questions and their answers, runs of the handler, faults."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from soak import journal
from soak.letters import parsed

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
        "RolledBack",
    )
)
"""Errors that promise that nothing was written, and the caller's own change of mind."""

NEVER = float("inf")


@dataclass
class Question:
    """One call: what was asked, and what was told if the caller lived to hear it."""

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
        """What was told; empty if nobody heard it."""
        return self.told or {}

    @property
    def session(self) -> str:
        return str(self.asked["session"])


@dataclass
class Letter:
    """One message that somebody wanted to send, however often it was asked for."""

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
        """When it was first told to be there."""
        return min((question.told_at for question in self.answers), default=NEVER)


@dataclass
class Run:
    """One run of the handler."""

    id: str
    session: str
    positions: list[int]
    attempt: int
    began: float
    shift: float = 0.0
    epoch: int | None = None
    """``None`` where the handler could not see its lease, or saw a successor's."""
    lease_until: str | None = None
    claimed_at: str | None = None
    ended: float = NEVER
    how: str | None = None
    """``returned``, ``cancelled`` or the name of what it raised; ``None`` if it was killed."""


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
    """When some process's wall clock was wrong."""
    drained: float | None = None
    """How many seconds after the last fault nothing was unfinished any more; ``None`` if never."""

    def of(self, *ops: str) -> list[Question]:
        return [question for question in self.questions.values() if question.op in ops]

    def letters(self) -> dict[str, Letter]:
        """By token, those of ``send``, alone or in the caller's transaction, and ``spawn``."""
        found: dict[str, Letter] = {}
        for question in self.of("send", "send with order", "spawn"):
            asked = question.asked
            token = parsed(asked["text"])["token"]
            letter = found.setdefault(
                token, Letter(token, asked["session"], asked["text"], asked.get("key"))
            )
            letter.questions.append(question)
        return found

    def deleted(self) -> set[str]:
        """Sessions that somebody tried to delete, whether or not it was answered."""
        return {question.session for question in self.of("delete")}

    def a_clock_was_wrong(self, since: float, until: float) -> bool:
        return any(begin <= until and end >= since for begin, end in self.shifted)


def read(folder: Path) -> History:
    history = History()
    shifting: dict[int, float] = {}
    # A file at a time, and each is in order: an answer comes after its question.
    for entry in journal.read(folder):
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
            case {"end": id, "at": at, "how": how}:
                history.runs[id].ended, history.runs[id].how = at, how
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

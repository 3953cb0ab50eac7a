"""The figures of a soak: calls, turns, faults and violations."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field
from typing import Any

from soak.checker import Verdict
from soak.history import History
from soak.plan import Plan
from soak.violation import Violation

ANSWERS = ("done", "refused", "failed", "unanswered")
"""The ends of a call. ``refused`` is an error that promises that nothing was written. ``failed`` is
any other error, or a caller that stopped waiting. ``unanswered`` means that the caller died."""


@dataclass
class Figures:
    kind: str
    seed: int
    seconds: float
    """From the beginning to the verdict."""
    operations: dict[str, dict[str, int]]
    """By operation, the number of calls with each end."""
    turns: dict[str, int]
    messages: dict[str, int]
    """Of inboxes, by their final state."""
    rows: dict[str, int]
    faults: dict[str, int]
    hindered: int
    """Faults that were tried again because another fault was in the way."""
    deaths: int
    """Processes that were killed, and replaced."""
    leases_compared: int
    overtaken: int
    """Handlers that were running, or dead, when the next worker got their session."""
    drained: float | None
    violations: list[Violation] = field(default_factory=list)

    @classmethod
    def of(cls, kind: str, plan: Plan, verdict: Verdict, deaths: int, seconds: float) -> Figures:
        history, tables = verdict.history, verdict.tables
        return cls(
            kind=kind,
            seed=plan.seed,
            seconds=round(seconds, 1),
            operations=_operations(history),
            turns=_turns(history),
            messages=dict(sorted(Counter(row["status"] for row in tables.inbox).items())),
            rows={
                name: len(getattr(tables, name))
                for name in ("sessions", "messages", "mailboxes", "inbox", "questions")
            },
            faults=dict(sorted(Counter(fault.kind for fault in history.faults).items())),
            hindered=history.hindered,
            deaths=deaths,
            leases_compared=verdict.leases_compared,
            overtaken=verdict.overtaken,
            drained=history.drained and round(history.drained, 1),
            violations=verdict.violations,
        )

    @property
    def calls(self) -> int:
        return sum(sum(answers.values()) for answers in self.operations.values())

    def as_json(self) -> dict[str, Any]:
        violations = [violation._asdict() for violation in self.violations]
        return {**asdict(self), "violations": violations}


def _operations(history: History) -> dict[str, dict[str, int]]:
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for question in history.questions.values():
        if question.ok:
            answer = "done"
        elif question.told is None:
            answer = "unanswered"
        else:
            answer = "refused" if question.refused else "failed"
        found[question.op][answer] += 1
    return {op: {answer: found[op][answer] for answer in ANSWERS} for op in sorted(found)}


def _turns(history: History) -> dict[str, int]:
    """How many runs of the handler began, and how they ended."""
    runs = history.runs.values()
    ends = Counter(
        "killed"
        if run.how is None
        else run.how
        if run.how in ("returned", "cancelled")
        else "failed"
        for run in runs
    )
    return {"begun": len(runs), **dict(sorted(ends.items()))}

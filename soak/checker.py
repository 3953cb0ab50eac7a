"""The checker reads journals and tables, and reports every broken promise.

The checker shares no code with the package, so that it cannot share its mistakes.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from soak import history as histories
from soak.checks import (
    answers,
    busy,
    forks,
    inbox,
    leases,
    questions,
    reads,
    reports,
    schedules,
    states,
    summaries,
    transcripts,
)
from soak.history import History
from soak.tables import Tables
from soak.violation import Violation


@dataclass
class Verdict:
    """The violations, and the data they were searched in."""

    violations: list[Violation]
    history: History
    tables: Tables
    leases_compared: int
    overtaken: int

    @property
    def by_rule(self) -> Counter[str]:
        return Counter(violation.rule for violation in self.violations)


def check(folder: Path, tables: Tables, kind: str) -> Verdict:
    """Check the journals in ``folder`` against the tables."""
    history = histories.read(folder)
    violations = [
        *answers.check(history, tables),
        *inbox.check(history, tables),
        *transcripts.check(history, tables),
        *leases.check(history, tables, kind),
        *summaries.check(history, tables),
        *reads.check(history, tables),
        *questions.check(history, tables),
        *schedules.check(history, tables),
        *reports.check(history, tables),
        *states.check(history, tables),
        *forks.check(history, tables),
        *busy.check(history, tables, kind),
    ]
    return Verdict(
        violations, history, tables, leases.compared(history, kind), leases.overtaken(history)
    )

"""What the doctor finds."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sessionsdb.types import Value

MAX_EXAMPLES = 5
"""How many of the things found are named; all are counted."""

Level = Literal["problem", "note"]
"""A ``note`` is good to know, and no reason to wake anybody."""


class Finding(Value):
    """One sort of thing that is wrong, however often it was found."""

    check: str
    """Its name: stable, for scripts."""
    level: Level = "problem"
    count: int = 1
    examples: list[str] = Field(default_factory=list)
    """The first few: which, and what is wrong with it."""
    meaning: str
    action: str
    """What to do."""
    mended: int = 0
    """How many of them ``fix`` has set right."""

    @property
    def open(self) -> bool:
        """Whether it is a problem that is still there."""
        return self.level == "problem" and self.mended < self.count


class HealthReport(Value):
    """A check of a whole database."""

    database: Literal["sqlite", "postgresql"]
    revision: str | None = None
    sessions: int = 0
    """How many sessions' books were checked."""
    findings: list[Finding] = Field(default_factory=list)

    @property
    def healthy(self) -> bool:
        """Whether nothing is wrong, or nothing any more."""
        return not any(finding.open for finding in self.findings)


def make_finding(
    check: str, examples: list[str], *, meaning: str, action: str, level: Level = "problem"
) -> list[Finding]:
    """A finding for these things; none if there are none."""
    if not examples:
        return []
    return [
        Finding(
            check=check,
            level=level,
            count=len(examples),
            examples=examples[:MAX_EXAMPLES],
            meaning=meaning,
            action=action,
        )
    ]

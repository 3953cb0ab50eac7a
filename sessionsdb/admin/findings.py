"""The findings of the doctor."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sessionsdb.types import Value

MAX_EXAMPLES = 5
"""Examples in one finding. All cases are counted."""

Level = Literal["problem", "note"]
"""A ``note`` is information, and leaves the database healthy."""


class Finding(Value):
    """One kind of problem, with all its cases."""

    check: str
    """The name of the check: stable, for scripts."""
    level: Level = "problem"
    count: int = 1
    """The number of cases."""
    examples: list[str] = Field(default_factory=list)
    """The first cases, at most 5: the row, and its fault."""
    meaning: str
    """The consequence of the problem."""
    action: str
    """The remedy."""
    mended: int = 0
    """The number of cases that ``fix`` repaired."""

    @property
    def open(self) -> bool:
        """Whether cases of a problem are left."""
        return self.level == "problem" and self.mended < self.count


class HealthReport(Value):
    """The result of a check of a whole database."""

    database: Literal["sqlite", "postgresql"]
    revision: str | None = None
    """The revision of the schema, ``None`` without our tables."""
    sessions: int = 0
    """The number of sessions that were checked."""
    findings: list[Finding] = Field(default_factory=list)

    @property
    def healthy(self) -> bool:
        """Whether no problem is left."""
        return not any(finding.open for finding in self.findings)


def make_finding(
    check: str, examples: list[str], *, meaning: str, action: str, level: Level = "problem"
) -> list[Finding]:
    """Return a list of one finding with these cases, or an empty list without cases."""
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

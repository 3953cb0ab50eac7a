"""Something that was promised and not kept."""

from __future__ import annotations

from typing import NamedTuple


class Violation(NamedTuple):
    rule: str
    """Which promise; the same word for the same promise everywhere."""
    session: str
    told: str
    """What was found, with the figures."""

"""A broken promise."""

from __future__ import annotations

from typing import NamedTuple


class Violation(NamedTuple):
    rule: str
    """The promise. Every promise has one word, everywhere."""
    session: str
    text: str
    """The finding, with the figures."""

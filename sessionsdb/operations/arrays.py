"""Rows turned into columns: what ``unnest`` takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def columns(rows: Sequence[Sequence[Any]], count: int) -> list[list[Any]]:
    """The ``count`` columns of ``rows``; empty ones where there are no rows."""
    if not rows:
        return [[] for _ in range(count)]
    return [list(column) for column in zip(*rows, strict=True)]

"""Rows turned into columns: what ``unnest`` takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

V = TypeVar("V")


def column(values: list[V]) -> list[V] | None:
    """The column, or NULL where it holds nothing: beside others ``unnest`` makes the same of it,
    and most messages have no sender, key, trace or payload. Each element costs the driver 1 µs."""
    return None if values.count(None) == len(values) else values  # type: ignore[arg-type]


def columns(rows: Sequence[Sequence[Any]], count: int) -> list[list[Any] | None]:
    """The ``count`` columns of ``rows``."""
    if not rows:
        return [None] * count
    return [column(list(each)) for each in zip(*rows, strict=True)]

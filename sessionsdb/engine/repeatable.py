"""Declare the writes that leave no stamp, with the reason why a lost answer does no harm."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

Declared = TypeVar("Declared", bound=Callable[..., Any])

REASONS: dict[Callable[..., Any], str] = {}
"""The declared operations, each with its reason."""


class UndeclaredWrite(TypeError):
    """A write without a stamp was not declared as ``repeatable``."""

    def __init__(self, operation: Callable[..., Any]) -> None:
        name = getattr(operation, "__qualname__", repr(operation))
        super().__init__(
            f"{name} leaves no stamp, so a lost answer can't be settled: run it by `write` or "
            "`write_exactly_once`, or declare it with @repeatable and the reason"
        )


def repeatable(reason: str) -> Callable[[Declared], Declared]:
    """Declare that an operation may be committed twice, or committed without its caller's
    knowledge."""

    def declare(operation: Declared) -> Declared:
        REASONS[operation] = reason
        return operation

    return declare


def require_repeatable(operation: Callable[..., Any]) -> None:
    """Raise ``UndeclaredWrite`` unless the operation was declared as ``repeatable``."""
    while isinstance(operation, partial):
        operation = operation.func
    if operation not in REASONS:
        raise UndeclaredWrite(operation)

"""Interleave operations: each stops after each of its statements, and lets the others run.

Transactions prevent this. The tests take the transactions out, to show the need for them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from typing import Any

import greenlet


class Cursor(sqlite3.Cursor):
    """Stops before each statement of an interleaved operation."""

    def execute(self, *arguments: Any) -> Cursor:
        _stop()
        return super().execute(*arguments)

    def executemany(self, *arguments: Any) -> Cursor:
        _stop()
        return super().executemany(*arguments)


class Connection(sqlite3.Connection):
    def cursor(self, factory: Any = Cursor) -> Any:
        return super().cursor(factory)


class _Operation(greenlet.greenlet):
    """One running operation."""


def _stop() -> None:
    here = greenlet.getcurrent()
    if isinstance(here, _Operation):
        assert here.parent is not None
        here.parent.switch()


def halfway(operation: Callable[[], Any]) -> Iterator[int]:
    """Run an operation with a stop after each of its statements except the last. Yields the number
    of executed statements. At each stop the database holds the state that a crash would leave."""
    running = _Operation(operation)
    running.switch()  # up to the first statement
    done = 0
    while not running.dead:
        running.switch()
        done += 1
        if not running.dead:
            yield done


def schedules(
    begin: Callable[[], None], operations: list[Callable[[], Any]]
) -> Iterator[tuple[list[int], list[Any]]]:
    """Run the operations in every order of their statements, each time from the beginning. Yields
    the order of the statements and the result of each operation."""
    prefix: list[int] = []
    while True:
        begin()
        taken, open_choices, results = _run(prefix, operations)
        yield taken, results
        while open_choices and taken[len(open_choices) - 1] == open_choices[-1][-1]:
            open_choices.pop()
        if not open_choices:
            return
        choices = open_choices[-1]
        place = len(open_choices) - 1
        prefix = [*taken[:place], choices[choices.index(taken[place]) + 1]]


def _run(
    prefix: list[int], operations: list[Callable[[], Any]]
) -> tuple[list[int], list[list[int]], list[Any]]:
    results: list[Any] = [None] * len(operations)
    running = {number: _Operation(operation) for number, operation in enumerate(operations)}
    taken: list[int] = []
    choices: list[list[int]] = []
    while running:
        choices.append(sorted(running))
        place = len(taken)
        chosen = prefix[place] if place < len(prefix) else choices[-1][0]
        taken.append(chosen)
        result = running[chosen].switch()
        if running[chosen].dead:
            results[chosen] = result
            del running[chosen]
    return taken, choices, results

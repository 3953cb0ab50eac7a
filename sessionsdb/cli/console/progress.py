"""A progress bar on standard error, if standard error is a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)

from sessionsdb.cli.console import output

Advance = Callable[[int], None]
"""Called with the number of units that were finished since the last call."""


@contextmanager
def progress(label: str, total: int | None) -> Iterator[Advance]:
    """Show a bar and yield the function that advances it."""
    console = output.console(stderr=True)
    if not console.is_terminal:
        yield lambda _: None
        return
    bar = Progress(
        SpinnerColumn(),
        TextColumn(label),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
    with bar:
        task = bar.add_task(label, total=total)
        yield lambda count: bar.advance(task, count)

"""A console of rich for text that other people wrote."""

from __future__ import annotations

from rich.console import Console


class PlainConsole(Console):
    """A console that raises ``BrokenPipeError`` instead of exiting."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError

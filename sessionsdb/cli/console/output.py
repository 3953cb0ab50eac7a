"""What commands print: text that is safe for a terminal, and JSON that is safe for a script.

Stored content is other people's text. Its control characters are shown escaped, so that it can't
move the cursor, change the title or hide what it says; and whatever the terminal's encoding can't
show is escaped too, so that no content makes a command fail.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.text import Text

PIPE_WIDTH = 32_768
"""Columns where no terminal sets a limit: what is piped on is not wrapped."""

# C0 but tab and newline, DEL, C1, line separators, bidi marks and overrides, lone surrogates.
_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)


class PlainConsole(Console):
    """A console that takes text as it is, and tells of a closed pipe instead of exiting."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def console(*, stderr: bool = False, width: int | None = None) -> Console:
    """A console on standard output or error as they are now."""
    made = PlainConsole(stderr=stderr, width=width, markup=False, emoji=False, highlight=False)
    if width is None and not made.is_terminal:
        made.width = PIPE_WIDTH
    return made


def never_fail_on_characters() -> None:
    """Escape what the terminal's encoding can't show, instead of failing on it."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(OSError, ValueError):
                stream.reconfigure(errors="backslashreplace")


def visible(text: str) -> str:
    """``text`` with its control characters escaped; tabs and newlines stay."""
    return _CONTROL.sub(_escaped, text)


def one_line(text: str) -> str:
    """``text`` on a single line, with its control characters escaped."""
    return visible(" ".join(text.split()))


def cell(text: str, style: str = "") -> Text:
    """``text`` as one cell of a table or one label of a tree."""
    return Text(visible(text.replace("\n", "\\n").replace("\t", "\\t")), style=style)


def moment(time: datetime) -> str:
    """A time for people: to the second, in UTC."""
    return time.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def counted(number: int, noun: str) -> str:
    """``1 message``, ``2 messages``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def wire(value: BaseModel) -> dict[str, Any]:
    """A value's wire form. Not ``model_dump_json``, which fails on lone surrogates."""
    return value.model_dump(mode="json")


def as_json(value: Any) -> str:
    """JSON in ASCII on one line: any terminal and any content."""
    return json.dumps(value, separators=(",", ":"), check_circular=False)


def say(text: str) -> None:
    """A line on standard output."""
    typer.echo(visible(text))


def note(text: str) -> None:
    """A line on standard error: about the output rather than part of it."""
    typer.echo(one_line(text), err=True)


def stdout_writer() -> Callable[[str], object]:
    """What writes text to standard output as it is; for what is ASCII already."""
    return (lambda _: None) if sys.stdout is None else sys.stdout.write


def print_json(value: BaseModel | dict[str, Any]) -> None:
    """One JSON object."""
    typer.echo(as_json(wire(value) if isinstance(value, BaseModel) else value))


def print_json_array(values: Iterable[BaseModel | dict[str, Any]]) -> None:
    """One JSON array, an item a line."""
    lines = [as_json(wire(value) if isinstance(value, BaseModel) else value) for value in values]
    typer.echo("[" + ",\n ".join(lines) + "]")


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"

"""Print text that is safe for a terminal, and JSON that is safe for a script.

Stored content comes from other people. Its control characters are escaped, so that it can't move
the cursor, change the window title or hide a part of itself. Characters outside the terminal's
encoding are escaped too, so that no content makes a command fail.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TextIO

import typer

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.console import Console
    from rich.text import Text

PIPE_WIDTH = 32_768
"""Columns of output that goes into a pipe or a file: wide enough to wrap no line."""

STOPPED = "(stopped here)"
"""Shown below the part of a reply that ``cancel`` or ``interrupt`` left."""

# C0 except tab and newline, DEL, C1, line separators, lone surrogates, and characters without a
# width. The latter are the category Cf (bidi marks, tags, soft hyphens), and fillers and selectors
# of other categories. The joiners U+200C and U+200D are no part of it: emoji and
# the writing of many languages need them, and they can't imitate a line.
_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u115f\u1160"
    "\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff0-\ufffb"
    "\ud800-\udfff\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)


def console(*, stderr: bool = False, width: int | None = None) -> Console:
    """Return a console on the current standard output or standard error."""
    from sessionsdb.cli.console.plain_console import PlainConsole  # rich takes 30 ms to import

    console = PlainConsole(stderr=stderr, width=width, markup=False, emoji=False, highlight=False)
    if width is None and not console.is_terminal:
        console.width = PIPE_WIDTH
    return console


def escape_unencodable() -> None:
    """Make both output streams escape characters outside their encoding, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(OSError, ValueError):
                stream.reconfigure(errors="backslashreplace")


def discard_unread_stderr() -> None:
    """Drop what is buffered for standard error if its reader went away.

    Python would fail to write it at the exit, and end with code 120 instead of the command's.
    """
    if sys.stderr is None:
        return
    try:
        sys.stderr.flush()
    except (OSError, ValueError):
        discard(sys.stderr)


def discard(stream: TextIO) -> None:
    """Drop what is buffered for a stream and all later output.

    Python flushes the buffer on exit, and would complain again that the write fails.
    """
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def visible(text: str) -> str:
    """Return ``text`` with its control characters escaped, except tabs and newlines."""
    return _CONTROL.sub(_escape, text)


def one_line(text: str) -> str:
    """Return ``text`` on a single line, with its control characters escaped."""
    return visible(" ".join(text.split()))


def cut(text: str, width: int) -> str:
    """Return ``text`` on one line of at most ``width`` columns, with an ellipsis if it is cut."""
    from rich.text import Text

    line = Text(one_line(text[: 4 * width]))
    line.truncate(width, overflow="ellipsis")
    return line.plain


def cell(text: str, style: str = "") -> Text:
    """Return ``text`` as one cell of a table or one label of a tree."""
    from rich.text import Text

    return Text(cell_text(text), style=style)


def cell_text(text: str) -> str:
    """Return ``text`` as the text of one cell or one label, on a single line."""
    return visible(text.replace("\n", "\\n").replace("\t", "\\t"))


def is_plain() -> bool:
    """Return whether standard output is a pipe or a file, which has no width and no style.

    The variables are those by which rich takes a pipe for a terminal.
    """
    if sys.stdout is not None and sys.stdout.isatty():
        return False
    return not any(name in os.environ for name in ("FORCE_COLOR", "TTY_COMPATIBLE"))


def format_time(time: datetime) -> str:
    """Return the time in UTC, to the second, for people."""
    return time.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def quantity(number: int, noun: str) -> str:
    """Return ``1 message`` or ``2 messages``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def wire_form(value: BaseModel) -> dict[str, Any]:
    """Return the fields of a value as JSON types.

    ``model_dump_json`` would fail on lone surrogates.
    """
    return value.model_dump(mode="json")


def as_json(value: Any) -> str:
    """Return JSON in ASCII on one line, which fits any terminal and any content."""
    return json.dumps(value, separators=(",", ":"), check_circular=False)


def say(text: str, style: str = "") -> None:
    """Print a line on standard output, on a terminal in a style of rich."""
    if style and sys.stdout is not None and sys.stdout.isatty():
        from rich.text import Text

        console().print(Text(visible(text), style=style), soft_wrap=True)
    else:
        typer.echo(visible(text))


def say_fitting(line: str, *lines: str, style: str = "") -> None:
    """Print ``line``, or ``lines`` instead if it is wider than the terminal.

    So an id stays on one line, and can be copied.
    """
    for one in (line,) if _fits(line) else lines:
        say(one, style)


def _fits(line: str) -> bool:
    if is_plain():
        return True
    from rich.cells import cell_len

    return cell_len(visible(line)) <= console().width


def prints_as_it_is(text: str) -> bool:
    """Return whether rich would print a text into a pipe unchanged: without tabs, not too long."""
    return "\t" not in text and 2 * len(text) < PIPE_WIDTH


def print_plain(text: str) -> None:
    """Print a text whose control characters are escaped already."""
    typer.echo(text)


def note(text: str) -> None:
    """Print a line about the output on standard error.

    A reader of standard error that went away changes nothing about the command.
    """
    with contextlib.suppress(OSError):
        typer.echo(one_line(text), err=True)


def stdout_writer() -> Callable[[str], object]:
    """Return a function that writes ASCII text to standard output unchanged.

    It writes nothing if standard output is closed.
    """
    return (lambda _: None) if sys.stdout is None else sys.stdout.write


def print_json(value: BaseModel | dict[str, Any]) -> None:
    """Print one JSON object."""
    typer.echo(as_json(value if isinstance(value, dict) else wire_form(value)))


def print_json_array(values: Iterable[BaseModel | dict[str, Any]]) -> None:
    """Print one JSON array, one item a line."""
    lines = [as_json(value if isinstance(value, dict) else wire_form(value)) for value in values]
    typer.echo("[" + ",\n ".join(lines) + "]")


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"

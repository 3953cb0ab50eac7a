"""An argument that may be ``-``, which means the text on standard input."""

from __future__ import annotations

import sys

from sessionsdb import InvalidMessage, Limits
from sessionsdb.cli.console.errors import report_errors

MAX_BYTES = Limits().message_bytes


def text_or_stdin(argument: str) -> str:
    """Return the argument, or standard input without its last line end.

    Typer calls this before an event loop runs, because Ctrl-C in a loop would not interrupt a
    blocking read.
    """
    with report_errors():
        if argument == "-":
            return _read_stdin()
        try:
            argument.encode()
        except UnicodeEncodeError as error:
            raise InvalidMessage("the text is not UTF-8") from error
    return argument


def _read_stdin() -> str:
    if sys.stdin is None:
        raise InvalidMessage("standard input is closed")
    data = sys.stdin.buffer.read(MAX_BYTES + 3)
    if len(data) > MAX_BYTES + 2:
        raise InvalidMessage(f"standard input is longer than the limit of {MAX_BYTES} bytes")
    try:
        return data.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise InvalidMessage(f"standard input is not UTF-8: {error}") from error

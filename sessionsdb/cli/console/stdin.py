"""An argument that may be ``-``: then it is what stands on standard input."""

from __future__ import annotations

import sys

from sessionsdb import InvalidMessage, Limits
from sessionsdb.cli.console.errors import report_errors

MAX_BYTES = Limits().message_bytes


def text_or_stdin(argument: str) -> str:
    """The argument as text, or standard input without its last line end.

    Called by typer before an event loop runs: Ctrl-C in a loop would not end a read that blocks.
    """
    with report_errors():
        if argument == "-":
            return _stdin()
        try:
            argument.encode()
        except UnicodeEncodeError as error:
            raise InvalidMessage("the text is not UTF-8") from error
    return argument


def _stdin() -> str:
    if sys.stdin is None:
        raise InvalidMessage("standard input is closed")
    given = sys.stdin.buffer.read(MAX_BYTES + 3)
    if len(given) > MAX_BYTES + 2:
        raise InvalidMessage(f"standard input is more than {MAX_BYTES} bytes, the limit")
    try:
        return given.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise InvalidMessage(f"standard input is not UTF-8: {error}") from error

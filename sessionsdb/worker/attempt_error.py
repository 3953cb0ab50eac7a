"""The text of a failed attempt's error, for the inbox and the log."""

from __future__ import annotations

import asyncio
import traceback
from pathlib import Path

from sessionsdb.messages.json_text import replace_unstorable

ERROR_CHARACTERS = 4_000
"""The error of a failed attempt is stored up to this length."""

TRACEBACK_LINES = 20

_WORKER_FOLDER = str(Path(__file__).parent)


def describe_error(error: BaseException) -> str:
    """Return the error's type and message, then the last lines of its traceback."""
    frame = error.__traceback__
    while frame is not None and frame.tb_frame.f_code.co_filename.startswith(_WORKER_FOLDER):
        frame = frame.tb_next  # the worker's own frames say nothing about the handler
    lines = "".join(traceback.format_tb(frame)).splitlines()[-TRACEBACK_LINES:]
    text = "\n".join([summarise_error(error), *lines])
    if len(text) > ERROR_CHARACTERS:
        text = text[:ERROR_CHARACTERS] + " … (cut)"
    return replace_unstorable(text)


def summarise_error(error: BaseException) -> str:
    """Return the error's type and message."""
    if type(error) is asyncio.CancelledError:
        words = "".join(f" ({word})" for word in error.args)
        return (
            "CancelledError: the turn was cancelled from inside the handler, not by the worker"
            f"{words}"
        )[: ERROR_CHARACTERS // 2]
    # Not str(error), which an error of the handler's own class may fail to make.
    return "".join(traceback.format_exception_only(error)).strip()[: ERROR_CHARACTERS // 2]

"""How a long-running command logs: lines for people, or JSON for collectors."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime

from sessionsdb.cli.console.output import visible


class Lines(logging.Formatter):
    """``2026-01-31 12:00:00 INFO turn committed: session=…``, safe for a terminal.

    A record is one line, whatever an id or an error in it holds: nobody can write a line that
    looks like another record. A traceback stands below its line.
    """

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%d %H:%M:%S")
        message = record.getMessage().replace("\n", "\\n")
        lines = [f"{time} {record.levelname} {message}"]
        if record.exc_info:
            lines.append(self.formatException(record.exc_info))
        return visible("\n".join(lines))


class JsonLines(logging.Formatter):
    """One object a line, in ASCII; what a record says of a turn is its own fields."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "turn", {}),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


def configure(*, verbose: bool, as_json: bool) -> None:
    """Log to standard error: warnings, and with ``verbose`` a line a turn."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if as_json else Lines())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("sessionsdb").setLevel(logging.INFO if verbose else logging.WARNING)

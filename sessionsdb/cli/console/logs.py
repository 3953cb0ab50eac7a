"""Logging of long-running commands: lines for people, or JSON for log collectors."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime

from sessionsdb.cli.console.output import visible


class LineFormatter(logging.Formatter):
    """Write ``2026-01-31 12:00:00 INFO turn committed: session=…``, safe for a terminal.

    A record is one line, even if an id or an error in it has line breaks. So no stored text can
    forge another record. A traceback follows below its line.
    """

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%d %H:%M:%S")
        message = record.getMessage().replace("\n", "\\n")
        lines = [f"{time} {record.levelname} {message}"]
        if record.exc_info:
            lines.append(self.formatException(record.exc_info))
        return visible("\n".join(lines))


class JsonFormatter(logging.Formatter):
    """Write one JSON object a line, in ASCII. The turn of a record adds fields of its own."""

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
    """Log warnings to standard error, and with ``verbose`` one line for each turn."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if as_json else LineFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("sessionsdb").setLevel(logging.INFO if verbose else logging.WARNING)

"""The file behind a SQLite URL."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from sessionsdb.engine import urls
from sessionsdb.errors import InvalidArgument


def sqlite_file(url: str) -> Path | None:
    """The file of a SQLite database; ``None`` for one in memory, and for PostgreSQL."""
    parsed = urls.parse(url)
    if urls.kind(parsed) != "sqlite" or urls.is_in_memory(parsed):
        return None
    name = str(parsed.database)
    if name.startswith("file:"):  # SQLite's own form, with options: https://sqlite.org/uri.html
        return Path(unquote(urlsplit(name).path))
    return Path(name)


def require_file(url: str) -> None:
    """Raises ``InvalidArgument`` for a SQLite file that is not there: to open it would make it."""
    file = sqlite_file(url)
    if file is not None and not file.exists():
        raise InvalidArgument(f"no database file {file}; name another one with --url")

"""From what a caller gives, a URL or an engine, to the kind of database behind it."""

from __future__ import annotations

import contextlib
from typing import Literal

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine

from sessionsdb.errors import InvalidArgument

Kind = Literal["sqlite", "postgresql"]

# Of asyncpg's, those that are text: a URL can say nothing else.
_PARAMETERS = frozenset(
    (
        *("host", "port", "user", "password", "passfile", "database", "service", "servicefile"),
        *("ssl", "sslmode", "target_session_attrs", "krbsrvname", "gsslib"),
        "prepared_statement_cache_size",
    )
)

BUSY_SECONDS = 10.0
"""How long a write to SQLite waits for another process's transaction, unless the URL says."""

_MOST_BUSY_SECONDS = 86_400

_DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg"}


def parse(url: str | URL) -> URL:
    """The URL with its async driver. Raises ``InvalidArgument`` for what we can't serve."""
    try:
        parsed = make_url(url)
    except (ArgumentError, TypeError, ValueError) as error:
        raise InvalidArgument(
            f"not a database URL: {url!r:.80}; write sqlite:///FILE or postgresql://USER@HOST/NAME"
        ) from error
    name = "postgresql" if parsed.drivername == "postgres" else parsed.drivername
    name = _DRIVERS.get(name, name)
    if name not in _DRIVERS.values():
        raise InvalidArgument(
            f"no support for {parsed.drivername} databases; use sqlite:// or postgresql:// "
            f"(their drivers are {' and '.join(_DRIVERS.values())})"
        )
    url = parsed.set(drivername=name)
    if kind(url) == "sqlite":
        busy_seconds(url)
        return url
    return _for_asyncpg(url)


def busy_seconds(url: URL) -> float:
    """How long a write to SQLite waits for another process's transaction before it fails: the
    URL's ``timeout``. Raises ``InvalidArgument``."""
    given = url.query.get("timeout")
    if given is None:
        return BUSY_SECONDS
    with contextlib.suppress(TypeError, ValueError):
        seconds = float(given)  # type: ignore[arg-type]
        if 0 <= seconds <= _MOST_BUSY_SECONDS:
            return seconds
    raise InvalidArgument(
        f"timeout in the database URL must be between 0 and {_MOST_BUSY_SECONDS:,} seconds, "
        f"not {given!r:.60}"
    )


def _for_asyncpg(url: URL) -> URL:
    """What libpq calls ``sslmode``, asyncpg calls ``ssl``; URLs at hand say the former. What it
    has no word for would be a ``TypeError`` at the first connection."""
    unknown = sorted(set(url.query) - _PARAMETERS)
    if unknown:
        raise InvalidArgument(
            f"the database URL has parameters that can't be given there: {', '.join(unknown)}; "
            f"these can: {', '.join(sorted(_PARAMETERS))}. For others make an AsyncEngine with "
            "connect_args"
        )
    mode = url.query.get("sslmode")
    if mode is None:
        return url
    return url.difference_update_query(["sslmode"]).update_query_dict({"ssl": mode})


def kind(url: URL) -> Kind:
    return "sqlite" if url.get_backend_name() == "sqlite" else "postgresql"


def check_engine(engine: AsyncEngine) -> Kind:
    """The kind of database of a caller's engine. Raises ``InvalidArgument`` for other drivers."""
    driver = f"{engine.dialect.name}+{engine.dialect.driver}"
    if driver not in _DRIVERS.values():
        raise InvalidArgument(
            f"no support for an engine over {driver}; use {' or '.join(_DRIVERS.values())}"
        )
    return kind(engine.url)


def in_memory(url: URL) -> bool:
    """Whether it is a SQLite database that lives in one connection."""
    return url.database in (None, "", ":memory:")

"""From what a caller gives, a URL or an engine, to the kind of database behind it."""

from __future__ import annotations

from typing import Literal

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine

from sessionsdb.errors import InvalidArgument

Kind = Literal["sqlite", "postgresql"]

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
    if name in _DRIVERS:
        return _renamed(parsed.set(drivername=_DRIVERS[name]))
    if name not in _DRIVERS.values():
        raise InvalidArgument(
            f"no support for {parsed.drivername} databases; use sqlite:// or postgresql:// "
            f"(their drivers are {' and '.join(_DRIVERS.values())})"
        )
    return parsed


def _renamed(url: URL) -> URL:
    """What libpq calls ``sslmode``, asyncpg calls ``ssl``; URLs at hand say the former."""
    mode = url.query.get("sslmode")
    if mode is None or kind(url) == "sqlite":
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

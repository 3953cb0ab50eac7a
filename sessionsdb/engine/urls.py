"""From what a caller gives, a URL or an engine, to the kind of database behind it."""

from __future__ import annotations

import contextlib
import re
from typing import Literal

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine

from sessionsdb import validation
from sessionsdb.errors import InvalidArgument

Kind = Literal["sqlite", "postgresql"]

# Of asyncpg's, those that are text: a URL can say nothing else. And libpq's two that we heed.
_PARAMETERS = frozenset(
    (
        *("host", "port", "user", "password", "passfile", "database", "service", "servicefile"),
        *("ssl", "sslmode", "target_session_attrs", "krbsrvname", "gsslib"),
        *("connect_timeout", "tcp_user_timeout"),
        "prepared_statement_cache_size",
    )
)

# Of sqlite3's, and with uri=true of SQLite's own. How transactions begin is ours.
_SQLITE_PARAMETERS = frozenset(("timeout", "cached_statements", "uri"))
_SQLITE_URI_PARAMETERS = frozenset(
    ("mode", "cache", "vfs", "immutable", "nolock", "psow", "modeof")
)

BUSY_SECONDS = 10.0
"""How long a write to SQLite waits for another process's transaction, unless the URL says."""

_MOST_BUSY_SECONDS = 86_400

DEFAULT_PORT = 5432

# libpq's way to give several hosts: postgresql://USER@HOST:PORT,HOST:PORT/NAME
_SEVERAL_HOSTS = re.compile(
    r"(?P<head>postgres(?:ql)?(?:\+\w+)?://(?:[^/?]*@)?)(?P<hosts>[^/?@]*,[^/?@]*)(?P<rest>/?[^?]*)"
    r"(?:\?(?P<query>.*))?",
    re.DOTALL,
)
_HOST_AND_PORT = re.compile(r"(?P<host>\[[^\]]+\]|/[^:]*|[^:/\[\]]+)(?::(?P<port>\d+))?")

_DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg"}


def parse(url: str | URL) -> URL:
    """The URL with its async driver. Raises ``InvalidArgument`` for what we can't serve."""
    if not validation.is_instance(url, str, URL):
        raise InvalidArgument(
            "the database must be a URL or an SQLAlchemy AsyncEngine, not a "
            f"{type(url).__name__}; write sqlite:///FILE or postgresql://USER@HOST/NAME"
        )
    try:
        if validation.is_instance(url, str):
            url = validation.plain_text(url)
            _refuse_unstorable(url)
            url = _with_hosts_in_the_query(url)
        parsed = make_url(url)
        _refuse_unstorable(*(str(part) for part in parsed[:6]))  # %00 is a NUL by now
    except InvalidArgument:
        raise
    except (ArgumentError, TypeError, ValueError) as error:
        raise InvalidArgument(
            f"not a database URL: {_shown(url)}; write sqlite:///FILE or postgresql://USER@HOST/NAME"
        ) from error
    name = "postgresql" if parsed.drivername == "postgres" else parsed.drivername
    name = _DRIVERS.get(name, name)
    if name not in _DRIVERS.values():
        raise InvalidArgument(
            f"no support for {parsed.drivername} databases; use sqlite:// or postgresql:// "
            f"(their drivers are {' and '.join(_DRIVERS.values())})"
        )
    url = parsed.set(drivername=name)
    return _for_sqlite(url) if kind(url) == "sqlite" else _for_asyncpg(url)


def _shown(url: object) -> str:
    return f"{url!r:.80}" if type(url) is str else f"a {type(url).__name__}"


def _refuse_unstorable(*texts: str) -> None:
    if not all(validation.is_storable(text) for text in texts):
        raise InvalidArgument(
            "the database URL holds a NUL or what is not UTF-8; names of files, too, must be UTF-8"
        )


def _for_sqlite(url: URL) -> URL:
    known = _SQLITE_PARAMETERS
    if url.query.get("uri") == "true":
        known |= _SQLITE_URI_PARAMETERS
        named = str(url.database or "").removeprefix("file:")
        if named in ("", ":memory:") or url.query.get("mode") == "memory":
            # Each connection would have a database of its own.
            raise InvalidArgument("write sqlite:// for a database in memory, without uri=true")
    _refuse_unknown(url, known)
    busy_seconds(url)
    _check_number("cached_statements", url.query.get("cached_statements"))
    return url


def _refuse_unknown(url: URL, known: frozenset[str]) -> None:
    unknown = sorted(set(url.query) - known)
    if unknown:
        raise InvalidArgument(
            f"the database URL has parameters that can't be given there: {', '.join(unknown)}; "
            f"these can: {', '.join(sorted(known))}. For others make an AsyncEngine with "
            "connect_args"
        )


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
    _refuse_unknown(url, _PARAMETERS)
    for parameter in ("connect_timeout", "tcp_user_timeout", "prepared_statement_cache_size"):
        _check_number(parameter, url.query.get(parameter))
    url = _with_each_port(url)
    mode = url.query.get("sslmode")
    if mode is None:
        return url
    return url.difference_update_query(["sslmode"]).update_query_dict({"ssl": mode})


def _with_hosts_in_the_query(url: str) -> str:
    """SQLAlchemy knows several hosts only as parameters."""
    several = _SEVERAL_HOSTS.fullmatch(url)
    if several is None:
        return url
    query = f"host={several['hosts']}"
    if several["query"]:
        query += f"&{several['query']}"
    return f"{several['head']}{several['rest'] or '/'}?{query}"


def _with_each_port(url: URL) -> URL:
    """Several hosts, in whichever form they were given, as two lists of one length. Raises
    ``InvalidArgument`` when they can't be told apart."""
    given = url.query.get("host", ())
    hosts = given.split(",") if isinstance(given, str) else [h for g in given for h in g.split(",")]
    if len(hosts) < 2:
        return url
    matches = [_HOST_AND_PORT.fullmatch(host) for host in hosts]
    given = url.query.get("port", ())
    ports = given.split(",") if isinstance(given, str) else list(given)
    if len(ports) == 1:
        ports *= len(hosts)
    if url.host or not all(matches) or len(ports) not in (0, len(hosts)):
        raise InvalidArgument(
            f"the hosts of the database URL are not clear: {', '.join(hosts)}; write "
            "postgresql://USER@HOST:PORT,HOST:PORT/NAME"
        )
    found = [match for match in matches if match is not None]
    listed = ports or [match["port"] or str(DEFAULT_PORT) for match in found]
    return url.update_query_dict(
        {"host": ",".join(match["host"].strip("[]") for match in found), "port": ",".join(listed)}
    )


def _check_number(parameter: str, value: str | tuple[str, ...] | None) -> None:
    if value is not None and not (isinstance(value, str) and value.isdecimal()):
        raise InvalidArgument(f"{parameter} in the database URL must be a whole number")


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

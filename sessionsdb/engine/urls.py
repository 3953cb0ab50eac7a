"""Check the URL or the engine of a caller, and tell which kind of database it is for."""

from __future__ import annotations

import contextlib
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from sessionsdb import validation
from sessionsdb.engine.dialect import Kind, kind_of
from sessionsdb.errors import InvalidArgument
from sessionsdb.untrusted_values import is_instance, is_storable, plain_text

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

# The parameters of asyncpg whose values are text, since a URL holds only text. And two of libpq:
# `connect_timeout` and `tcp_user_timeout`, which `HostList` takes.
_PARAMETERS = frozenset(
    (
        *("host", "port", "user", "password", "passfile", "database", "service", "servicefile"),
        *("ssl", "sslmode", "target_session_attrs", "krbsrvname", "gsslib"),
        *("connect_timeout", "tcp_user_timeout"),
        *("prepared_statement_cache_size", "schema"),
    )
)

# The parameters of Python's sqlite3, except `isolation_level`, which this package sets. With
# uri=true also those of SQLite.
_SQLITE_PARAMETERS = frozenset(("timeout", "cached_statements", "uri"))
_SQLITE_URI_PARAMETERS = frozenset(
    ("mode", "cache", "vfs", "immutable", "nolock", "psow", "modeof")
)

BUSY_SECONDS = 10.0
"""How long a write to SQLite waits for another transaction, unless the URL has a ``timeout``."""

_MAX_BUSY_SECONDS = 86_400

DEFAULT_PORT = 5432

STANDBY_CONNECT_SECONDS = 2
"""How long a standby may take to accept a connection, unless the URL has a ``connect_timeout``."""

# libpq's form for several hosts: postgresql://USER@HOST:PORT,HOST:PORT/NAME
_SEVERAL_HOSTS = re.compile(
    r"(?P<head>postgres(?:ql)?(?:\+\w+)?://(?:[^/?]*@)?)(?P<hosts>[^/?@]*,[^/?@]*)"
    r"(?P<rest>(?:/[^?]*)?)(?:\?(?P<query>.*))?",
    re.DOTALL,
)
_HOST_AND_PORT = re.compile(r"(?P<host>\[[^\]]+\]|/[^:]*|[^:/\[\]]+)(?::(?P<port>\d+))?")

_NAMES_ARE_DECODED = make_url("sqlite:///%25").database == "%"
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+]{0,40}://")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_+]{0,40}")
_EMPTY_SCHEMA = re.compile(r"[?&]schema(=?)(&|\Z)")

_DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg"}


def parse(url: str | URL) -> URL:
    """Return the URL with its async driver.

    Raises ``InvalidArgument`` for other databases, unknown parameters and malformed URLs.
    """
    if not is_instance(url, str, URL):
        raise InvalidArgument(
            "the database must be a URL or an SQLAlchemy AsyncEngine, not a "
            f"{type(url).__name__}; write sqlite:///FILE or postgresql://USER@HOST/NAME"
        )
    try:
        if is_instance(url, str):
            url = plain_text(url)
            _refuse_unstorable(url)
            if _EMPTY_SCHEMA.search(url):
                # SQLAlchemy leaves out a parameter without a value. Then the tables of another
                # schema would be used.
                raise InvalidArgument(
                    "schema in the database URL is empty; name one, or leave it out"
                )
            url = _with_hosts_in_query(url)
        parsed = _parsed(url)
        _refuse_unstorable(*(str(part) for part in parsed[:6]))  # make_url has decoded %00
        if "@" in (parsed.host or ""):
            raise ValueError  # the rest of a password with an unescaped "@"
    except InvalidArgument:
        raise
    except (ArgumentError, TypeError, ValueError):
        # Without its cause, which quotes parts of the URL.
        raise InvalidArgument(
            f"not a database URL: {_shown(url)}; write sqlite:///FILE or "
            "postgresql://USER:PASSWORD@HOST/NAME, with %40 for @, %2F for / and %3F for ? in the "
            "password"
        ) from None
    name = "postgresql" if parsed.drivername == "postgres" else parsed.drivername
    name = _DRIVERS.get(name, name)
    if name not in _DRIVERS.values():
        raise InvalidArgument(
            f"no support for {_named(parsed.drivername)} databases; use sqlite:// or postgresql:// "
            f"(their drivers are {' and '.join(_DRIVERS.values())})"
        )
    url = parsed.set(drivername=name)
    return _check_sqlite_url(url) if kind(url) == "sqlite" else _as_asyncpg_url(url)


def _parsed(url: str | URL) -> URL:
    """Parse a URL. ``%`` escapes in the database's name are decoded, which SQLAlchemy 2.0 does not
    do."""
    parsed = make_url(url)
    if isinstance(url, URL) or _NAMES_ARE_DECODED or not parsed.database:
        return parsed
    return parsed.set(database=unquote(parsed.database))


def _shown(url: object) -> str:
    """Return a refused URL for an error: only its scheme if it can hold a password."""
    if not isinstance(url, str):
        return f"a {type(url).__name__}"
    if "@" not in url and "password" not in url.lower():
        return f"{url!r:.80}"
    scheme = _SCHEME.match(url)
    return f"{scheme[0]}***" if scheme else "a text with an @ and no scheme before it"


def _named(name: str) -> str:
    """Return the name of a driver or a parameter for an error.

    An unescaped ``:``, ``/`` or ``?`` in a password makes another part of the URL out of its rest.
    """
    return name if _NAME.fullmatch(name) else "***"


def _refuse_unstorable(*texts: str) -> None:
    if not all(is_storable(text) for text in texts):
        raise InvalidArgument(
            "the database URL holds a NUL or what is not UTF-8; names of files, too, must be UTF-8"
        )


NO_SCHEMA_ON_SQLITE = (
    "SQLite has no schemas: give each installation a file of its own, as in sqlite:///agents.db"
)


def _check_sqlite_url(url: URL) -> URL:
    if any(part is not None for part in (url.username, url.password, url.host, url.port)):
        raise InvalidArgument(
            "the URL of a SQLite file has no host; write sqlite:///FILE with three slashes, or "
            "with four for an absolute path"
        )
    if "schema" in url.query:
        raise InvalidArgument(NO_SCHEMA_ON_SQLITE)
    known = _SQLITE_PARAMETERS
    if url.query.get("uri") == "true":
        known |= _SQLITE_URI_PARAMETERS
        file = str(url.database or "").removeprefix("file:")
        if file in ("", ":memory:") or url.query.get("mode") == "memory":
            # Each connection would open a database of its own.
            raise InvalidArgument("write sqlite:// for a database in memory, without uri=true")
    _refuse_unknown(url, known)
    busy_seconds(url)
    _check_number("cached_statements", url.query.get("cached_statements"))
    return url


def _refuse_unknown(url: URL, known: frozenset[str]) -> None:
    unknown = sorted(set(url.query) - known)
    if unknown:
        # With a "?" in the password the rest of the password and the host are in the query.
        in_password = any("@" in part for item in url.query.items() for part in map(str, item))
        named = "***" if in_password else ", ".join(_named(name) for name in unknown)
        raise InvalidArgument(
            f"the database URL has parameters that can't be given there: {named}; "
            f"these can: {', '.join(sorted(known))}. For others make an AsyncEngine with "
            "connect_args"
        )


def busy_seconds(url: URL) -> float:
    """Return how long a write to SQLite waits for another transaction before it fails.

    Raises ``InvalidArgument`` if the URL's ``timeout`` is no number or out of range.
    """
    timeout = url.query.get("timeout")
    if timeout is None:
        return BUSY_SECONDS
    with contextlib.suppress(ValueError):
        seconds = float(timeout) if isinstance(timeout, str) else math.nan  # given twice
        if 0 <= seconds <= _MAX_BUSY_SECONDS:
            return seconds
    raise InvalidArgument(
        f"timeout in the database URL must be between 0 and {_MAX_BUSY_SECONDS:,} seconds, "
        f"not {timeout!r:.60}"
    )


def _as_asyncpg_url(url: URL) -> URL:
    """Return the URL with the names that asyncpg has for parameters of libpq.

    ``sslmode``, common in URLs, is ``ssl`` for asyncpg. A parameter that asyncpg does not know
    would be a ``TypeError`` at the first connection.
    """
    _refuse_unknown(url, _PARAMETERS)
    for parameter in ("connect_timeout", "tcp_user_timeout", "prepared_statement_cache_size"):
        _check_number(parameter, url.query.get(parameter))
    if "schema" in url.query:
        schema_of(url)
    url = _with_port_for_each_host(url)
    mode = url.query.get("sslmode")
    if mode is None:
        return url
    return url.difference_update_query(["sslmode"]).update_query_dict({"ssl": mode})


def _with_hosts_in_query(url: str) -> str:
    """Move several hosts to the query, the only place where SQLAlchemy accepts them."""
    several = _SEVERAL_HOSTS.fullmatch(url)
    if several is None:
        return url
    query = f"host={several['hosts']}"
    if several["query"]:
        query += f"&{several['query']}"
    return f"{several['head']}{several['rest'] or '/'}?{query}"


def _with_port_for_each_host(url: URL) -> URL:
    """Return the URL with its hosts and ports as two lists of the same length.

    Raises ``InvalidArgument`` if a host or its port is ambiguous.
    """
    host_query = url.query.get("host", ())
    parts = [host_query] if isinstance(host_query, str) else host_query
    hosts = [host for part in parts for host in part.split(",")]
    if len(hosts) < 2:
        return url
    matches = [_HOST_AND_PORT.fullmatch(host) for host in hosts]
    port_query = url.query.get("port", ())
    ports = port_query.split(",") if isinstance(port_query, str) else list(port_query)
    if len(ports) == 1:
        ports *= len(hosts)
    if url.host or not all(matches) or len(ports) not in (0, len(hosts)):
        # With a "/" or "?" in the password its parts look like hosts and the database's name.
        is_clear = all(matches) and "@" not in f"{hosts}{url.database}"
        shown = ", ".join(hosts) if is_clear else "***"
        raise InvalidArgument(
            f"the hosts of the database URL are not clear: {shown}; write "
            "postgresql://USER@HOST:PORT,HOST:PORT/NAME"
        )
    parsed = [match for match in matches if match is not None]
    ports = ports or [match["port"] or str(DEFAULT_PORT) for match in parsed]
    return url.update_query_dict(
        {"host": ",".join(match["host"].strip("[]") for match in parsed), "port": ",".join(ports)}
    )


def with_standby_defaults(url: URL) -> URL:
    """Return the URL of standbys with the parameters that it does not name.

    A standby that can't be reached shall cost a read little, since the primary can be asked.
    """
    defaults = {"connect_timeout": str(STANDBY_CONNECT_SECONDS)}
    if "," in str(url.query.get("host", "")):
        defaults["target_session_attrs"] = "prefer-standby"
    return url.update_query_dict({name: defaults[name] for name in defaults.keys() - url.query})


def _check_number(parameter: str, value: str | tuple[str, ...] | None) -> None:
    if value is not None and not (isinstance(value, str) and value.isdecimal()):
        raise InvalidArgument(f"{parameter} in the database URL must be a whole number")


def schema_of(url: URL, given: str | None = None) -> str | None:
    """Return the schema of a checked URL, or the one that was ``given`` beside it.

    Raises ``InvalidArgument`` for names that can't be used, and for two different ones.
    """
    if given is not None:
        given = validation.schema(given)
        if kind(url) == "sqlite":
            raise InvalidArgument(NO_SCHEMA_ON_SQLITE)
    named = url.query.get("schema")
    if named is None:
        return given
    if not isinstance(named, str):
        raise InvalidArgument(
            f"the database URL names several schemas: {', '.join(named)}; an installation has one"
        )
    named = validation.schema(named)
    if given not in (None, named):
        raise InvalidArgument(
            f"the database URL names the schema {named!r}, the argument schema names {given!r}; "
            "give one of them"
        )
    return named


def kind(url: URL) -> Kind:
    """Return the kind of database of a URL."""
    return "sqlite" if url.get_backend_name() == "sqlite" else "postgresql"


def engine_of(database: str | AsyncEngine) -> AsyncEngine | None:
    """Return the engine that a caller gave. ``None`` for a URL, and for a value that is neither."""
    if is_instance(database, str, URL):
        return None
    # Here, because it imports SQLAlchemy's ORM, a ninth of the start of a process with a URL.
    from sqlalchemy.ext.asyncio import AsyncEngine

    return database if isinstance(database, AsyncEngine) else None


def check_engine(engine: AsyncEngine) -> Kind:
    """Return the kind of database of a caller's engine.

    Raises ``InvalidArgument`` for drivers that this package does not support.
    """
    driver = f"{kind_of(engine)}+{engine.dialect.driver}"
    if driver not in _DRIVERS.values():
        raise InvalidArgument(
            f"no support for an engine over {driver}; use {' or '.join(_DRIVERS.values())}"
        )
    return kind(engine.url)


def file_of(url: URL) -> Path | None:
    """Return the file of a SQLite database, ``None`` for one in memory and for PostgreSQL."""
    if kind(url) != "sqlite" or is_in_memory(url):
        return None
    name = str(url.database)
    if name.startswith("file:"):  # SQLite's URI form: https://sqlite.org/uri.html
        return Path(unquote(urlsplit(name).path))
    return Path(name)


def is_in_memory(url: URL) -> bool:
    """Return whether a SQLite database is in memory, where it lives in one connection."""
    return url.database in (None, "", ":memory:")

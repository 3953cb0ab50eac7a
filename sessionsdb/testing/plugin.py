"""Fixtures of pytest for tests of agents.

Turn them on in the ``conftest.py`` at the top::

    pytest_plugins = ["sessionsdb.testing.plugin"]

Asynchronous tests need pytest-asyncio or the plugin of anyio. ``--sessionsdb`` and the environment
variable ``SESSIONSDB_TEST_DATABASE`` name the databases: ``memory`` (the default), ``file``, or the
URL of a PostgreSQL database. With several of them each test runs on each.
"""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from sessionsdb import sync
from sessionsdb.database import SessionsDB
from sessionsdb.testing.clock import ManualClock
from sessionsdb.testing.postgres_schema import TemporarySchema

try:
    # In its strict mode pytest-asyncio runs only the fixtures that it has marked.
    from pytest_asyncio import fixture as async_fixture
except ImportError:
    async_fixture = pytest.fixture  # type: ignore[assignment]  # the plugin of anyio runs all

VARIABLE = "SESSIONSDB_TEST_DATABASE"
"""The environment variable with the databases, separated by spaces."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option ``--sessionsdb``."""
    parser.getgroup("sessionsdb").addoption(
        "--sessionsdb",
        action="append",
        metavar="DATABASE",
        help="the database of the fixtures: memory, file, or the URL of a PostgreSQL database; "
        f"several run each test on each; by default ${VARIABLE}, or memory",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Refuse a wrong database before the tests are collected."""
    _places(config)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test of a database on all of them."""
    places = _places(metafunc.config)
    if len(places) > 1 and "sessions_place" in metafunc.fixturenames:
        names = [_name(place) for place in places]
        metafunc.parametrize("sessions_place", places, ids=names, indirect=True)


@pytest.fixture
def sessions_place(request: pytest.FixtureRequest) -> str:
    """The kind of database of this test: ``memory``, ``file``, or a PostgreSQL URL."""
    return str(getattr(request, "param", None) or _places(request.config)[0])


@pytest.fixture(scope="session")
def sessions_schemas() -> Iterator[dict[str, TemporarySchema]]:
    """The PostgreSQL schemas of this process, by the URLs of their databases."""
    schemas: dict[str, TemporarySchema] = {}
    yield schemas
    for schema in schemas.values():
        schema.drop()


@pytest.fixture
def sessions_url(sessions_place: str, request: pytest.FixtureRequest) -> str:
    """The URL of an empty database for this test alone."""
    if sessions_place == "memory":
        return "sqlite://"
    if sessions_place == "file":
        return f"sqlite:///{request.getfixturevalue('tmp_path')}/sessions.db"
    schemas: dict[str, TemporarySchema] = request.getfixturevalue("sessions_schemas")
    if sessions_place not in schemas:
        schemas[sessions_place] = TemporarySchema(sessions_place)
    return schemas[sessions_place].fresh_url()


@pytest.fixture
def sessions_clock(sessions_place: str) -> ManualClock:
    """The clock of ``sessions_db``, which stands still until the test moves it. SQLite only."""
    if _name(sessions_place) == "postgresql":
        pytest.fail(
            "sessions_clock moves the time of SQLite; PostgreSQL uses the clock of its server: "
            "run this test with --sessionsdb memory",
            pytrace=False,
        )
    return ManualClock()


@async_fixture
async def sessions_db(sessions_url: str, request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    """An open ``SessionsDB`` over an empty database. With ``sessions_clock`` it uses that clock."""
    async with SessionsDB(sessions_url, clock=_clock(request)) as db:
        yield db


@pytest.fixture
def blocking_sessions_db(
    sessions_url: str, request: pytest.FixtureRequest
) -> Iterator[sync.SessionsDB]:
    """The same as a blocking handle, for applications without an event loop."""
    with sync.SessionsDB(sessions_url, clock=_clock(request)) as db:
        yield db


def _clock(request: pytest.FixtureRequest) -> ManualClock | None:
    if "sessions_clock" not in request.fixturenames:
        return None
    clock: ManualClock = request.getfixturevalue("sessions_clock")
    return clock


def _places(config: pytest.Config) -> list[str]:
    given: list[str] = config.getoption("--sessionsdb") or os.environ.get(VARIABLE, "").split()
    return checked_places(given) or ["memory"]


def checked_places(given: list[str]) -> list[str]:
    """Return the databases of the option. Raises ``UsageError``, without the password of a URL."""
    for place in given:
        if _name(place) not in ("memory", "file", "postgresql"):
            raise pytest.UsageError(
                f"--sessionsdb and ${VARIABLE} take memory, file, or the URL of a PostgreSQL "
                f"database, not {_shown(place)}"
            )
    return given


def _name(place: str) -> str:
    """Return the name of a database for the ids of tests: a URL may have a password."""
    return "postgresql" if place.startswith(("postgresql:", "postgresql+asyncpg:")) else place


def _shown(place: str) -> str:
    """Return a wrong value for an error. Of a URL, which may have a password, only the scheme."""
    if url := re.match(r"([A-Za-z][\w+.-]*)://", place):
        return f"a URL with the scheme {url[1]!r}"
    return repr(place) if re.fullmatch(r"[\w./\\-]*", place) else "a text of another form"

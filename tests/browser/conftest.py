"""A database with a server and a worker, and a browser.

``SESSIONSDB_TEST_AXE`` is the path of axe-core's ``axe.min.js``. Without that file the tests of
accessibility are left out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from sessionsdb.sync import SessionsDB
from tests.browser.served import Served, make_token

expect.set_options(timeout=20_000)

_HAS_AXE = Path(os.environ.get("SESSIONSDB_TEST_AXE", "axe.min.js")).is_file()
collect_ignore = [] if _HAS_AXE else ["test_accessibility.py"]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not _HAS_AXE:
        terminalreporter.write_line(
            "tests/browser/test_accessibility.py was left out: SESSIONSDB_TEST_AXE names no file"
        )


@pytest.fixture
def db(tmp_path: Path) -> Iterator[SessionsDB]:
    with SessionsDB(f"sqlite:///{tmp_path / 'sessions.db'}") as db:
        db.broker.register("chat", channel="web", peer="ann")
        yield db


@pytest.fixture
def served(db: SessionsDB, tmp_path: Path) -> Iterator[Served]:
    served = Served(tmp_path)
    yield served
    served.close()


@pytest.fixture
def token(db: SessionsDB, tmp_path: Path) -> str:
    return make_token(tmp_path)


@pytest.fixture
def locked(token: str, tmp_path: Path) -> Iterator[Served]:
    """A server that asks for the token."""
    served = Served(tmp_path, "--require-token")
    yield served
    served.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=os.environ["SESSIONSDB_TEST_BROWSER"], args=["--no-sandbox"]
        )
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page whose scripts must not fail."""
    page = browser.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    yield page
    page.close()
    assert problems == []

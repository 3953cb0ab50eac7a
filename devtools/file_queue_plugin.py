"""A pytest plugin that takes its test files from a queue in another process.

``devtools.run_tests`` loads the plugin, and passes a connection. The plugin sends ``None`` and
receives the path of its next file, or ``None`` at the end. After each file it sends the path, the
seconds, and how many tests passed, failed and were skipped.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from itertools import chain, groupby, pairwise
from multiprocessing.connection import Connection

import pytest

CONNECTION_VARIABLE = "SESSIONSDB_TEST_QUEUE"

PR_SET_PDEATHSIG = 1
"""Of Linux's <sys/prctl.h>: the signal that a process gets when its parent dies."""


class FileQueue:
    """Runs the tests of the files it receives, instead of all tests that pytest collected."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._outcomes: dict[str, str] = {}
        self._began = time.monotonic()

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if session.testsfailed:
            raise session.Interrupted(f"{session.testsfailed} errors during collection")
        by_file: dict[str, list[pytest.Item]] = {}
        for path, items in groupby(session.items, lambda item: item.path):
            by_file.setdefault(_name(session, path), []).extend(items)
        # The next test decides which fixtures stay open. So the next file is asked for before the
        # last test of a file runs.
        for item, following in pairwise(chain(self._received_items(by_file), (None,))):
            assert item is not None
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if session.shouldfail:
                raise session.Failed(session.shouldfail)
            if session.shouldstop:
                raise session.Interrupted(session.shouldstop)
            if following is None or following.path != item.path:
                self._report(_name(session, item.path))
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._outcomes[report.nodeid] = "failed"
        elif report.skipped:
            self._outcomes.setdefault(report.nodeid, "skipped")
        elif report.when == "call":
            self._outcomes.setdefault(report.nodeid, "passed")

    def _received_items(self, by_file: dict[str, list[pytest.Item]]) -> Iterator[pytest.Item]:
        while (file := self._next_file()) is not None:
            items = by_file.get(file, [])
            yield from items
            if not items:  # all of them deselected
                self._connection.send((file, 0.0, {}))

    def _next_file(self) -> str | None:
        try:
            self._connection.send(None)
            file: str | None = self._connection.recv()
        except (EOFError, OSError):
            return None  # the queue's process was killed
        return file

    def _report(self, file: str) -> None:
        now = time.monotonic()
        self._connection.send((file, now - self._began, dict(Counter(self._outcomes.values()))))
        self._began = now
        self._outcomes.clear()


def _name(session: pytest.Session, path: os.PathLike[str]) -> str:
    return os.path.relpath(path, session.config.invocation_params.dir)


def pytest_configure(config: pytest.Config) -> None:
    number = int(os.environ[CONNECTION_VARIABLE])
    # The processes that tests start must not hold the connection open.
    os.set_inheritable(number, False)
    del os.environ[CONNECTION_VARIABLE]
    # A background job of a shell begins with SIGINT ignored. The runner needs it to stop us.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if sys.platform == "linux":
        # If the queue's process is killed, stop like after Ctrl-C: with the PostgreSQL server.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGINT)
    config.pluginmanager.register(FileQueue(Connection(number)))

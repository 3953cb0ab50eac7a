"""A pytest that is told to end leaves no PostgreSQL server running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[1]

A_TEST = """
import asyncio
import os
import time
from pathlib import Path

def told(server) -> None:
    Path(os.environ["STARTED"]).write_text(str(server.embedded.get_pid()))

def test_that_is_interrupted(postgres_server):
    told(postgres_server)
    time.sleep(120)

async def test_that_is_interrupted_while_it_awaits(postgres_server):
    told(postgres_server)
    await asyncio.sleep(120)
"""


@pytest.mark.parametrize("name", ["interrupted", "interrupted_while_it_awaits"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_pytest_with_its_server(
    tmp_path: Path, name: str, number: signal.Signals
) -> None:
    started = tmp_path / "started"
    (tmp_path / "test_interrupted.py").write_text(A_TEST)
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p"),
            *("tests.conftest", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(tmp_path)),
            f"{tmp_path}/test_interrupted.py::test_that_is_{name}",
        ],
        cwd=ROOT,
        env={**os.environ, "STARTED": str(started)},
        stdout=subprocess.DEVNULL,
    )
    try:
        wait(lambda: started.exists() and started.read_text())
        server = int(started.read_text())
        process.send_signal(number)
        assert process.wait(timeout=60) == pytest.ExitCode.INTERRUPTED
        wait(lambda: not psutil.pid_exists(server))
    finally:
        process.kill()
        process.wait()


def wait(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 100
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)

"""Schemathesis finds no fault between the server and its OpenAPI document: ``make test-openapi``.

It sends what the document allows, what the document forbids, and values at every limit, the same
in each run.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """A server over an empty database."""
    database = f"sqlite:///{tmp_path / 'sessions.db'}"
    command = [sys.executable, "-m", "sessionsdb", "--url", database, "serve"]
    server = subprocess.Popen(
        [*command, "--port", "0", "--rate", "0"], stderr=subprocess.PIPE, text=True
    )
    try:
        assert server.stderr is not None
        first = server.stderr.readline()
        assert first.startswith("serving on http://"), first
        yield first.split()[-1]
    finally:
        server.kill()
        server.wait()
        if server.stderr is not None:
            server.stderr.close()


def schemathesis(url: str, *words: str) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("schemathesis")
    settings = ["--config-file", str(HERE / "schemathesis.toml")]
    return subprocess.run(
        [program, *settings, "run", f"{url}/api/v1/openapi.json", *words],
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.timeout(360)
def test_the_server_does_what_its_document_says(url: str) -> None:
    found = schemathesis(url)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "39 total" in found.stdout

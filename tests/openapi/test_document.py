"""Schemathesis finds no fault between the server and its OpenAPI document: ``make test-openapi``.

It sends what the document allows, what the document forbids, and values at every limit. They are
the same in each run. ``SESSIONSDB_TEST_SEED`` and ``SESSIONSDB_TEST_SCALE`` make other values, and
so many times more of them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.scale import SCALE

HERE = Path(__file__).parent
SEED = os.environ.get("SESSIONSDB_TEST_SEED")

EXAMPLES = 3
"""The values of each operation beside those at the limits."""


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
        address = first.split()[-1]
        # The first call makes the document. Schemathesis waits 10 s: too short on a busy machine.
        with urllib.request.urlopen(f"{address}/api/v1/openapi.json", timeout=90) as document:
            assert document.status == 200
        yield address
    finally:
        server.kill()
        server.wait()
        if server.stderr is not None:
            server.stderr.close()


def schemathesis(url: str) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("schemathesis")
    settings = ["--config-file", str(HERE / "schemathesis.toml")]
    values = ["--generation-deterministic"] if SEED is None else ["--seed", SEED]
    values += ["--max-examples", str(EXAMPLES * SCALE)]
    return subprocess.run(
        [program, *settings, "run", f"{url}/api/v1/openapi.json", *values],
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
        timeout=900 * SCALE,
        check=False,
    )


@pytest.mark.timeout(960 * SCALE)
def test_the_server_does_what_its_document_says(url: str) -> None:
    found = schemathesis(url)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "39 total" in found.stdout

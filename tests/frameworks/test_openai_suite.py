"""The SDK's own tests of sessions, from the sdist of the installed version, against our class."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import pytest

from devtools.databases import Database
from tests.frameworks.openai_suite_names import FILES, PORTABLE, URL_VARIABLE

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SDISTS = Path(sys.prefix, "sdists")
"""Where the sdist is unpacked: in the virtual environment."""


@pytest.fixture(scope="session")
def sdist() -> Path:
    version = importlib.metadata.version("openai-agents")
    unpacked = SDISTS / f"openai_agents-{version}"
    if unpacked.exists():
        return unpacked
    SDISTS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=SDISTS) as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        options = ["--no-deps", "--no-binary", "openai-agents", "--dest", folder]
        subprocess.run([*pip, *options, f"openai-agents=={version}"], check=True)
        [archive] = Path(folder).glob("*.tar.gz")
        with tarfile.open(archive) as opened:
            opened.extractall(folder, filter="data")
        (Path(folder) / unpacked.name).rename(unpacked)
    return unpacked


def run_suite(sdist: Path, url: str | None, cache: Path, *options: str) -> str:
    """Run the tests of the SDK, and return what pytest printed."""
    environment = {name: value for name, value in os.environ.items() if name != URL_VARIABLE}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(HERE)])
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    if url is not None:
        environment[URL_VARIABLE] = url
    plugins = ["-p", "openai_suite_plugin"]
    pytest_options = ["--tb=line", "-q", "--timeout=120", f"--override-ini=cache_dir={cache}"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *plugins, *pytest_options, *options, *FILES],
        cwd=sdist,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


def count(output: str, word: str) -> int:
    found = re.search(rf"(\d+) {word}\b", output.rstrip().rpartition("\n")[2])
    return int(found[1]) if found else 0


@pytest.mark.timeout(1200)
def test_the_tests_of_the_sdk_pass(
    sdist: Path, database: Database, kind: str, tmp_path: Path
) -> None:
    url = database.url if kind == "postgresql" else None
    output = run_suite(sdist, url, tmp_path)
    passed, failed = count(output, "passed"), count(output, "failed") + count(output, "errors?")
    if 0 < failed < 10:
        # Some of them wait for a part of a second, and fail on a busy machine.
        again = run_suite(sdist, url, tmp_path, "--last-failed")
        passed += count(again, "passed")
        output += again
    assert passed == PORTABLE, output[-5000:]

"""``make test-pythons`` finds the interpreters here, and tells which ones were tested."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from devtools import run_on_pythons
from devtools.run_on_pythons import VERSIONS, Interpreter, Result, find_interpreters, table


def program(path: Path, text: str) -> Path:
    """Write an interpreter that only says what it is, or fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without an interpreter."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    return tmp_path


def test_no_interpreter_is_found_where_none_is(machine: Path) -> None:
    assert find_interpreters() == {}


def test_the_running_interpreter_is_found_by_its_path() -> None:
    version = ".".join(map(str, sys.version_info[:2]))
    found = find_interpreters([Path(sys.executable)])[version]
    assert found.release == ".".join(map(str, sys.version_info[:3]))
    assert os.path.samefile(found.path, sys.executable)


def test_a_shim_that_fails_is_passed_over_for_a_version_of_pyenv(machine: Path) -> None:
    program(machine / "bin" / "python3.12", "echo 'version not chosen' >&2; exit 127")
    for release in ("3.12.9", "3.12.10", "3.2.1"):
        path = machine / "pyenv" / "versions" / release / "bin" / "python"
        program(path, f"echo {release} {path}")
    newest = machine / "pyenv" / "versions" / "3.12.10" / "bin" / "python"
    assert find_interpreters() == {"3.12": Interpreter("3.12.10", newest)}


def test_an_interpreter_on_the_path_comes_before_pyenv(machine: Path) -> None:
    path = program(machine / "bin" / "python3.13", "echo 3.13.0 /real/python")
    program(machine / "pyenv/versions/3.13.7/bin/python", "echo 3.13.7 /other/python")
    assert path.exists()
    assert find_interpreters() == {"3.13": Interpreter("3.13.0", Path("/real/python"))}


def test_an_environment_is_made_anew_for_another_release_and_for_new_requirements(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_on_pythons, "CHECKOUT", tmp_path)
    stamp = tmp_path / ".installed"
    for name in run_on_pythons.INSTALLED_FROM:
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1_000, 1_000))
    here = Interpreter("3.12.1", Path("python"))
    assert not run_on_pythons.is_current(stamp, here)
    stamp.write_text("3.12.1")
    assert run_on_pythons.is_current(stamp, here)
    assert not run_on_pythons.is_current(stamp, Interpreter("3.12.2", Path("python")))
    os.utime(stamp, (999, 999))
    assert not run_on_pythons.is_current(stamp, here)


def test_the_table_tells_a_failed_run_from_a_python_that_is_not_here() -> None:
    lines = list(
        table(
            [
                Result("3.12", "3.12.1", "7 passed, 1 failed, 0 skipped", 61.4, failed=True),
                Result("3.14", "-", "not on this machine"),
            ]
        )
    )
    assert lines[1:] == [
        "3.12     3.12.1          61  FAILED: 7 passed, 1 failed, 0 skipped",
        "3.14     -                0  not on this machine",
    ]


def test_the_classifiers_name_the_tested_versions() -> None:
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    for version in VERSIONS:
        assert f'"Programming Language :: Python :: {version}"' in text

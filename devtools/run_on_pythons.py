"""Run the tests on each Python that the package supports: ``python -m devtools.run_on_pythons``.

An interpreter is looked for by its name on ``PATH`` and in the versions of pyenv. Each one gets a
virtual environment of its own, ``.venv-python-3.12`` for 3.12, which the next run uses again. The
tests run with warnings as errors, as pyproject.toml tells pytest. A table of all results comes
last. A Python that is not on this machine has a line there, and does not fail the run.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

CHECKOUT = Path(__file__).parents[1]

VERSIONS = ("3.11", "3.12", "3.13", "3.14")

INSTALLED_FROM = ("pyproject.toml", "constraints.txt")
"""An environment is made anew when one of these files is newer."""

PIP = ("-m", "pip", "--disable-pip-version-check", "--quiet", "install")

PROBE = "import platform, sys; print(platform.python_version(), sys.executable)"

COUNTS = re.compile(r"^(\d+) passed, (\d+) failed, (\d+) skipped$")
"""The last line of ``devtools.run_tests``."""


class Interpreter(NamedTuple):
    """An interpreter on this machine."""

    release: str
    """For example ``3.12.1``."""
    path: Path

    @property
    def version(self) -> str:
        """For example ``3.12``."""
        return ".".join(self.release.split(".")[:2])


class Result(NamedTuple):
    """A line of the table."""

    version: str
    found: str
    outcome: str
    seconds: float = 0.0
    failed: bool = False


def find_interpreters(given: Sequence[Path] = ()) -> dict[str, Interpreter]:
    """Return the newest interpreter of each version: those given first, then PATH, then pyenv."""
    found: dict[str, Interpreter] = {}
    for version in VERSIONS:
        for candidates in (given, _on_path(version), _of_pyenv(version)):
            probed = [one for one in map(probe, candidates) if one and one.version == version]
            if probed:
                found[version] = max(probed, key=lambda one: _order(one.release))
                break
    return found


def probe(path: Path) -> Interpreter | None:
    """Return what an interpreter says about itself, or ``None`` if it does not run.

    A shim of pyenv stands on PATH also where its version is not chosen, and fails then.
    """
    try:
        done = subprocess.run(
            [path, "-I", "-c", PROBE], capture_output=True, text=True, check=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError):
        return None
    release, _, executable = done.stdout.strip().partition(" ")
    return Interpreter(release, Path(executable))


def _on_path(version: str) -> list[Path]:
    found = shutil.which(f"python{version}")
    return [Path(found)] if found else []


def _of_pyenv(version: str) -> list[Path]:
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    return sorted(root.glob(f"versions/{version}.*/bin/python"))


def _order(release: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", release))


def made_environment(interpreter: Interpreter) -> Path:
    """Return the Python of a virtual environment with the package and all that its tests need."""
    folder = CHECKOUT / f".venv-python-{interpreter.version}"
    python, stamp = folder / "bin" / "python", folder / ".installed"
    if is_current(stamp, interpreter):
        return python
    _run(interpreter.path, "-m", "venv", "--clear", folder)
    _run(python, *PIP, "--upgrade", "pip>=25.1")
    _run(python, *PIP, "--constraint", "constraints.txt", "--editable", ".", "--group", "test")
    stamp.write_text(interpreter.release)
    return python


def is_current(stamp: Path, interpreter: Interpreter) -> bool:
    """Return whether an environment was made by this release, and no file behind it changed."""
    if not stamp.exists() or stamp.read_text() != interpreter.release:
        return False
    sources = [(CHECKOUT / name).stat().st_mtime for name in INSTALLED_FROM]
    return stamp.stat().st_mtime >= max(sources)


def _run(*command: str | Path) -> None:
    subprocess.run(command, cwd=CHECKOUT, check=True)


def run_tests(interpreter: Interpreter, arguments: Sequence[str]) -> Result:
    """Run the tests on one interpreter, show their output, and return the line of the table."""
    version, release = interpreter.version, interpreter.release
    print(f"\nPython {release}: {interpreter.path}", flush=True)
    began = time.monotonic()
    try:
        python = made_environment(interpreter)
    except subprocess.CalledProcessError as error:
        return Result(version, release, f"not installed: {error}", failed=True)
    counts = "no test ran"
    with subprocess.Popen(
        [python, "-u", "-m", "devtools.run_tests", *arguments],
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            if COUNTS.match(line.strip()):
                counts = line.strip()
    return Result(version, release, counts, time.monotonic() - began, process.returncode != 0)


def table(results: Sequence[Result]) -> Iterator[str]:
    yield f"{'Python':8} {'found':10} {'seconds':>7}  outcome"
    for one in results:
        word = "FAILED: " if one.failed else ""
        yield f"{one.version:8} {one.found:10} {one.seconds:7.0f}  {word}{one.outcome}"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m devtools.run_on_pythons",
        description="Run the tests on each Python that the package supports.",
        epilog="Arguments after -- go to pytest.",
    )
    parser.add_argument("paths", nargs="*", help="test files and folders; all of tests/ by default")
    parser.add_argument("--jobs", type=int, default=2, help="processes (2)")
    parser.add_argument(
        "--python", action="append", type=Path, default=[], help="an interpreter, found elsewhere"
    )
    parser.add_argument(
        "--version", action="append", choices=VERSIONS, help="only this version (all of them)"
    )
    ours, rest = sys.argv[1:], []
    if "--" in ours:
        ours, rest = ours[: ours.index("--")], ours[ours.index("--") :]
    options = parser.parse_args(ours)

    found = find_interpreters(options.python)
    arguments = ["--jobs", str(options.jobs), *options.paths, *rest]
    results = [
        run_tests(found[version], arguments)
        if version in found
        else Result(version, "-", "not on this machine")
        for version in options.version or VERSIONS
    ]
    print("", *table(results), sep="\n")
    ran = [one for one in results if one.found != "-"]
    return 1 if not ran or any(one.failed for one in ran) else 0


if __name__ == "__main__":
    sys.exit(main())

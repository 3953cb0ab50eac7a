"""Build the distributions, and try the wheel in an empty environment: ``make dist``.

The environment has the wheel and its dependencies only. The first program of the README, the
commands and the migrations run from there, outside of the checkout.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

CHECKOUT = Path(__file__).parents[1]
DIST = CHECKOUT / "dist"

IN_THE_WHEEL = (
    "sessionsdb/py.typed",
    "sessionsdb/testing/plugin.py",
    "sessionsdb/testing/conformance/checks.py",
    "sessionsdb/migrations/env.py",
    "sessionsdb/migrations/versions/0001_transcripts.py",
)
IN_THE_SOURCES = ("pyproject.toml", "alembic.ini", "README.md", "LICENSE", "tests/conftest.py")


def main() -> None:
    wheel, sources = build()
    check_contents(wheel, sources)
    with tempfile.TemporaryDirectory(prefix="sessionsdb-dist-") as folder:
        try_wheel(wheel, Path(folder))
    print(f"\n{wheel.name} and {sources.name} work, and are in {DIST.name}/")


def build() -> tuple[Path, Path]:
    """Return the paths of a new wheel and of a new source distribution."""
    for old in DIST.glob("sessionsdb-*"):
        old.unlink()
    run(sys.executable, "-m", "build", "--outdir", str(DIST), str(CHECKOUT), folder=CHECKOUT)
    [wheel] = DIST.glob("*.whl")
    [sources] = DIST.glob("*.tar.gz")
    run(sys.executable, "-m", "twine", "check", "--strict", str(wheel), str(sources))
    return wheel, sources


def check_contents(wheel: Path, sources: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    missing = [name for name in IN_THE_WHEEL if name not in names]
    missing += [] if any(name.endswith("/licenses/LICENSE") for name in names) else ["LICENSE"]
    with tarfile.open(sources) as tar:
        inside = {name.partition("/")[2] for name in tar.getnames()}
    missing += [name for name in IN_THE_SOURCES if name not in inside]
    if missing:
        raise SystemExit(f"not in the distributions: {', '.join(missing)}")


def try_wheel(wheel: Path, folder: Path) -> None:
    run(sys.executable, "-m", "venv", str(folder / "venv"))
    programs = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
    python, command = str(programs / "python"), str(programs / "sessionsdb")
    run(python, "-m", "pip", "--quiet", "--disable-pip-version-check", "install", str(wheel))
    first = folder / "first.py"
    first.write_text(first_program(), encoding="utf-8")
    run(python, first.name, folder=folder)
    url = f"sqlite:///{folder / 'new.db'}"
    run(command, "--version", folder=folder)
    run(command, "--url", url, "migrate", folder=folder)
    run(command, "--url", url, "register", "chat", folder=folder)
    run(command, "--url", url, "send", "chat", "hello", folder=folder)
    run(command, "--url", url, "list", folder=folder)
    run(command, "--url", url, "doctor", folder=folder)


def first_program() -> str:
    """Return the first Python block of the README."""
    readme = (CHECKOUT / "README.md").read_text(encoding="utf-8")
    found = re.search(r"^```python\n(.*?)^```", readme, re.DOTALL | re.MULTILINE)
    if found is None:
        raise SystemExit("README.md has no Python block")
    return found[1]


def run(*command: str, folder: Path | None = None) -> None:
    """Run a command, and end this program where it fails."""
    print("$", " ".join(command), flush=True)
    # A checkout on the path would hide what the wheel lacks.
    surroundings = {
        k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "SESSIONSDB_URL")
    }
    done = subprocess.run(command, cwd=folder, env=surroundings, check=False)
    if done.returncode != 0:
        raise SystemExit(f"exit code {done.returncode}")


if __name__ == "__main__":
    main()

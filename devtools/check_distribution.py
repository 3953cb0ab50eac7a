"""Build the distributions, and try the wheel in an empty environment: ``make dist``.

The environment has the wheel and its dependencies only. The first program of the README, the
commands and the migrations run from there, outside of the checkout. Then the extra ``web`` is
installed too, and the server runs.
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

LICENSES = ("licenses/LICENSE", "licenses/sessionsdb/web/pages/static/htmx.LICENSE.txt")

NOT_IN_THE_SOURCES = (".ci/", ".gitignore")
"""Files of the checkout that a source distribution does not need, or names in its own way."""

PIP_INSTALL = ("-m", "pip", "--quiet", "--disable-pip-version-check", "install")

SERVER = """
import subprocess, sys, urllib.request

command, url = sys.argv[1:]
words = [command, "--url", url, "serve", "--port", "0"]
with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as server:
    try:
        address = next(word for word in server.stderr.readline().split() if "http://" in word)
        for path in ("/health", "/", "/static/htmx.min.js"):
            with urllib.request.urlopen(address.rstrip("/") + path, timeout=30) as answer:
                print(path, answer.status, len(answer.read()), "bytes")
    finally:
        server.terminate()
"""
"""Starts the server and asks for its health, a page and a file beside the code."""


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
    """End this program where the files are not those of the checkout."""
    tracked = files_of_the_checkout()
    package = {name for name in tracked if name.startswith("sessionsdb/")}
    package |= {f"sessionsdb/{name}" for name in tracked if name.startswith("migrations/")}
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = {name for name in archive.namelist() if ".dist-info/" not in name}
        about = {name.partition(".dist-info/")[2] for name in archive.namelist()}
    with tarfile.open(sources) as tar:
        in_sources = {one.name.partition("/")[2] for one in tar.getmembers() if one.isfile()}
    kept = {name for name in tracked if not name.startswith(NOT_IN_THE_SOURCES)}
    differences = {
        "not in the wheel": (package - in_wheel) | (set(LICENSES) - about),
        "only in the wheel": in_wheel - package,
        "not in the sources": kept - in_sources,
        "only in the sources": in_sources - tracked - {"PKG-INFO"},
    }
    told = [f"{where}: {', '.join(sorted(names))}" for where, names in differences.items() if names]
    if told:
        raise SystemExit("\n".join(told))


def files_of_the_checkout() -> set[str]:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=CHECKOUT, capture_output=True, text=True, check=True
    )
    return set(listed.stdout.split("\0")) - {""}


def try_wheel(wheel: Path, folder: Path) -> None:
    run(sys.executable, "-m", "venv", str(folder / "venv"))
    programs = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
    python, command = str(programs / "python"), str(programs / "sessionsdb")
    run(python, *PIP_INSTALL, str(wheel))
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
    run(python, *PIP_INSTALL, f"{wheel}[web]")
    server = folder / "server.py"
    server.write_text(SERVER, encoding="utf-8")
    run(python, server.name, command, url, folder=folder)


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

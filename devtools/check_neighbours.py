"""Resolve the package beside large applications, as they stand today: ``make test-neighbours``.

For each application the newest release is looked up in the package index. Then ``uv`` finds
versions for both: once for this package alone, and once with each extra. Nothing is installed. A
conflict that is not in ``CONFLICTS`` fails the run, and so does one there that is gone.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import NamedTuple

CHECKOUT = Path(__file__).parents[1]

NEIGHBOURS = ("apache-superset", "open-webui", "crewai", "chainlit")

CONFLICTS = {
    # It needs SQLAlchemy 1.4. It reads the report views from an environment of its own.
    ("apache-superset", ""): "sqlalchemy",
    # The server of the extra is written for the second version of the protocol's package.
    ("crewai", "mcp"): "mcp",
    ("chainlit", "mcp"): "mcp",
    # It pins 0.86. The extra is tested with 2 only.
    ("open-webui", "anthropic"): "anthropic",
    # The frameworks themselves, without us.
    ("crewai", "openai-agents"): "openai",
    ("crewai", "google-adk"): "opentelemetry-sdk",
    ("open-webui", "openai-agents"): "pyjwt",
    ("open-webui", "google-adk"): "authlib",
}
"""The conflicts that are known: the application, our extra, and the package that both need."""

SECONDS = 300


class Result(NamedTuple):
    """What came of one neighbour and one extra."""

    release: str
    extra: str
    reason: str
    """Empty where versions were found for both."""


def extras() -> list[str]:
    """Return the names of our extras, behind the empty one for the package alone."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return ["", *project["optional-dependencies"]]


def newest(name: str) -> str:
    """Return the newest release of a neighbour, as a requirement."""
    done = resolve([name])
    found = re.search(rf"^{name}==\S+", done.stdout, re.MULTILINE | re.IGNORECASE)
    if found is None:
        raise SystemExit(f"no release of {name} can be resolved alone:\n{done.stderr}")
    return found[0]


def beside(release: str, extra: str) -> Result:
    ours = f"sessionsdb[{extra}]" if extra else "sessionsdb"
    done = resolve([release, f"{ours} @ {CHECKOUT.as_uri()}"])
    return Result(release, extra, done.stderr.strip() if done.returncode else "")


def resolve(requirements: list[str]) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryDirectory(prefix="sessionsdb-neighbours-") as folder:
        file = Path(folder) / "requirements.in"
        file.write_text("\n".join(requirements), encoding="utf-8")
        return subprocess.run(
            [sys.executable, "-m", "uv", "pip", "compile", "--no-annotate", "--quiet", str(file)],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )


def unexpected(result: Result) -> str:
    """Return what differs from ``CONFLICTS``, or an empty text."""
    name = result.release.partition("==")[0]
    known = CONFLICTS.get((name, result.extra))
    if known is None:
        return f"a new conflict: {result.reason}" if result.reason else ""
    if not result.reason:
        return f"the conflict over {known} is gone: take it out of CONFLICTS"
    return "" if known in result.reason else f"another conflict than {known}: {result.reason}"


def main() -> int:
    results = []
    for name in NEIGHBOURS:
        release = newest(name)
        alone = beside(release, "")
        results.append(alone)
        # A conflict without an extra is one with each extra too.
        results += [beside(release, extra) for extra in extras() if extra and not alone.reason]
    failed = False
    for result in results:
        known = CONFLICTS.get((result.release.partition("==")[0], result.extra), "")
        outcome = f"conflict over {known}" if result.reason else "fits"
        print(f"{result.release:24} {f'[{result.extra}]' if result.extra else '':18} {outcome}")
        if difference := unexpected(result):
            failed = True
            print(f"  {difference}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""The package asks for no more packages than it imports. See also ``make test-neighbours``."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "sessionsdb"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

OF_EXTRAS = ("mcp/", "web/", "http/", "adapters/", "agents/", "reports/pictures/", "cli/metrics_")
"""The beginnings of the files that only an extra needs."""

OF_TESTS = ("testing/",)
"""The beginnings of the files for the tests of users, which have pytest."""

IMPORTED_AS = {
    "agent-framework-core": "agent_framework",
    "google-adk": "google",
    "openai-agents": "agents",
    "opentelemetry-api": "opentelemetry",
    "opentelemetry-exporter-prometheus": "opentelemetry",
    "opentelemetry-sdk": "opentelemetry",
    "pydantic-ai-slim": "pydantic_ai",
}

NOT_IMPORTED = {
    "tzdata": "the standard library reads its files",
    "python-multipart": "starlette imports it to read a form",
}

UPPER_BOUNDS = {
    "aiosqlite": "private_apis.py",
    "sqlalchemy": "private_apis.py",
    "cronsim": "a next version may fire at other times",
    "mcp": "a next version of the protocol's package may have other names",
    "opentelemetry-api": "semantic versions",
    "pydantic": "semantic versions",
}
"""The packages whose versions are bounded above, and why. Each bound can keep a user from a newer
version, so a new one needs a reason."""


def named(requirements: list[str]) -> dict[str, str]:
    """The requirements by the names of their packages."""
    found = {}
    for requirement in requirements:
        match = re.match(r"[A-Za-z0-9._-]+", requirement)
        assert match is not None
        found[match[0].lower()] = requirement
    return found


CORE = named(PROJECT["dependencies"])
EXTRAS = {name: named(given) for name, given in PROJECT["optional-dependencies"].items()}
ALL = [CORE, *EXTRAS.values()]


def roots(name: str) -> str:
    return IMPORTED_AS.get(name, name.replace("-", "_"))


NEWER_STANDARD = {"annotationlib"}
"""Modules of the standard library that came with Python 3.14, and are imported there only."""


def imports() -> dict[str, set[str]]:
    """The files that import a package of somebody else, by the package's first name."""
    found = defaultdict(set)
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names = [one.name for one in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            else:
                continue
            for name in names:
                found[name.partition(".")[0]].add(file.relative_to(PACKAGE).as_posix())
    standard = sys.stdlib_module_names | NEWER_STANDARD
    return {name: files for name, files in found.items() if name not in standard}


IMPORTS = imports()


@pytest.mark.parametrize("extra", ["", *EXTRAS])
def test_each_requirement_is_imported(extra: str) -> None:
    for name in EXTRAS[extra] if extra else CORE:
        if name in NOT_IMPORTED:
            continue
        # `langgraph-checkpoint` may be imported as `langgraph`.
        files = {file for root in IMPORTS if roots(name).startswith(root) for file in IMPORTS[root]}
        if not extra:
            files = {file for file in files if not file.startswith(OF_EXTRAS)}
        assert files, f"nothing imports {name} of {extra or 'the package'}"


def test_the_package_without_extras_imports_its_own_requirements_only() -> None:
    needed = {
        root
        for root, files in IMPORTS.items()
        if any(not file.startswith(OF_EXTRAS + OF_TESTS) for file in files)
    }
    with_pydantic = {"pydantic_core"}
    assert needed - {roots(name) for name in CORE} == with_pydantic | {"sessionsdb"}


def test_an_upper_bound_has_a_reason() -> None:
    bounded = {
        name
        for requirements in ALL
        for name, requirement in requirements.items()
        if re.search(r"<|==|~=", requirement)
    }
    assert bounded <= set(UPPER_BOUNDS)


def test_each_requirement_has_a_lower_bound_that_is_tested() -> None:
    for requirements in ALL:
        for requirement in requirements.values():
            assert ">=" in requirement
    for file, parts in {"": [CORE], "-web": [EXTRAS["web"], EXTRAS["mcp"]]}.items():
        pinned = (ROOT / f"constraints-lowest{file}.txt").read_text()
        for name, requirement in (pair for part in parts for pair in part.items()):
            lowest = re.findall(r">=([\d.]+)", requirement)
            [tested] = re.findall(rf"^{name}(?:\[.*\])?==([\w.]+)$", pinned, re.M | re.I)
            assert tested.startswith(lowest[0]), f"{requirement}, and {tested} is tested"

"""The fixtures of ``sessionsdb.testing.plugin``, in a pytest of their own, and docs/testing.md."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from devtools.databases import PostgresServer
from sessionsdb.testing.plugin import VARIABLE, checked_places

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "testing.md").read_text()
FILES = dict(re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
CONFTEST = {"conftest.py": FILES["conftest.py"]}
[SETTINGS] = re.findall(r"^```toml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)

SAME_ID = """
import pytest

@pytest.mark.parametrize("n", range(2))
async def test_a_database_is_empty(sessions_db, n):
    assert await sessions_db.broker.list(include_ended=True) == []
    await sessions_db.broker.register("chat-1", channel="test", peer="ada", parent=None)
    await sessions_db.broker.send("chat-1", "hello", idempotency_key="k")

def test_a_blocking_handle_is_empty(blocking_sessions_db):
    assert blocking_sessions_db.broker.list() == []
    blocking_sessions_db.store.append("chat-1", [{"role": "user", "content": "hello"}])
"""


ASYNCIO = ("-p", "pytest_asyncio.plugin", "-o", "asyncio_default_fixture_loop_scope=function")
AUTO = (*ASYNCIO, "-o", "asyncio_mode=auto")


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != VARIABLE}


def run_pytest(
    folder: Path, files: dict[str, str], *options: str, **variables: str
) -> tuple[int, str]:
    """Run the files in a process of their own, and return the exit code and the output."""
    settings = {} if "pyproject.toml" in files else {"pytest.ini": "[pytest]\n"}
    for name, text in (CONFTEST | files | settings).items():
        (folder / name).write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-W", "error", *options],
        cwd=folder,
        # Only the plugins of the test: the one of Hypothesis takes a second to import.
        env=_environment() | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"} | variables,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_the_tests_of_the_page_pass_in_memory_and_in_a_file(tmp_path: Path) -> None:
    """With the settings of the page, and without a warning."""
    code, told = run_pytest(
        tmp_path,
        FILES | {"pyproject.toml": SETTINGS},
        *("-p", "pytest_asyncio.plugin"),
        *("--sessionsdb=memory", "--sessionsdb=file"),
        # The whole suite runs in tests/test_testing_conformance.py.
        *("-k", "not a_rule_holds or entries_are_whole"),
    )
    assert code == 0, told
    assert "16 passed" in told


async def test_postgresql_has_a_schema_for_the_run_and_none_afterwards(
    tmp_path: Path, postgres_server: PostgresServer
) -> None:
    names = ("test_agent.py", "test_reminder.py")
    files = {"test_same_id.py": SAME_ID} | {name: FILES[name] for name in names}
    with postgres_server.new_database(migrated=False) as database:
        url = re.sub(r"[?&]schema=\w+", "", database.url)
        variables = {VARIABLE: f"memory {url}"}
        code, told = run_pytest(tmp_path, files, *AUTO, "-v", **variables)
        schemas = await database.query(
            "SELECT nspname FROM pg_catalog.pg_namespace WHERE nspname LIKE 'sessionsdb_test%'"
        )
        tables = await database.query(
            "SELECT tablename FROM pg_catalog.pg_tables WHERE schemaname = 'public'"
        )
    assert code == pytest.ExitCode.TESTS_FAILED, told
    assert "9 passed, 1 error" in told
    assert "test_agent.py::test_the_agent_answers[postgresql] PASSED" in told
    # A clock that a test moves is of SQLite only.
    assert "sessions_clock moves the time of SQLite" in told
    assert "run this test with --sessionsdb memory" in told
    assert url not in told
    assert (schemas, tables) == ([], [])


def test_an_unknown_database_is_a_usage_error() -> None:
    known = ["memory", "file", "postgresql://host/name", "postgresql+asyncpg://host/name"]
    assert checked_places(known) == known
    for wrong, shown in (
        ("memroy", "not 'memroy'"),
        ("./sessions.db", "not './sessions.db'"),
        ("mysql://user:secret@host/name", "not a URL with the scheme 'mysql'"),
        ("postgresql+psycopg://user:secret@host/name", "the scheme 'postgresql+psycopg'"),
        ("user:secret@host/name", "not a text of another form"),
        ("secret@host", "not a text of another form"),
        ("host/name?password=secret", "not a text of another form"),
    ):
        with pytest.raises(pytest.UsageError, match="take memory, file, or the URL") as refused:
            checked_places(["memory", wrong])
        assert str(refused.value).endswith(shown)
        assert "secret" not in str(refused.value)


@pytest.mark.parametrize("by_option", [True, False])
def test_a_wrong_database_stops_the_run_before_the_collection(
    tmp_path: Path, *, by_option: bool
) -> None:
    wrong = "mysql://user:secret@host/name"
    options, variables = ([f"--sessionsdb={wrong}"], {}) if by_option else ([], {VARIABLE: wrong})
    # A file that does not use the fixtures: nothing but the value is wrong.
    files = {"test_other.py": "def test_other(): pass\n"}
    code, told = run_pytest(tmp_path, files, *options, **variables)
    assert code == pytest.ExitCode.USAGE_ERROR, told
    assert "not a URL with the scheme 'mysql'" in told
    assert "secret" not in told
    assert "collected" not in told
    assert "Traceback" not in told


def test_the_strict_mode_of_pytest_asyncio_is_enough(tmp_path: Path) -> None:
    marked = FILES["test_agent.py"] + "\nimport pytest\n\npytestmark = pytest.mark.asyncio\n"
    code, told = run_pytest(tmp_path, {"test_agent.py": marked}, *ASYNCIO)
    assert code == 0, told
    assert "1 passed" in told


def test_the_plugin_of_anyio_is_enough(tmp_path: Path) -> None:
    marked = FILES["test_agent.py"] + (
        "\nimport pytest\n\npytestmark = pytest.mark.anyio\n\n"
        '@pytest.fixture\ndef anyio_backend():\n    return "asyncio"\n'
    )
    code, told = run_pytest(tmp_path, {"test_agent.py": marked}, "-p", "anyio.pytest_plugin")
    assert code == 0, told
    assert "1 passed" in told


def test_the_package_imports_pytest_only_for_its_plugin() -> None:
    program = "import sys, sessionsdb.testing; sys.exit('pytest' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)

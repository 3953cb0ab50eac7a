"""The arguments that the command sessionsdb mcp refuses, each with one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.command_line import CommandLine

MISSING = """
import sys
sys.modules["mcp"] = None
from sessionsdb.cli import main
sys.argv = ["sessionsdb", "--url", "sqlite:///x.db", "mcp", "--session", "desk"]
main()
"""


@pytest.fixture
def cli(tmp_path: Path) -> CommandLine:
    return CommandLine(f"sqlite:///{tmp_path}/mcp.db")


def test_without_the_extra_it_says_how_to_install_it(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MISSING], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr == (
        "sessionsdb: the MCP server needs the package mcp; install it with: "
        "pip install 'sessionsdb[mcp]'\n"
    )
    assert done.stdout == ""


def test_other_machines_need_a_token(cli: CommandLine) -> None:
    answer = cli("mcp", "--http", "--host", "0.0.0.0", "--port", "0", "--session", "desk")
    answer.refused("--host 0.0.0.0 can be reached from other machines", "SESSIONSDB_MCP_TOKEN")


def test_a_caller_that_would_see_nothing_is_refused(cli: CommandLine, tmp_path: Path) -> None:
    cli("mcp").refused("--session ID", "--visibility namespace")
    cli("mcp", "--http", "--host", "0.0.0.0").refused("--session ID")
    tokens = tmp_path / "tokens.json"
    tokens.write_text('{"0123456789abcdef": {}}')
    cli("mcp", "--http", "--tokens", str(tokens)).failed(f"each token in {tokens} a session")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("nonsense", "the tokens must be a JSON object"),
        ('{"short": {"session": "a"}}', "16 or more printable ASCII characters"),
        ('{"a-secret-long-enough": {"visibility": "all"}}', "the tokens must be a JSON object"),
    ],
)
def test_bad_tokens_are_refused_without_being_shown(
    cli: CommandLine, tmp_path: Path, text: str, told: str
) -> None:
    tokens = tmp_path / "tokens.json"
    tokens.write_text(text)
    line = cli("mcp", "--http", "--tokens", str(tokens)).failed(told)
    assert "a-secret" not in line
    assert "short" not in line


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o644, True), (0o640, True)])
def test_a_tokens_file_that_others_can_read_is_warned_about(
    cli: CommandLine, tmp_path: Path, mode: int, warned: bool
) -> None:
    tokens = tmp_path / "tokens.json"
    tokens.write_text('{"0123456789abcdef": {"visibility": "namespace"}}')
    tokens.chmod(mode)
    # The address can't be listened on, so the command ends.
    answer = cli("mcp", "--http", "--host", "192.0.2.1", "--port", "0", "--tokens", str(tokens))
    assert answer.code == 1
    warning = f"warning: other users have access to {tokens} (mode {mode:04o})"
    assert (warning in answer.stderr) is warned
    assert (f"chmod 600 {tokens}" in answer.stderr) is warned


def test_options_without_an_effect_are_refused(cli: CommandLine, tmp_path: Path) -> None:
    for words in (["--port", "1"], ["--host", "::1"], ["--tokens", "x"]):
        assert cli("mcp", "--session", "a", *words).code == 2
    assert cli("mcp", "--http", "--session", "a", "--tokens", "x").code == 2


def test_a_port_in_use_is_an_error(cli: CommandLine) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        cli("mcp", "--http", "--session", "a", "--port", port).failed("can't listen on 127.0.0.1")

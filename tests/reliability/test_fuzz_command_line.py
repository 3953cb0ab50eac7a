"""Bad input on the command line: a command does its work or reports the error in one line.

It never prints a traceback, nor a control character of the input.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from devtools.databases import Database, SqliteFiles
from sessionsdb import SessionsDB
from sessionsdb.cli.app import app
from tests.reliability.command_lines import (
    ALWAYS,
    INPUT_FILE,
    LEFT_OUT,
    SPECIAL_FILE,
    WIDE,
    Line,
    commands,
    lines,
    paths,
    values,
)
from tests.reliability.field import Field, opened
from tests.reliability.fuzzing import fuzzed
from tests.support.command_line import PLAIN, PROGRAM, Answer, CommandLine, environment

T = TypeVar("T")
Run = Callable[[Coroutine[Any, Any, T]], T]

DOCUMENTED = (0, 1, 2)
"""The exit codes of docs/cli.md for bad input."""

CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
"""Control characters, which drive a terminal or hide text."""

FOR_PROGRAMS = ("csv", "--sql")
"""Arguments that select output for programs, which is printed unchanged. See docs/reporting.md."""


@pytest.fixture
def field(database: Database) -> Iterator[tuple[Field, Run[Any]]]:
    """A field, and a function that runs a coroutine: the commands have event loops of their own."""
    with asyncio.Runner() as runner:
        opening = opened(database)
        yield runner.run(opening.__aenter__()), runner.run
        runner.run(opening.__aexit__(None, None, None))


@pytest.fixture(autouse=True)
def _as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run the test in a new folder, and restore logging and ``sys.path`` after it."""
    monkeypatch.chdir(tmp_path)
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as special:
        special.bind(SPECIAL_FILE)
    root, ours = logging.getLogger(), logging.getLogger("sessionsdb")
    before = (root.handlers[:], root.level, ours.level, sys.path[:])
    yield
    root.handlers[:], root.level, ours.level, sys.path[:] = before


def call(database: Database, db: SessionsDB, line: Line) -> Answer:
    """Run a command line in this process. Asserts that only an exit code was raised."""
    Path(INPUT_FILE).write_bytes(line.input)
    result = CliRunner().invoke(
        app,
        ["--url", database.url, "--namespace", db.namespace, line.command, *line.arguments],
        input=line.input,
        env=PLAIN,
    )
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Answer(result.exit_code, result.stdout, result.stderr)


def assert_honest(answer: Answer, line: Line) -> None:
    """Assert that the command ended as documented, with a proper error that is safe to print."""
    assert answer.code in DOCUMENTED, answer
    for text in (answer.stdout, answer.stderr):
        assert "Traceback" not in text, text
        assert "sessionsdb: unexpected" not in text, text
        if text is answer.stderr or not any(form in line.arguments for form in FOR_PROGRAMS):
            assert CONTROLS.search(text) is None, text
    if answer.code == 1 and line.command not in ("doctor", "import"):
        assert answer.stderr.splitlines()[-1].startswith("sessionsdb: "), answer.stderr
    if answer.code == 2:
        assert "Usage: " in answer.stderr
        assert answer.stdout == ""


@pytest.mark.parametrize("command", sorted(commands()))
@fuzzed(4)
@given(data=st.data())
def test_a_command_does_its_work_or_says_what_is_wrong(
    database: Database, field: tuple[Field, Run[Any]], command: str, data: st.DataObject
) -> None:
    line = data.draw(lines(command))
    ground, run = field
    db = run(ground.prepared())
    also_here = command not in WIDE
    before = run(ground.others(db, also_here=also_here))
    answer = call(database, db, line)
    assert_honest(answer, line)
    if not (line.everywhere and command in WIDE):
        assert run(ground.others(db, also_here=also_here)) == before


def test_every_argument_and_option_is_known() -> None:
    """Every argument and option has values to draw, without which the fuzzer finds nothing."""
    every = [(name, one) for name, parameters in commands().items() for one in parameters]
    assert len(every) > 100
    for name, one in every:
        assert one.is_flag or values(one) is not None, name
    assert set(LEFT_OUT) <= {(name, one.name) for name, one in every}
    assert set(ALWAYS) | set(WIDE) <= set(commands())


@fuzzed(200)
@given(path=paths)
def test_no_path_that_is_drawn_leads_out_of_the_folder(path: str) -> None:
    """A command writes to its path, and the user of the tests may be allowed to write anywhere."""
    assert not path.startswith(("/", "~"))
    assert ".." not in path


@fuzzed(20)
@given(line=lines("spawn"))
def test_a_line_has_all_that_its_command_needs(line: Line) -> None:
    parsed = CliRunner().invoke(app, ["--url", "sqlite://", "spawn", *line.arguments], env=PLAIN)
    assert "Missing argument" not in parsed.stderr


# ---- regressions ---------------------------------------------------------------------------------


class Kept(NamedTuple):
    """A command line that failed once, and its outcome now."""

    arguments: list[str]
    code: int
    says: str


ON_A_SQLITE_FILE = [
    Kept(["worker", "..:x"], 2, "is not of the form"),
    Kept(["worker", ".a:b"], 2, "is not of the form"),
    Kept(["list", "\u202egnp.exe\x1b[2J"], 2, "(\\u202egnp.exe\\x1b[2J)"),
    Kept(["list", "--\u202egnp\x1b[2J"], 2, "\\u202egnp\\x1b[2J"),
    Kept(["\u202egnp\x1b[2J"], 2, "\\u202egnp\\x1b[2J"),
    Kept(["delete", "x", "--children", "\u202e\x1b[2J"], 2, "--children"),
    Kept(["top", "--once", "--namespace", "\u202e\x1b[2J"], 0, "namespace \\u202e\\x1b[2J"),
    Kept(["mcp", "--http", "--tokens", INPUT_FILE], 1, "is not UTF-8"),
    Kept(["backup", SPECIAL_FILE, "--force"], 1, "is a device or a pipe"),
    Kept(["backup", "caf\udce9.db"], 0, "copied: "),
    Kept(["list", "--active-since", "0001-01-01T00:00:00+1400"], 2, "is no time: write an age"),
    Kept(["report", "sessions", "--limit", "9" * 25], 0, ""),
    Kept(["register", "deep", "--metadata", '{"a": ' * 70 + "1" + "}" * 70], 2, "nests deeper"),
]


@pytest.fixture
def _nothing_but_bytes() -> None:
    Path(INPUT_FILE).write_bytes(b"\xff\xfe{}")


@pytest.mark.parametrize("kept", ON_A_SQLITE_FILE, ids=lambda kept: " ".join(kept.arguments)[:40])
@pytest.mark.usefixtures("_nothing_but_bytes")
def test_fixed_errors_stay_fixed(sqlite_files: SqliteFiles, kept: Kept) -> None:
    with sqlite_files.new_database() as database:
        result = CliRunner().invoke(app, ["--url", database.url, *kept.arguments], env=PLAIN)
    answer = Answer(result.exit_code, result.stdout, result.stderr)
    assert_honest(answer, Line(kept.arguments[0], kept.arguments[1:], b""))
    assert answer.code == kept.code, answer
    assert kept.says in " ".join((answer.stdout + answer.stderr).split())


URLS = {
    "sqlite:///x.db?check_same_thread=maybe": "check_same_thread",
    "sqlite:///x.db?isolation_level=NONE": "isolation_level",
    "sqlite:///x.db?mode=ro": "mode",
    "sqlite:///file:x.db?uri=true&mode=memory": "write sqlite:// for a database in memory",
    "sqlite:///file::memory:?uri=true": "write sqlite:// for a database in memory",
    "sqlite:///x.db?cached_statements=-1": "must be a whole number",
    "sqlite:///x.db?cached_statements=99999999999999999999": "can't be used",
    "sqlite:///caf\udce9.db": "what is not UTF-8",
    "postgresql://127.0.0.1:99999/x": "port must be 0-65535",
    "postgresql://127.0.0.1:1/x?port=abc&host=127.0.0.1": "abc",
    "postgresql://127.0.0.1:1/x?prepared_statement_cache_size=x": "must be a whole number",
}


@pytest.mark.parametrize("url", URLS)
def test_a_url_that_can_not_be_used_is_one_line(url: str) -> None:
    result = CliRunner().invoke(app, ["--url", url, "list"], env=PLAIN)
    answer = Answer(result.exit_code, result.stdout, result.stderr)
    assert "unexpected" not in answer.failed(URLS[url])
    assert os.listdir() == [SPECIAL_FILE]


# ---- as programs ---------------------------------------------------------------------------------


ECHO = ["worker", "sessionsdb.handlers:echo"]


@pytest.mark.parametrize(
    "arguments",
    [
        *(["history", b"caf\xe9"], ["send", "chat", b"\xff\xfe"], ["import", b"\xff.jsonl"]),
        *([b"\x1b[2J\xff"], ["list", b"--\xe9"], ["list", "--limit", b"\xc3\x28"]),
        *(["mcp", "--http", "--host", "x" * 70], ["mcp", "--http", "--host", b"\xe9.example"]),
        [*ECHO, "--prometheus-port", "0", "--prometheus-host", "x" * 70],
    ],
    ids=repr,
)
def test_bytes_on_a_real_command_line_are_told_and_refused(
    sqlite_files: SqliteFiles, arguments: list[str | bytes]
) -> None:
    with sqlite_files.new_database() as database:
        done = subprocess.run(
            [PROGRAM, "--url", database.url, *arguments],
            capture_output=True,
            env=environment({"LC_ALL": "C", "SESSIONSDB_MCP_TOKEN": "t" * 40}),
            timeout=60,
            check=False,
        )
    assert done.returncode in (1, 2), done
    told = done.stderr.decode()
    assert "Traceback" not in told
    assert "sessionsdb: unexpected" not in told, told
    assert CONTROLS.search(told) is None, told


def test_an_mcp_server_survives_any_input_of_a_client(sqlite_files: SqliteFiles) -> None:
    rubbish = [b"", b"{", b"\xff\xfe", b"null", b"[]", b"9" * 5_000, b"[" * 100_000, b"\x00" * 9]
    rubbish += [
        b'{"jsonrpc": "2.0", "id": 1, "method": 5}',
        b'{"jsonrpc": "2.0"}',
        b"x" * 1_000_000,
    ]
    hello = {"protocolVersion": "2025-06-18", "capabilities": {}}
    hello["clientInfo"] = {"name": "test", "version": "1"}
    request = {"jsonrpc": "2.0", "id": 7, "method": "initialize", "params": hello}
    with (
        sqlite_files.new_database() as database,
        subprocess.Popen(
            [PROGRAM, "--url", database.url, "mcp", "--session", "desk"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"\n".join([*rubbish, json.dumps(request).encode(), b""]))
        process.stdin.flush()
        answer = next(
            found for line in process.stdout if (found := json.loads(line)).get("id") == 7
        )
        _rest, told = process.communicate(timeout=60)
    assert answer["result"]["serverInfo"]["name"] == "sessionsdb"
    assert process.returncode == 0, told
    assert b"Traceback" not in told


def test_no_id_and_no_error_can_forge_a_line_of_the_log(database: Database) -> None:
    forged = "x\n2026-01-31 12:00:00 INFO turn committed: session=forged \x1b[2J"
    cli = CommandLine(database.url)
    cli("register", forged).ok()
    cli("send", forged, "hello").ok()
    told = (
        cli.program("worker", "sessionsdb.handlers:echo", "--until-idle", "--verbose").ok().stderr
    )
    [line] = [line for line in told.splitlines() if "forged" in line]
    assert "turn committed: session=x\\n2026" in line
    assert CONTROLS.search(told) is None

"""Rules for every command: the place of the options, the form of errors, safe output."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from fcntl import ioctl
from pathlib import Path
from termios import FIONREAD
from typing import IO

import pytest

from devtools.databases import Database
from sessionsdb import SessionsDB
from sessionsdb.cli.console import output
from sessionsdb.cli.console.errors import without_password
from tests.support.command_line import PROGRAM, CommandLine, environment

HOSTILE = "\x1b]0;owned\x07\x1b[2Jred\u202egnp.exe\x9b31m[bold]not markup[/bold]\r:smile:"


@pytest.fixture
def cli(database: Database) -> CommandLine:
    return CommandLine(database.url)


@pytest.fixture
def sqlite_cli(tmp_path: Path) -> CommandLine:
    return CommandLine(f"sqlite:///{tmp_path / 'test.db'}")


# ---- the place of the options ----------------------------------------------------------------


def test_the_database_may_be_named_before_and_after_the_command(tmp_path: Path) -> None:
    first, second = (f"sqlite:///{tmp_path / name}.db" for name in ("first", "second"))
    CommandLine(first)("register", "chat-1").ok()
    CommandLine(first)("register", "chat-2", "--url", second).ok()
    assert [s["id"] for s in CommandLine(first)("list", "--json").json] == ["chat-1"]
    assert [s["id"] for s in CommandLine(second)("list", "--json").json] == ["chat-2"]


def test_the_database_and_the_namespace_come_from_the_environment(tmp_path: Path) -> None:
    env = environment(
        {"SESSIONSDB_URL": f"sqlite:///{tmp_path}/env.db", "SESSIONSDB_NAMESPACE": "acme"}
    )
    subprocess.run([PROGRAM, "register", "chat-1"], env=env, check=True, timeout=60)
    listed = CommandLine(env["SESSIONSDB_URL"])("list", "--namespace", "acme", "--json")
    assert [s["id"] for s in listed.json] == ["chat-1"]
    assert CommandLine(env["SESSIONSDB_URL"])("list", "--json").json == []


def test_an_option_wins_over_the_environment(tmp_path: Path) -> None:
    env = {"SESSIONSDB_URL": f"sqlite:///{tmp_path}/env.db", "SESSIONSDB_NAMESPACE": "acme"}
    cli = CommandLine(f"sqlite:///{tmp_path}/given.db")
    cli("register", "chat-1", env=env).ok()
    assert not (tmp_path / "env.db").exists()
    assert len(cli("--namespace", "acme", "list", "--json").json) == 1


def test_without_a_url_it_is_a_file_in_the_working_folder(tmp_path: Path) -> None:
    done = subprocess.run(
        [PROGRAM, "register", "chat-1"], cwd=tmp_path, env=environment(), check=True, timeout=60
    )
    assert done.returncode == 0
    assert (tmp_path / "sessionsdb.db").exists()


def test_namespaces_see_nothing_of_each_other(cli: CommandLine) -> None:
    cli("register", "chat-1", "--namespace", "acme").ok()
    cli("send", "chat-1", "hello", "--namespace", "acme").ok()
    other = ["--namespace", "globex"]
    for command in (
        ["history", "chat-1"],
        ["tree", "chat-1"],
        ["send", "chat-1", "hi"],
        ["spawn", "chat-1", "hi"],
        ["end", "chat-1"],
        ["export", "--session", "chat-1"],
        ["register", "x", "--parent", "chat-1"],
    ):
        cli(*command, *other).failed("unknown session: chat-1")
    cli("outcome", "chat-1", "1", *other).failed("unknown receipt")
    assert cli("delete", "chat-1", *other, "--json").json == {"deleted": False}
    assert cli("outcome", "chat-1", "1", "--namespace", "acme", "--json").ok()


def test_the_program_says_its_version(sqlite_cli: CommandLine) -> None:
    assert re.fullmatch(r"sessionsdb \d+\.\d+\.\d+\n", sqlite_cli.program("--version").stdout)


def test_the_package_runs_as_a_module(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sessionsdb.cli", "--version"],
        capture_output=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.startswith(b"sessionsdb ")


# ---- errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("sessions.db", "not a database URL"),
        ("mysql://me@host/name", "no support for mysql"),
        ("sqlite:////nowhere/at/all.db", "unable to open database file"),
        ("postgresql://me@127.0.0.1:1/name", "can't be reached"),
        ("postgresql://me@127.0.0.1:port/name", "not a database URL"),
    ],
)
def test_a_database_that_cannot_be_opened_is_one_line(url: str, words: str) -> None:
    CommandLine(url)("list").failed(words)


def test_a_file_that_cannot_be_opened_leaves_no_thread_behind(tmp_path: Path) -> None:
    # A thread that is left would print a traceback, because the event loop is closed.
    for _ in range(20):
        CommandLine(f"sqlite:///{tmp_path}/nowhere/test.db")("list").failed("unable to open")
        for thread in threading.enumerate():
            if "_connection_worker_thread" in thread.name:
                thread.join(5)  # an ending thread needs a moment, a leaked one never ends
                assert not thread.is_alive()


def test_a_file_that_is_not_a_database_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "text.db"
    path.write_text("this is no database\n" * 100)
    CommandLine(f"sqlite:///{path}").program("list").failed("not a database")


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:hunter22@127.0.0.1:1/name",
        "postgresql://me:hunter22@127.0.0.1:port/name",
        "postgresql://me:hunter22@host.invalid/name",
        "mysql://me:hunter22@host/name",
        "me:hunter22@host/name?password=hunter22",
        "nothing://me:hunter22@host/name",
        "postgresql://127.0.0.1:1/name?user=me&password=hunter22",
        "postgresql://me:hunter22@127.0.0.1:1/name?nonsense=1",
        "postgresql://me:hunter22@127.0.0.1:1/name?sslmode=nonsense",
        "postgresql://" + "m" * 60 + ":hunter22hunter22hunter22@host:port/name",
    ],
)
def test_a_password_is_never_shown(url: str) -> None:
    answer = CommandLine(url)("list")
    assert "hunter2" not in answer.failed()


def test_passwords_are_hidden_wherever_they_stand() -> None:
    url = "postgresql://me:p%40ss@rd/x@host/name"
    assert without_password(f"can't open {url}") == "can't open postgresql://me:***@host/name"
    assert "p@ss" not in without_password("the driver said p@ss@rd/x", url)


def test_a_missing_driver_is_one_line(
    sqlite_cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    sqlite_cli("list", "--url", "postgresql://me@host/name").failed(
        "a package is missing", "asyncpg"
    )


def test_an_error_of_ours_is_one_line(
    sqlite_cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_value: object) -> str:
        raise ZeroDivisionError("two\nlines \x1b[2J")

    monkeypatch.setattr(output, "as_json", broken)
    sqlite_cli("register", "chat-1", "--json").failed("unexpected ZeroDivisionError", "\\x1b")


@pytest.mark.parametrize(
    "args",
    [
        ["nonsense"],
        ["list", "--nonsense"],
        ["list", "--limit", "-1"],
        ["list", "--limit", "x"],
        ["list", "--active-since", "yesterday"],
        ["history"],
        ["history", "chat-1", "--limit", "1.5"],
        ["send", "chat-1", "hi", "--wait", "-1"],
        ["delete", "chat-1", "--children", "x"],
        ["register", "chat-1", "--metadata", "[1]"],
        ["register", "chat-1", "--metadata", "{"],
        ["register", "chat-1", "--tool", "a", "--no-tools"],
        ["migrate", "--since", "0001"],
        ["migrate", "--sql", "--since", "nonsense"],
        ["migrate", "--sql", "--json"],
        ["import", "-", "--max-line-mib", "0"],
        ["search"],
        ["search", "!!"],
        ["worker", "os:getcwd"],
        ["worker", "collections:OrderedDict"],
        ["list", "--namespace", ""],
        ["state", "chat-1", "--set", "=1"],
    ],
)
def test_a_wrong_argument_is_exit_code_2(sqlite_cli: CommandLine, args: list[str]) -> None:
    answer = sqlite_cli(*args)
    assert answer.code == 2
    assert "Usage: sessionsdb" in answer.stderr
    assert "Traceback" not in answer.stderr
    assert answer.stdout == ""


@pytest.mark.parametrize(
    ("command", "usage"),
    [
        ([], "sessionsdb [OPTIONS] COMMAND [ARGS]..."),
        (["chat"], "sessionsdb chat [OPTIONS] [ID]"),
        (["requeue"], "sessionsdb requeue [OPTIONS] [ID] [POSITION]"),
        (["send"], "sessionsdb send [OPTIONS] ID TEXT"),
    ],
)
def test_a_usage_error_shows_the_usage_of_the_help(
    sqlite_cli: CommandLine, command: list[str], usage: str
) -> None:
    first = f"Usage: {usage}\n"
    assert sqlite_cli(*command, "--nonsense").stderr.startswith(first)
    assert sqlite_cli(*command, "--help").stdout.startswith(first)


def test_a_database_from_a_newer_version_is_refused(
    sqlite_cli: CommandLine, tmp_path: Path
) -> None:
    sqlite_cli("list").ok()
    connection = sqlite3.connect(tmp_path / "test.db")
    connection.execute("UPDATE sessionsdb_version SET version_num = '9999'")
    connection.commit()
    connection.close()
    for command in (["list"], ["migrate"]):
        sqlite_cli(*command).failed("9999", "upgrade the sessionsdb package")


def test_a_closed_pipe_ends_it_with_one_line(sqlite_cli: CommandLine, tmp_path: Path) -> None:
    lines = tmp_path / "many.jsonl"
    message = {"role": "user", "content": "x" * 1000}
    with lines.open("w") as file:
        for number in range(300):
            file.write(json.dumps({"session_id": f"s-{number}", "messages": [message] * 3}) + "\n")
    sqlite_cli("import", str(lines)).ok()
    for command in (["export"], ["list"], ["list", "--json"], ["history", "s-1"]):
        read, write = os.pipe()
        os.close(read)
        done = subprocess.run(
            [PROGRAM, "--url", sqlite_cli.url, *command],
            stdout=write,
            stderr=subprocess.PIPE,
            env=environment(),
            timeout=60,
            check=False,
        )
        os.close(write)
        assert done.returncode == 1, command
        assert done.stderr.count(b"\n") == 1, done.stderr
        assert b"standard output was closed" in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device")
def test_a_full_disk_is_one_line(sqlite_cli: CommandLine) -> None:
    sqlite_cli("register", "chat-1").ok()
    for command in ("list", "export"):
        with open("/dev/full", "wb") as full:
            done = subprocess.run(
                [PROGRAM, "--url", sqlite_cli.url, command],
                stdout=full,
                stderr=subprocess.PIPE,
                env=environment(),
                timeout=60,
                check=False,
            )
        assert done.returncode == 1
        assert done.stderr == b"sessionsdb: No space left on device\n"


@pytest.mark.parametrize("command", [["send", "chat-1", "-"], ["import", "-"]])
def test_ctrl_c_while_it_reads_is_exit_code_130(
    sqlite_cli: CommandLine, command: list[str]
) -> None:
    sqlite_cli("register", "chat-1").ok()
    with subprocess.Popen(
        [PROGRAM, "--url", sqlite_cli.url, *command],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    ) as process:
        assert process.stdin is not None
        wait_until_it_reads(process.stdin)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 130
        assert process.stderr is not None
        assert process.stderr.read() == b"sessionsdb: interrupted\n"


def test_ctrl_c_while_it_waits_is_exit_code_130(cli: CommandLine) -> None:
    cli("register", "chat-1").ok()
    with subprocess.Popen(
        [PROGRAM, "--url", cli.url, "send", "chat-1", "hi", "--wait", "50"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment({"PYTHONUNBUFFERED": "1"}),
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"sent: message 1 of session chat-1\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 130
        assert process.stderr is not None
        assert process.stderr.read() == b"sessionsdb: interrupted\n"
    assert cli("outcome", "chat-1", "1", "--json").json["status"] == "pending"


def wait_until_it_reads(pipe: IO[bytes]) -> None:
    """Write a space, and wait until the program has taken it from the pipe."""
    pipe.write(b" ")
    pipe.flush()
    deadline = time.monotonic() + 60
    while int.from_bytes(ioctl(pipe, FIONREAD, bytes(4)), sys.byteorder):
        assert time.monotonic() < deadline, "the program does not read"
        time.sleep(0.01)


# ---- safe output -----------------------------------------------------------------------------


def test_stored_text_cannot_drive_the_terminal(cli: CommandLine) -> None:
    asyncio.run(store_hostile_text(cli.url))
    for command in (
        ["list"],
        ["list", "--json"],
        ["tree"],
        ["tree", "--json"],
        ["history", f"a{HOSTILE}"],
        ["history", f"a{HOSTILE}", "--json"],
        ["export"],
        ["send", f"a{HOSTILE}", "hi"],
    ):
        # With colour: `harmless` removes our colour codes, so a remaining code is stored text.
        answer = cli(*command, env={"FORCE_COLOR": "1"})
        assert answer.code == 0
        assert harmless(answer.stdout), (command, answer.stdout)
    failed = cli("history", f"no{HOSTILE}")
    assert harmless(failed.stderr)
    shown = cli("history", f"a{HOSTILE}").stdout
    assert "[bold]not markup[/bold]" in shown
    assert ":smile:" in shown
    assert "\\x1b]0;owned\\x07" in shown


async def store_hostile_text(url: str) -> None:
    async with SessionsDB(url) as db:
        await db.broker.register(
            f"a{HOSTILE}", channel=f"b{HOSTILE}", peer=f"c{HOSTILE}", system=HOSTILE
        )
        await db.broker.register("child", channel="x", peer="", parent=f"a{HOSTILE}")
        await db.store.save(f"a{HOSTILE}", [{"role": f"d{HOSTILE}", "content": f"e{HOSTILE}"}])
        await db.broker.end("child", reason=f"f{HOSTILE}")


def harmless(text: str) -> bool:
    without_color = re.sub(r"\x1b\[[0-9;]*m", "", text)
    return not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", without_color)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8", "cp437"])
def test_no_content_fails_in_any_encoding(sqlite_cli: CommandLine, encoding: str) -> None:
    contents = ["ünïcödé ✓ 😀", "\ud800 half", "nul \x00 here", {"deep": [1, None]}]
    line = {"session_id": "ähm-✓", "messages": [{"content": content} for content in contents]}
    sqlite_cli("import", "-", input=json.dumps(line)).ok()
    for command in (["list"], ["tree"], ["history", "ähm-✓"], ["history", "ähm-✓", "--json"]):
        done = subprocess.run(
            [PROGRAM, "--url", sqlite_cli.url, *command],
            capture_output=True,
            env=environment({"PYTHONIOENCODING": encoding, "LC_ALL": "C.UTF-8"}),
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert b"hm-" in done.stdout or command[-1] == "--json" or command[0] == "history"


def test_json_is_ascii_whatever_it_holds(sqlite_cli: CommandLine) -> None:
    metadata = '{"half": "\\ud800", "nul": "\\u0000", "big": 1' + "0" * 400 + "}"
    made = sqlite_cli("register", "ähm", "--peer", "✓", "--metadata", metadata, "--json").ok()
    assert made.stdout.isascii()
    shown = sqlite_cli("tree", "--json").ok()
    assert shown.stdout.isascii()
    assert shown.json[0]["metadata"] == json.loads(metadata)


def test_output_into_a_pipe_is_not_wrapped(sqlite_cli: CommandLine) -> None:
    long = "chat-" + "x" * 400
    sqlite_cli("register", long, "--peer", "y" * 300).ok()
    assert long in sqlite_cli.program("list").stdout
    assert long in sqlite_cli.program("tree").stdout


def test_on_a_narrow_terminal_nothing_is_cut_off(sqlite_cli: CommandLine) -> None:
    long = "".join(f"{number:04}" for number in range(100))
    sqlite_cli("register", long).ok()
    for command in ("list", "tree"):
        shown = on_a_terminal([str(PROGRAM), "--url", sqlite_cli.url, command], columns=60)
        lines = re.sub(r"\x1b\[[0-9;]*m", "", shown).splitlines()
        assert long in "".join(line.split(" ")[0] for line in lines)


def on_a_terminal(command: list[str], *, columns: int) -> str:
    """Return the output of a command on a terminal."""
    main, side = pty.openpty()
    with subprocess.Popen(
        command,
        stdin=side,
        stdout=side,
        stderr=side,
        env=environment({"TERM": "xterm", "COLUMNS": str(columns)}),
    ) as process:
        os.close(side)
        parts = []
        try:
            while part := os.read(main, 65536):
                parts.append(part)
        except OSError:  # on Linux the end of a terminal is an error
            pass
        os.close(main)
        assert process.wait(timeout=60) == 0
    return b"".join(parts).decode()


def test_a_closed_standard_output_is_no_traceback(sqlite_cli: CommandLine) -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", f"{PROGRAM} --url {sqlite_cli.url} register chat-1 >&-"],
        capture_output=True,
        env=environment(),
        timeout=60,
        check=False,
    )
    assert b"Traceback" not in done.stderr
    assert len(sqlite_cli("list", "--json").json) == 1

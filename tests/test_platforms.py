"""The program where Python lacks parts of POSIX, as on Windows. See ``windows_like.py``.

No Windows runs here. So these tests hold the guards only: docs/platforms.md tells what is tested.
"""

from __future__ import annotations

import ast
import asyncio
import errno
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from devtools.databases import Database
from sessionsdb import SessionsDB
from sessionsdb.cli.command_list import COMMANDS
from sessionsdb.cli.console.input_lines import LineSource
from sessionsdb.cli.console.signals import on_stop_signal
from tests.support.command_line import CommandLine, environment
from tests.support.terminal import on_terminal
from tests.support.waiting import until

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "sessionsdb"
PROGRAM = (sys.executable, "-m", "tests.support.windows_like")

AGENT = """
import asyncio
from pathlib import Path

async def hang(turn):
    Path("begun").touch()
    await asyncio.Event().wait()

async def answer(turn):
    return f"re {turn.text}"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "my_agent.py").write_text(AGENT)
    return tmp_path


def surroundings(folder: Path) -> dict[str, str]:
    return environment({"PYTHONPATH": os.pathsep.join((str(ROOT), str(folder)))})


@contextmanager
def started(url: str, folder: Path, *words: str, **streams: Any) -> Iterator[Any]:
    """Run a command, and kill it at the end of the block."""
    with subprocess.Popen(
        [*PROGRAM, "--url", url, *words],
        cwd=folder,
        env=surroundings(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **streams,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def run_many(url: str, folder: Path, *lines: tuple[str, ...]) -> list[dict[str, Any]]:
    done = subprocess.run(
        [*PROGRAM, "--many"],
        input=json.dumps([["--url", url, *words] for words in lines]),
        cwd=folder,
        env=surroundings(folder),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers: list[dict[str, Any]] = json.loads(done.stdout)
    return answers


@pytest.mark.parametrize("kind", ["sqlite"])
def test_every_command_works(database: Database, folder: Path) -> None:
    """The four that wait have tests of their own below."""
    lines = (
        ("migrate",),
        ("register", "chat"),
        ("send", "chat", "hello"),
        ("inbox", "chat"),
        ("worker", "my_agent:answer", "--until-idle"),
        ("outcome", "chat", "1"),
        ("history", "chat"),
        ("list",),
        ("tree",),
        ("search", "--index", "hello"),
        ("update", "chat", "--model", "m"),
        ("state", "chat", "--set", "a=1"),
        ("fork", "chat", "--new-id", "other"),
        ("spawn", "chat", "look"),
        ("send", "other", "one"),
        ("cancel", "other", "1"),
        ("interrupt", "chat"),
        ("dead-letters",),
        ("requeue", "--all"),
        ("schedule", "chat", "later", "--at", "+2h", "--name", "s"),
        ("schedules",),
        ("unschedule", "s"),
        ("questions",),
        ("end", "other"),
        ("reopen", "other"),
        ("export", "--output", "transcripts.jsonl"),
        ("export", "--output", "transcripts.jsonl"),
        ("delete", "other"),
        ("import", "transcripts.jsonl"),
        ("copy", database.url, "sqlite:///copy.db"),
        ("backup", "backup.db"),
        ("backup", "backup.db", "--force"),
        ("report", "sessions"),
        ("top",),
        ("doctor",),
        ("purge", "--ended-before", "30d", "--yes"),
        ("token", "--list"),
        ("demo",),
    )
    answers = run_many(database.url, folder, *lines)
    failed = [(words, one) for words, one in zip(lines, answers, strict=True) if one["code"]]
    assert failed == [], failed
    assert "re hello" in answers[6]["stdout"]
    # The last three need an open question, a PostgreSQL role and a shell.
    tested = {words[0] for words in lines} | {"chat", "follow", "serve", "mcp"}
    assert set(COMMANDS) - tested == {"answer", "grant-reader"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda one: one.name)
async def test_a_worker_stops_at_a_signal_and_gives_its_turn_back(
    database: Database, folder: Path, number: signal.Signals
) -> None:
    async with SessionsDB(database.url) as db:
        await db.broker.register("chat", channel="test", peer="p")
        receipt = await db.broker.send("chat", "hello")
        with started(database.url, folder, "worker", "my_agent:hang", "--grace", "0") as process:
            await until((folder / "begun").exists)
            process.send_signal(number)
            _, told = await asyncio.to_thread(process.communicate, timeout=30)
            assert process.returncode == 0, told
        assert f"{number.name}: takes nothing new" in told
        outcome = await db.broker.outcome(receipt)
        assert (outcome.status, outcome.attempts) == ("pending", 0)


@pytest.mark.parametrize("kind", ["sqlite"])
def test_a_chat_reads_a_pipe_and_ends_at_ctrl_c(database: Database, folder: Path) -> None:
    chat = ("chat", "--agent", "my_agent:answer")
    with started(database.url, folder, *chat, stdin=subprocess.PIPE) as process:
        process.stdin.write("hello\n")
        process.stdin.flush()
        assert process.stdout.readline() == "re hello\n"
        process.send_signal(signal.SIGINT)  # while a thread waits for the next line
        _, told = process.communicate(timeout=30)
        assert (process.returncode, "interrupted" in told) == (130, True)


@pytest.mark.parametrize("kind", ["sqlite"])
def test_a_chat_on_a_console_reads_plain_lines(database: Database, folder: Path) -> None:
    command = (*PROGRAM, "--url", database.url, "chat", "--agent", "my_agent:answer")
    env = {"PYTHONPATH": os.pathsep.join((str(ROOT), str(folder)))}
    with on_terminal(command, folder=folder, env=env) as terminal:
        terminal.type("hello\n")
        terminal.read_until("re hello")
        terminal.type("\x04")
        terminal.read_to_end()
        assert terminal.process.returncode == 0


@pytest.mark.parametrize("kind", ["sqlite"])
def test_top_on_a_console_tells_the_key_that_ends_it(database: Database, folder: Path) -> None:
    command = (*PROGRAM, "--url", database.url, "top")
    env = {"PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "120", "LINES": "40"}
    with on_terminal(command, folder=folder, env=env) as terminal:
        terminal.read_until("Ctrl-C quits")
        terminal.process.send_signal(signal.SIGINT)
        terminal.read_to_end()
        assert terminal.process.returncode == 0


@pytest.mark.parametrize("kind", ["sqlite"])
def test_follow_and_serve_end_at_sigterm_and_mcp_at_the_end_of_its_input(
    database: Database, folder: Path
) -> None:
    CommandLine(database.url)("register", "chat").ok()
    follow = ("follow", "chat", "--json", "--after", "start")
    with (
        started(database.url, folder, *follow) as following,
        started(database.url, folder, "serve", "--port", "0") as serving,
        started(
            database.url, folder, "mcp", "--visibility", "namespace", stdin=subprocess.PIPE
        ) as mcp,
    ):
        assert following.stdout.readline()
        assert "http://127.0.0.1:" in serving.stderr.readline()
        following.send_signal(signal.SIGTERM)
        serving.send_signal(signal.SIGTERM)
        for process in (following, serving, mcp):
            out, told = process.communicate(timeout=60)
            assert "Traceback" not in told
            assert process.returncode in (0, -signal.SIGTERM), (out, told)
        assert following.returncode == 0


ONLY_POSIX = {"termios", "tty", "pty", "fcntl", "resource", "pwd", "grp", "readline", "curses"}
NOT_OF_WINDOWS = re.compile(
    r"SIG(KILL|HUP|USR[12]|QUIT|ALRM|CHLD|PIPE|WINCH|CONT|TSTP)"
    r"|os\.(fork|killpg|setsid|getuid|geteuid|fchmod|mkfifo|set_blocking|sysconf|O_NOFOLLOW)"
)
KEYBOARD = "cli/chat/keyboard.py"
"""The file that needs POSIX. Only a chat on a terminal with ``termios`` imports it."""


def test_no_module_needs_posix_when_it_is_imported() -> None:
    found = set()
    for file in PACKAGE.rglob("*.py"):
        source = file.read_text()
        for node in ast.parse(source).body:
            names = {one.name for one in node.names} if isinstance(node, ast.Import) else set()
            names |= {node.module} if isinstance(node, ast.ImportFrom) and node.module else set()
            if names & ONLY_POSIX:
                found.add(file.relative_to(PACKAGE).as_posix())
        if NOT_OF_WINDOWS.search(source):
            found.add(file.relative_to(PACKAGE).as_posix())
    assert found == {KEYBOARD}


# ---- parts ---------------------------------------------------------------------------------------


class LoopWithoutPosix(asyncio.SelectorEventLoop):
    """An event loop with the limits of that of Windows."""

    def add_signal_handler(self, *_: object) -> None:
        raise NotImplementedError

    def add_reader(self, *_: object) -> None:
        raise NotImplementedError


def run_without_posix(work: Any) -> Any:
    with asyncio.Runner(loop_factory=LoopWithoutPosix) as runner:
        return runner.run(work)


def test_signals_come_into_the_loop_and_the_old_handlers_come_back() -> None:
    numbers = (signal.SIGTERM, signal.SIGINT)

    async def raise_both() -> list[str]:
        names: list[str] = []
        before = [signal.getsignal(number) for number in numbers]
        with on_stop_signal(names.append):
            for number in numbers:
                signal.raise_signal(number)
                assert number.name not in names, "a handler runs in the loop"
                await until(lambda name=number.name: name in names)
        assert [signal.getsignal(number) for number in numbers] == before
        return names

    assert run_without_posix(raise_both()) == ["SIGTERM", "SIGINT"]


def test_a_cancelled_read_leaves_the_loop_and_later_input_is_no_error() -> None:
    read, write = os.pipe()

    async def cancel_a_read() -> None:
        reading = asyncio.create_task(anext(LineSource(stream).lines_of_text(100)))
        await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading

    with os.fdopen(read, "rb", buffering=0) as stream:
        run_without_posix(cancel_a_read())
        [thread] = [one for one in threading.enumerate() if one.name == "sessionsdb-input"]
        os.write(write, b"late\n")
        os.close(write)
        thread.join(30)
        assert not thread.is_alive()


def test_an_error_of_a_read_comes_out() -> None:
    read, write = os.pipe()
    os.close(write)
    folder = os.open("/", os.O_RDONLY)  # read() of a folder fails

    async def read_a_folder() -> None:
        with os.fdopen(read, "rb", buffering=0) as stream:
            source = LineSource(stream)
            os.dup2(folder, read)
            await anext(source.lines_of_text(100))

    with pytest.raises(IsADirectoryError):
        run_without_posix(read_a_folder())
    os.close(folder)


@pytest.mark.parametrize("kind", ["sqlite"])
@pytest.mark.parametrize("command", ["export --output", "backup --force"])
def test_a_file_that_a_program_has_open_stays_as_it_is(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    target = tmp_path / "target"
    target.write_text("old")

    def refuse(old: object, new: object, **_: object) -> None:
        raise PermissionError(errno.EACCES, "Access is denied", str(old), None, str(new))

    monkeypatch.setattr(os, "replace", refuse)
    told = CommandLine(database.url)(*command.split(), str(target)).failed(
        str(target), "Access is denied; a program may have the file open"
    )
    assert ".part" not in told
    assert target.read_text() == "old"
    assert list(tmp_path.glob(".*")) == []

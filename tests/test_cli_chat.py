"""The command chat: on a terminal, and between standard input and standard output."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from devtools.databases import Database
from sessionsdb import Receipt, SessionId, SessionsDB
from sessionsdb.events import event_from_json
from tests.support.command_line import PROGRAM, CommandLine, environment
from tests.support.terminal import CTRL_C, CTRL_D, Terminal, on_terminal
from tests.support.waiting import until
from tests.test_cli_inbox import answer_all

AGENT = """
import asyncio
from pathlib import Path

async def stream(turn):
    for piece in ("You said: ", turn.text, " \\x1b", "[31m"):
        turn.stream(piece)
        await asyncio.sleep(0.06)
    return f"You said: {turn.text} \\x1b[31m"

async def hang(turn):
    turn.stream("Ro")
    turn.stream("me is")
    Path("begun").touch()
    try:
        await asyncio.Event().wait()
    finally:
        Path("stopped").touch()

async def look(turn):
    return [
        {"role": "assistant", "content": "Let me look."},
        {"role": "tool", "content": "found"},
        {"role": "assistant", "content": "Still looking."},
        {"role": "assistant", "content": f"Found {turn.text}."},
    ]

async def fail(turn):
    raise ValueError("no such city")
"""

HINT = "no worker has taken the message yet"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "my_agent.py").write_text(AGENT)
    return tmp_path


@pytest.fixture
def cli(database: Database) -> CommandLine:
    return CommandLine(database.url)


def chat(cli: CommandLine, *arguments: str) -> list[str | Path]:
    return [PROGRAM, "--url", cli.url, "chat", *arguments]


def texts(cli: CommandLine, id: str) -> list[str]:
    return [message["content"] for message in cli("history", id, "--json").ok().json]


def session_of(terminal: Terminal) -> str:
    """Read the lines at the start of a new chat, and return the id."""
    terminal.read_until("new session ")
    id = terminal.read_until("\n").strip()
    terminal.read_until("> ")
    return id


# ---- on a terminal -------------------------------------------------------------------------------


def test_a_chat_streams_the_reply_and_goes_on_another_day(cli: CommandLine, folder: Path) -> None:
    with on_terminal(chat(cli, "--agent", "my_agent:stream"), folder=folder) as terminal:
        id = session_of(terminal)
        assert id.startswith("chat-")
        terminal.type("hello\r")
        terminal.read_until("hello\nassistant\n")
        assert terminal.read_until("\n> ") == "You said: hello \\x1b[31m\n\n> "
        terminal.type(CTRL_D)
        assert f"sessionsdb chat {id}" in terminal.read_to_end()
        assert (terminal.process.returncode, terminal.echoes()) == (0, True)
    [session] = cli("list", "--json").ok().json
    assert (session["id"], session["channel"]) == (id, "cli")
    assert session["peer"]
    assert texts(cli, id) == ["hello", "You said: hello \x1b[31m"]
    with on_terminal(chat(cli, id[:13]), folder=folder) as terminal:
        start = terminal.read_until("\n> ")
        assert "#1 user" in start
        assert "#2 assistant" in start
        assert start.count("hello") == 2
        terminal.type(CTRL_D)
        terminal.read_to_end()


def test_ctrl_c_stops_the_turn_and_keeps_the_session(cli: CommandLine, folder: Path) -> None:
    with on_terminal(chat(cli, "--agent", "my_agent:hang"), folder=folder) as terminal:
        id = session_of(terminal)
        for number in (1, 2):
            terminal.type("capital?\r")
            terminal.read_until("assistant\nRome is")
            terminal.type(CTRL_C)
            assert terminal.read_until("\n> ") == "\n(stopped)\n\n> "
            assert texts(cli, id) == ["capital?", "Rome is"] * number
        terminal.type(CTRL_C)
        terminal.read_until("Ctrl-C again")
        terminal.read_until("\n> ")
        terminal.type(CTRL_C)
        terminal.read_to_end()
        assert (terminal.process.returncode, terminal.echoes()) == (0, True)
    assert (folder / "stopped").exists()
    assert cli("outcome", id, "2", "--json").ok().json["status"] == "cancelled"


def test_ctrl_c_cancels_a_message_that_no_worker_has_taken(cli: CommandLine) -> None:
    with on_terminal(chat(cli)) as terminal:
        id = session_of(terminal)
        terminal.type("hello\r")
        asyncio.run(_is_pending(cli, id))
        terminal.type(CTRL_C)
        terminal.read_until("(stopped)")
        terminal.read_until("\n> ")
        terminal.type(CTRL_D)
        terminal.read_to_end()
    assert cli("outcome", id, "1", "--json").ok().json["status"] == "cancelled"


async def _is_pending(cli: CommandLine, id: str) -> None:
    async with SessionsDB(cli.url) as db:

        async def is_pending() -> bool:
            found = await db.broker.list()
            return bool(found) and (await db.broker.get(id)).pending == 1

        await until(is_pending)


@pytest.mark.parametrize("kind", ["sqlite"])
def test_a_message_may_have_several_lines(cli: CommandLine, folder: Path) -> None:
    echo = chat(cli, "--agent", "sessionsdb.handlers:echo")
    with on_terminal(echo, folder=folder) as terminal:
        id = session_of(terminal)
        for keys in ("a\\\rb\r", '"""\rc\rd\r"""\r', "\x1b[200~e\nf\x1b[201~\r"):
            terminal.type(keys)
            terminal.read_until("echo: ")
            terminal.read_until("\n> ")
        terminal.type(CTRL_D)
        terminal.read_to_end()
    assert [text for text in texts(cli, id) if "echo" not in text] == ["a\nb", "c\nd", "e\nf"]


@pytest.mark.parametrize("kind", ["sqlite"])
def test_a_message_of_another_sender_is_shown_at_the_prompt(cli: CommandLine) -> None:
    cli("register", "chat-1").ok()
    cli("register", "child-1", "--parent", "chat-1").ok()
    with on_terminal(chat(cli, "chat-1")) as terminal:
        terminal.read_until("\n> ")
        cli("send", "chat-1", "good news", "--sender", "child-1").ok()
        answer_all(cli.url)
        terminal.read_until("from child-1")
        terminal.read_until("good news")
        terminal.read_until("GOOD NEWS")
        terminal.read_until("\n> ")
        terminal.type(CTRL_D)
        terminal.read_to_end()


@pytest.mark.parametrize("kind", ["sqlite"])
def test_a_failed_attempt_is_shown_with_its_error(cli: CommandLine, folder: Path) -> None:
    with on_terminal(chat(cli, "--agent", "my_agent:fail"), folder=folder) as terminal:
        session_of(terminal)
        terminal.type("capital?\r")
        terminal.read_until("attempt 1 failed: ValueError: no such city")
        terminal.read_until("the next attempt is in")
        terminal.type(CTRL_C)
        terminal.read_until("(stopped)")
        terminal.read_until("\n> ")
        terminal.type(CTRL_D)
        assert "Traceback" not in terminal.read_to_end()


@pytest.mark.parametrize("kind", ["sqlite"])
def test_a_worker_that_is_missing_is_said_once(cli: CommandLine) -> None:
    cli("register", "chat-1").ok()
    with on_terminal(chat(cli, "chat-1")) as terminal:
        terminal.read_until("\n> ")
        terminal.type("hello\r")
        terminal.read_until(HINT)
        answer_all(cli.url)
        terminal.read_until("HELLO")
        terminal.read_until("\n> ")
        terminal.type(CTRL_D)
        terminal.read_to_end()
        assert terminal.text.count(HINT) == 1


@pytest.mark.parametrize("kind", ["sqlite"])
def test_the_end_of_the_session_ends_the_chat(cli: CommandLine) -> None:
    cli("register", "chat-1").ok()
    with on_terminal(chat(cli, "chat-1")) as terminal:
        terminal.read_until("\n> ")
        cli("end", "chat-1").ok()
        assert "sessionsdb: session has ended: chat-1" in terminal.read_to_end()
        assert (terminal.process.returncode, terminal.echoes()) == (1, True)


@pytest.mark.parametrize("kind", ["sqlite"])
def test_a_chat_can_be_left_while_the_database_does_not_answer(
    cli: CommandLine, database: Database
) -> None:
    with on_terminal(chat(cli)) as terminal:
        id = session_of(terminal)
        terminal.type("hello\r")
        asyncio.run(_is_pending(cli, id))
        with sqlite3.connect(database.url.removeprefix("sqlite:///")) as other:
            other.execute("BEGIN IMMEDIATE")
            ended = time.monotonic() + 30
            while terminal.process.poll() is None and time.monotonic() < ended:
                terminal.type(CTRL_C)
                with suppress(subprocess.TimeoutExpired):
                    terminal.process.wait(0.3)
        assert "Traceback" not in terminal.read_to_end()
        assert terminal.process.returncode in (0, 130)
        assert terminal.echoes()


def thread_beside_the_main_one(pid: int) -> int:
    """Return a thread that gets the signal on Linux, so that it breaks off no wait of the main one.

    A signal that comes just before the main thread begins to wait breaks off none either.
    """
    if sys.platform != "linux":
        return pid
    return max(thread.id for thread in psutil.Process(pid).threads())


def test_sigterm_gives_the_turn_and_the_terminal_back(cli: CommandLine, folder: Path) -> None:
    with on_terminal(chat(cli, "--agent", "my_agent:hang"), folder=folder) as terminal:
        id = session_of(terminal)
        terminal.type("capital?\r")
        terminal.read_until("Rome is")
        os.kill(thread_beside_the_main_one(terminal.process.pid), signal.SIGTERM)
        assert "Traceback" not in terminal.read_to_end()
        assert (terminal.process.returncode, terminal.echoes()) == (143, True)
    outcome = cli("outcome", id, "1", "--json").ok().json
    assert (outcome["status"], outcome["attempts"]) == ("pending", 0)


@pytest.mark.parametrize("kind", ["sqlite"])
def test_lines_of_the_chat_fit_80_columns(cli: CommandLine) -> None:
    with on_terminal(chat(cli)) as terminal:
        session_of(terminal)
        terminal.type(CTRL_D)
        terminal.read_to_end()
        assert max(map(len, terminal.text.splitlines())) <= 80
    assert cli("list", "--json").ok().json == [], "a chat without a message leaves no session"


# ---- in a pipe -----------------------------------------------------------------------------------


def test_a_pipe_gets_a_reply_for_each_line(cli: CommandLine, folder: Path) -> None:
    answer = cli.program(
        *("chat", "--agent", "sessionsdb.handlers:echo"), input=b"a\nb\\\nc\n\nd", cwd=folder
    ).ok()
    assert answer.stdout == "echo: a\necho: b\nc\necho: d\n"
    [session] = cli("list", "--json").ok().json
    assert answer.stderr == f"session {session['id']}\n"
    assert texts(cli, session["id"])[::2] == ["a", "b\nc", "d"]


def test_a_pipe_gets_all_messages_of_the_assistant(cli: CommandLine, folder: Path) -> None:
    cli("register", "chat-1").ok()
    cli("send", "chat-1", "before").ok()
    answer = cli.program(
        *("chat", "chat-1", "--agent", "my_agent:look"), input=b"a\nb", cwd=folder
    ).ok()
    begin = "Let me look.\nStill looking.\n"
    assert answer.stdout == f"{begin}Found a.\n{begin}Found b.\n"


def test_a_pipe_gets_events_as_json(cli: CommandLine, folder: Path) -> None:
    cli("register", "chat-1").ok()
    answer = cli.program(
        *("chat", "chat-1", "--json", "--agent", "my_agent:stream"),
        input=b'hello\n"two\\nlines"\n"un"quoted"\n',
        cwd=folder,
    ).ok()
    events = [event_from_json(line) for line in answer.stdout.splitlines()]
    assert {event.session_id for event in events} == {"chat-1"}
    asked = [event.message.content for event in events if event.type == "queued"]
    assert asked == ["hello", "two\nlines", '"un"quoted"']
    assert [event.status for event in events if event.type == "turn"] == ["started", "done"] * 3
    assert any(event.type == "delta" for event in events)
    assert answer.stdout.isascii()


@pytest.mark.parametrize("kind", ["sqlite"])
@pytest.mark.parametrize("options", [[], ["--json"]], ids=["text", "json"])
def test_a_message_that_dies_is_exit_code_1(
    cli: CommandLine, folder: Path, options: list[str]
) -> None:
    cli("register", "chat-1").ok()
    worker = ("worker", "my_agent:fail", "--until-idle", "--max-attempts", "1")
    with subprocess.Popen(
        chat(cli, "chat-1", *options),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    ) as process:
        assert process.stdin is not None
        process.stdin.write(b"capital?\n")
        process.stdin.close()
        process.stdin = None
        asyncio.run(_is_pending(cli, "chat-1"))
        assert cli.program(*worker, cwd=folder).code == 1
        out, err = process.communicate(timeout=60)
        assert process.returncode == 1
    assert b"1 message died; see: sessionsdb dead-letters" in err
    if options:
        assert json.loads(out.splitlines()[-1])["type"] in ("turn", "idle")
    else:
        assert b"ValueError: no such city" in err


@pytest.mark.parametrize("kind", ["sqlite"])
@pytest.mark.parametrize("options", [[], ["--json"]], ids=["text", "json"])
def test_a_pipe_is_told_once_that_a_worker_is_missing(cli: CommandLine, options: list[str]) -> None:
    cli("register", "chat-1").ok()
    with subprocess.Popen(
        chat(cli, "chat-1", *options),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    ) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(b"hello\n")
        process.stdin.close()
        process.stdin = None
        assert HINT in process.stderr.readline().decode()
        answer_all(cli.url)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (0, b"")
        assert b"HELLO" in out


async def test_sigterm_in_a_pipe_gives_the_turn_back(
    cli: CommandLine, database: Database, folder: Path
) -> None:
    async with SessionsDB(database.url) as db:
        await db.broker.register("chat-1", channel="cli", peer="me")
        process = await asyncio.create_subprocess_exec(
            *map(str, chat(cli, "chat-1", "--agent", "my_agent:hang")),
            cwd=folder,
            env=environment(),
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdin is not None
        process.stdin.write(b"capital?\n")
        await until((folder / "begun").exists)
        process.send_signal(signal.SIGTERM)
        _, told = await asyncio.wait_for(process.communicate(), 30)
        assert (process.returncode, told) == (143, b"")
        receipt = Receipt(session_id=SessionId("chat-1"), position=1)
        outcome = await db.broker.outcome(receipt)
        assert (outcome.status, outcome.attempts) == ("pending", 0)


@pytest.mark.parametrize("kind", ["sqlite"])
def test_a_session_that_takes_no_messages_is_refused(cli: CommandLine) -> None:
    refused = cli("chat", "no body", input="hello\n")
    refused.failed("unknown session: no body; make it with: sessionsdb register 'no body'")
    cli("register", "chat-1").ok()
    cli("end", "chat-1").ok()
    cli("chat", "chat-1", input="hello\n").failed("has ended: chat-1", "sessionsdb reopen")
    cli("chat", input=b"caf\xe9\n").failed("line 1 is not UTF-8")
    assert cli("chat", "--agent", "nowhere_agent:answer", input="").code == 2
    assert cli("chat", input="").ok().stdout == ""
    assert cli("list", "--json").ok().json == []
    cli("chat", input=b"x" * 1_048_577).failed("the limit")

"""The command that follows a session."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from devtools.databases import Database
from sessionsdb import SessionsDB, Turn
from tests.support.command_line import PROGRAM, CommandLine, environment


@pytest.fixture
def cli(database: Database) -> CommandLine:
    cli = CommandLine(database.url)
    cli("register", "chat-1").ok()
    return cli


async def say(turn: Turn) -> str:
    turn.stream("In ")
    turn.emit("tool", {"name": "atlas"})
    await asyncio.sleep(0.2)
    return "In Italy."


def work(url: str) -> None:
    async def once() -> None:
        async with SessionsDB(url) as db:
            await db.worker(say).run_until_idle()

    asyncio.run(once())


@contextmanager
def follow(cli: CommandLine, *args: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [PROGRAM, "--url", cli.url, "follow", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(None),
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def read_until(process: subprocess.Popen[str], last: str) -> list[str]:
    assert process.stdout is not None
    lines: list[str] = []
    while not lines or lines[-1] != last:
        line = process.stdout.readline()
        assert line, lines
        lines.append(line.rstrip("\n"))
    return lines


def test_a_conversation_is_printed_as_it_grows(cli: CommandLine) -> None:
    with follow(cli, "chat-1") as process:
        assert read_until(process, "* idle") == ["* idle"]
        cli("send", "chat-1", "Where is Rome?").ok()
        read_until(process, "* queued: Where is Rome?")
        work(cli.url)
        lines = read_until(process, "* idle")
        begin = "assistant: "
        parts = [line.removeprefix(begin) for line in lines if line.startswith(begin)]
        assert "".join(parts) == "In Italy."
        assert lines[-2:] == ["* turn done", "* idle"]
        cli("delete", "chat-1").ok()
        assert read_until(process, "* deleted") == ["* deleted"]
        assert process.wait(20) == 0


def test_json_is_one_event_a_line_and_its_cursor_goes_on(cli: CommandLine) -> None:
    cli("send", "chat-1", "hello").ok()
    work(cli.url)
    with follow(cli, "chat-1", "--json", "--after", "start") as process:
        assert process.stdout is not None
        events = [json.loads(process.stdout.readline()) for _ in range(4)]
    assert [event["type"] for event in events] == ["message", "message", "turn", "idle"]
    with follow(cli, "chat-1", "--json", "--after", events[0]["cursor"]) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["message"]["content"] == "In Italy."


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it(cli: CommandLine, number: int) -> None:
    with follow(cli, "chat-1") as process:
        read_until(process, "* idle")
        process.send_signal(number)
        out, error = process.communicate(timeout=20)
        assert (process.returncode, out, error) == (0, "", "")


def test_a_tree_names_the_session_of_each_line(cli: CommandLine) -> None:
    cli("spawn", "chat-1", "dig").ok()
    with follow(cli, "chat-1", "--tree", "--after", "start") as process:
        assert process.stdout is not None
        lines = {process.stdout.readline().strip() for _ in range(2)}
    assert "[chat-1] * idle" in lines
    assert any(line.startswith("[spawn-") and "queued from chat-1: dig" in line for line in lines)


def test_what_it_refuses(cli: CommandLine) -> None:
    cli("follow", "nobody").failed("unknown session")
    cli("follow", "chat-1", "--after", "nonsense").refused("--after is no place", "give start")
    for place in ("1.2", "1", "0"):
        refused = cli("follow", "chat-1", "--tree", "--after", place)
        refused.refused("--tree takes no seq or cursor", "leave --after out")

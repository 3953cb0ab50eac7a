"""The commands on inboxes: send, spawn, outcome."""

from __future__ import annotations

import asyncio
import json
import subprocess

import pytest

from devtools.databases import Database
from sessionsdb import Outcome, Receipt, SessionsDB, SpawnedSession, Turn
from tests.support.command_line import PROGRAM, CommandLine, environment


@pytest.fixture
def cli(database: Database) -> CommandLine:
    cli = CommandLine(database.url)
    cli("register", "chat-1", "--tool", "search", "--tool", "read").ok()
    return cli


def answer_all(url: str) -> None:
    """Let a worker answer the waiting messages: ``hello`` with ``HELLO``, and never ``boom``."""

    async def shout(turn: Turn) -> str:
        if turn.messages[0].content == "boom":
            raise RuntimeError("it went wrong")
        return turn.messages[0].content.upper()

    async def work() -> None:
        async with SessionsDB(url) as db:
            await db.worker(shout, max_attempts=1).run_until_idle()

    asyncio.run(work())


# ---- send ------------------------------------------------------------------------------------


def test_a_sender_that_is_no_session_is_named_as_the_sender(cli: CommandLine) -> None:
    told = cli("send", "chat-1", "hello", "--sender", "ci").failed("--sender is no session: ci")
    assert "leave it out for a message of a user" in told
    cli("register", "ci").ok()
    cli("send", "chat-1", "hello", "--sender", "ci").ok()


def test_send_prints_the_receipt(cli: CommandLine) -> None:
    assert cli("send", "chat-1", "hello").ok().stdout == "sent: message 1 of session chat-1\n"
    receipt = Receipt.model_validate(cli("send", "chat-1", "hello", "--json").ok().json)
    assert receipt == Receipt(session_id="chat-1", position=2)


def test_send_is_once_for_one_key(cli: CommandLine) -> None:
    for duplicate in (False, True):
        sent = cli("send", "chat-1", "hello", "--idempotency-key", "mail-1", "--json")
        assert sent.ok().json == {
            "session_id": "chat-1",
            "position": 1,
            "duplicate": duplicate,
        }
    assert "sent before" in cli("send", "chat-1", "hello", "--idempotency-key", "mail-1").stdout
    cli("send", "chat-1", "other", "--idempotency-key", "mail-1").failed("idempotency key")


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        (b"hello\n", "hello"),
        (b"hello\r\n", "hello"),
        (b"hello", "hello"),
        (b"two\nlines\n\n", "two\nlines\n"),
        ("ünïcödé ✓\n".encode(), "ünïcödé ✓"),
    ],
)
def test_send_reads_standard_input(cli: CommandLine, given: bytes, stored: str) -> None:
    cli("send", "chat-1", "-", input=given).ok()
    answer_all(cli.url)
    assert cli("history", "chat-1", "--json").json[0]["content"] == stored


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (b"", "message must not be empty"),
        (b"\n", "message must not be empty"),
        (b"caf\xe9", "not UTF-8"),
        (b"x" * 1_048_577, "the limit"),
        (b"x" * 3_000_000, "longer than the limit of 1048576 bytes"),
    ],
)
def test_send_refuses_what_is_no_message(cli: CommandLine, given: bytes, words: str) -> None:
    cli("send", "chat-1", "-", input=given).failed(words)
    assert cli("tree", "chat-1", "--json").json[0]["pending"] == 0


def test_send_refuses_an_argument_that_is_not_text(cli: CommandLine) -> None:
    done = subprocess.run(
        [PROGRAM.as_posix().encode(), b"--url", cli.url.encode(), b"send", b"chat-1", b"caf\xe9"],
        capture_output=True,
        env=environment({"LC_ALL": "C.UTF-8"}),
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, b"sessionsdb: the text is not UTF-8\n")


def test_send_to_an_unknown_session_is_refused(cli: CommandLine) -> None:
    cli("send", "nobody", "hello").failed("unknown session: nobody")


def test_send_waits_for_the_answer(cli: CommandLine) -> None:
    with subprocess.Popen(
        [PROGRAM, "--url", cli.url, "send", "chat-1", "hello", "--wait", "50"],
        stdout=subprocess.PIPE,
        env=environment({"PYTHONUNBUFFERED": "1"}),
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"sent: message 1 of session chat-1\n"
        answer_all(cli.url)
        assert process.stdout.read() == b"done, 1 attempt\nHELLO\n"
        assert process.wait() == 0


def test_a_wait_that_gives_up_says_where_the_message_is(cli: CommandLine) -> None:
    outcome = Outcome.model_validate(cli("send", "chat-1", "hi", "--wait", "0.05", "--json").json)
    assert (outcome.status, outcome.receipt.position) == ("pending", 1)
    assert cli("outcome", "chat-1", "1").ok().stdout == "pending, 0 attempts\n"


# ---- spawn -----------------------------------------------------------------------------------


def test_spawn_makes_a_child_with_its_prompt_queued(cli: CommandLine) -> None:
    spawned = cli(
        *("spawn", "chat-1", "look it up", "--model", "small", "--system", "Be brief."),
        *("--tool", "search", "--json"),
    )
    child = SpawnedSession.model_validate(spawned.ok().json)
    assert child.id.startswith("spawn-")
    [_, shown] = cli("tree", "chat-1", "--json").json
    assert (shown["id"], shown["parent"], shown["pending"]) == (child.id, "chat-1", 1)
    assert (shown["channel"], shown["peer"]) == ("spawned", "spawned-by-chat-1")
    assert (shown["model"], shown["system"], shown["tools"]) == ("small", "Be brief.", ["search"])


def test_spawn_reads_its_prompt_from_standard_input(cli: CommandLine) -> None:
    child = cli("spawn", "chat-1", "-", "--json", input="two\nlines\n").ok().json["id"]
    answer_all(cli.url)
    assert cli("history", child, "--json").json[0]["content"] == "two\nlines"


def test_spawn_is_once_for_one_key(cli: CommandLine) -> None:
    spawn = ["spawn", "chat-1", "look", "--idempotency-key", "k", "--json"]
    assert cli(*spawn).ok().json == cli(*spawn).ok().json


def test_spawn_without_tools_gives_none(cli: CommandLine) -> None:
    cli("spawn", "chat-1", "think", "--no-tools").ok()
    cli("spawn", "chat-1", "as you do").ok()
    tools = [session["tools"] for session in cli("tree", "chat-1", "--json").json[1:]]
    assert sorted(tools) == [[], ["search", "read"]]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["nobody", "hi"], "unknown session: nobody"),
        (["chat-1", ""], "prompt must not be empty"),
        (["chat-1", "hi", "--tool", "shell"], "may not spawn"),
    ],
)
def test_spawn_that_is_denied_makes_nothing(cli: CommandLine, args: list[str], words: str) -> None:
    cli("spawn", *args).failed(words)
    assert len(cli("tree", "--json").json) == 1


def test_spawn_waits_for_the_first_reply(cli: CommandLine) -> None:
    with subprocess.Popen(
        [PROGRAM, "--url", cli.url, "spawn", "chat-1", "hello", "--wait", "50", "--json"],
        stdout=subprocess.PIPE,
        env=environment(),
    ) as process:
        while process.poll() is None:
            answer_all(cli.url)
        assert process.stdout is not None
        child = SpawnedSession.model_validate(json.loads(process.stdout.read()))
    assert child.first_reply is not None
    assert child.first_reply.content == "HELLO"


def test_a_spawn_that_is_not_answered_in_time_lives_on(cli: CommandLine) -> None:
    spawned = cli("spawn", "chat-1", "hello", "--wait", "0.05").ok()
    assert spawned.stderr == "no reply yet; the child lives on\n"
    child = spawned.stdout.removeprefix("spawned: ").strip()
    assert cli("outcome", child, "1", "--json").json["status"] == "pending"


# ---- outcome ---------------------------------------------------------------------------------


def test_outcome_shows_the_reply(cli: CommandLine) -> None:
    cli("send", "chat-1", "hello").ok()
    answer_all(cli.url)
    assert cli("outcome", "chat-1", "1").ok().stdout == "done, 1 attempt\nHELLO\n"
    outcome = Outcome.model_validate(cli("outcome", "chat-1", "1", "--json").ok().json)
    assert outcome.status == "done"
    assert outcome.reply is not None


def test_outcome_shows_why_a_message_died(cli: CommandLine) -> None:
    cli("send", "chat-1", "boom").ok()
    answer_all(cli.url)
    shown = cli("outcome", "chat-1", "1", "--wait", "5").ok().stdout
    assert shown.startswith("dead, 1 attempt\n")
    assert "it went wrong" in shown


def test_the_outcome_of_no_message_is_refused(cli: CommandLine) -> None:
    cli("outcome", "chat-1", "7").failed("unknown receipt")
    cli("outcome", "nobody", "1").failed("unknown receipt")
    cli("outcome", "chat-1", "99999999999999999999").failed("unknown receipt")

"""The worker, dead letters and requeue on the command line."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
from pathlib import Path

import pytest

from devtools.databases import Database
from sessionsdb import SessionsDB
from tests.support.command_line import PROGRAM, CommandLine, environment
from tests.support.waiting import until

AGENT = """
import asyncio
from pathlib import Path

async def answer(turn):
    return f"re {turn.text}"

async def fail(turn):
    raise ValueError("can't do it")

async def hang(turn):
    Path("begun").touch()
    await asyncio.Event().wait()

class Team:
    @staticmethod
    async def lead(turn):
        return "led"

number = 5
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "my_agent.py").write_text(AGENT)
    (tmp_path / "broken_agent.py").write_text("import my_agent\n\nbad = my_agent.number / 0\n")
    (tmp_path / "needy_agent.py").write_text("import no_such_package\n")
    return tmp_path


@pytest.fixture
def cli(database: Database, folder: Path, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    monkeypatch.chdir(folder)
    cli = CommandLine(database.url)
    cli("register", "chat", "--channel", "cli", "--peer", "me").ok()
    return cli


@pytest.mark.parametrize("handler", ["my_agent:answer", "my_agent:Team.lead"])
def test_a_worker_runs_the_handler_of_a_module_in_the_folder(
    cli: CommandLine, handler: str, folder: Path
) -> None:
    cli("send", "chat", "hello").ok()
    answer = cli.program("worker", handler, "--until-idle", cwd=folder).ok()
    assert answer.stdout == "committed 1 turn\n"
    assert answer.stderr == ""
    outcome = cli("outcome", "chat", "1", "--json").ok().json
    assert outcome["status"] == "done"
    assert outcome["reply"]["content"] in ("re hello", "led")


def test_the_echo_handler_comes_with_the_package(cli: CommandLine, folder: Path) -> None:
    cli("send", "chat", "hello").ok()
    cli.program("worker", "sessionsdb.handlers:echo", "--until-idle", cwd=folder).ok()
    assert cli("outcome", "chat", "1", "--json").ok().json["reply"]["content"] == "echo: hello"


def test_verbose_logs_a_line_a_turn_and_json_an_object_a_turn(
    cli: CommandLine, folder: Path
) -> None:
    for text in ("a", "b"):
        cli("send", "chat", text).ok()
    command = ("worker", "my_agent:answer", "--until-idle")
    lines = cli.program(*command, "--verbose", cwd=folder).ok().stderr.splitlines()
    turns = [line for line in lines if "turn committed" in line]
    assert len(turns) == 2
    assert "INFO turn committed: session=chat namespace=default positions=[1] attempt=1" in turns[0]

    cli("send", "chat", "c").ok()
    logged = cli.program(*command, "--verbose", "--log-json", cwd=folder).ok().stderr
    entries = [json.loads(line) for line in logged.splitlines()]
    [turn] = [entry for entry in entries if entry.get("event") == "turn committed"]
    assert (turn["level"], turn["session"], turn["positions"]) == ("info", "chat", [3])
    assert turn["seconds"] >= 0


def test_dead_letters_show_the_error_and_requeue_gives_another_life(
    cli: CommandLine, folder: Path
) -> None:
    cli("send", "chat", "hello").ok()
    assert cli("dead-letters").ok().stderr == "no dead letters\n"
    failing = ("worker", "my_agent:fail", "--until-idle", "--max-attempts", "1")
    run = cli.program(*failing, cwd=folder)
    assert run.code == 1
    assert "message is dead" in run.stderr
    shown = cli("dead-letters").ok().stdout
    assert "message 1 of session chat, 1 attempt" in shown
    assert "ValueError: can't do it" in shown
    assert 'raise ValueError("can\'t do it")' in shown
    [letter] = cli("dead-letters", "chat", "--json").ok().json
    assert letter["status"] == "dead"
    cli("dead-letters", "nobody").failed("unknown session: nobody")

    assert cli("requeue", "chat", "1").ok().stdout == "requeued: message 1 of session chat\n"
    cli("requeue", "chat", "1").failed("only a dead message can be requeued")
    cli("requeue", "chat", "7").failed("unknown receipt")
    cli.program("worker", "my_agent:answer", "--until-idle", cwd=folder).ok()
    assert cli("outcome", "chat", "1", "--json").ok().json["status"] == "done"


@pytest.mark.parametrize(
    ("handler", "said"),
    [
        ("my_agent", "not of the form"),
        ("my_agent:", "not of the form"),
        ("nowhere_agent:answer", "no module 'nowhere_agent'"),
        ("my_agent:nothing", "has no 'nothing'"),
        ("my_agent:number", "is of type int, not an async function"),
    ],
)
def test_a_handler_that_can_not_be_found_is_a_usage_error(
    cli: CommandLine, handler: str, said: str
) -> None:
    answer = cli("worker", handler, "--until-idle", env={"COLUMNS": "200"})
    assert answer.code == 2
    assert said in answer.stderr


@pytest.mark.parametrize(
    ("module", "error", "line"),
    [
        ("broken_agent", "ZeroDivisionError", "bad = my_agent.number / 0"),
        ("needy_agent", "ModuleNotFoundError", "import no_such_package"),
    ],
)
def test_what_a_users_module_raises_is_shown_as_their_own_traceback(
    cli: CommandLine, module: str, error: str, line: str
) -> None:
    answer = cli("worker", f"{module}:answer", "--until-idle")
    assert answer.code == 1
    assert answer.stderr.startswith("Traceback (most recent call last):\n")
    assert f"{module}.py" in answer.stderr.splitlines()[1], "it begins in their file, not ours"
    assert line in answer.stderr
    assert error in answer.stderr.splitlines()[-1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_stops_it_gracefully_and_a_second_one_at_once(
    cli: CommandLine, database: Database, folder: Path, number: signal.Signals
) -> None:
    async with SessionsDB(database.url) as db:
        receipt = await db.broker.send("chat", "hello")
        process = await asyncio.create_subprocess_exec(
            *(PROGRAM, "--url", database.url, "worker", "my_agent:hang", "--lease", "3600"),
            cwd=folder,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        assert process.stderr is not None
        await until((folder / "begun").exists)
        process.send_signal(number)
        first = (await process.stderr.readline()).decode()
        assert (
            first
            == f"{number.name}: takes nothing new, waits up to 30 s for turns; again: at once\n"
        )
        assert process.returncode is None
        process.send_signal(number)
        rest = (await asyncio.wait_for(process.stderr.read(), 20)).decode()
        assert f"{number.name}: gives back what still runs" in rest
        assert "Traceback" not in rest
        assert await process.wait() == 0
        outcome = await db.broker.outcome(receipt)
        assert (outcome.status, outcome.attempts) == ("pending", 0)


def test_options_that_make_no_sense_are_usage_errors(cli: CommandLine) -> None:
    for option, value in (("--concurrency", "0"), ("--batch", "0"), ("--lease", "0")):
        assert cli("worker", "sessionsdb.handlers:echo", option, value).code == 2


def test_all_namespaces_are_served_when_asked(cli: CommandLine, folder: Path) -> None:
    acme = ("--namespace", "acme")
    cli("register", "chat", "--channel", "cli", "--peer", "me", *acme).ok()
    cli("send", "chat", "hello", *acme).ok()
    command = ("worker", "my_agent:answer", "--until-idle")
    assert cli.program(*command, cwd=folder).ok().stdout == "committed 0 turns\n"
    assert cli.program(*command, "--all-namespaces", cwd=folder).ok().stdout == "committed 1 turn\n"


def test_the_last_line_counts_failed_attempts_and_dead_messages(
    cli: CommandLine, folder: Path
) -> None:
    cli("send", "chat", "hello").ok()
    command = ("worker", "my_agent:fail", "--until-idle", "--max-attempts", "2")
    done = cli.program(*command, cwd=folder)
    assert done.code == 1
    assert done.stdout == "committed 0 turns, 2 attempts failed, 1 message died\n"


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "give either MODULE:HANDLER or --chat MODEL"),
        (["sessionsdb.handlers:echo", "--chat", "m"], "give either MODULE:HANDLER or --chat"),
        (["sessionsdb.handlers:echo", "--tools", "m"], "--base-url and --tools need --chat"),
    ],
)
def test_a_worker_runs_either_a_handler_or_a_model(
    tmp_path: Path, words: list[str], reason: str
) -> None:
    answer = CommandLine(f"sqlite:///{tmp_path}/x.db")("worker", *words)
    assert answer.code == 2
    assert reason in " ".join(answer.stderr.split())

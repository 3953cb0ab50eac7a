"""No line of a command is wider than a terminal of 80 columns, and ids are whole."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from sessionsdb import SessionsDB, Turn
from sessionsdb.types import SpawnRequest
from tests.support.command_line import PROGRAM, CommandLine
from tests.support.terminal import on_terminal

ID = "assistant-1a2b3c4d-1111-4222-8333-444455556666"


@pytest.fixture
def cli(tmp_path: Path) -> CommandLine:
    cli = CommandLine(f"sqlite:///{tmp_path}/test.db")
    asyncio.run(fill(cli.url))
    return cli


async def fill(url: str) -> None:
    async with SessionsDB(url) as db:
        await db.store.append(ID, [{"role": "assistant", "content": "A flight to Rome."}])
        await db.index_search()
        parent = ID
        for _ in range(3):
            parent = (await db.broker.spawn(parent, SpawnRequest(prompt="go"))).id

        async def handler(turn: Turn) -> str:
            if turn.text == "die":
                raise ValueError("no")
            return "done"

        await db.broker.send(ID, "die")
        await db.worker(handler, max_attempts=1).run_until_idle()
        await db.store.append("quiet", [])
        await db.broker.send("quiet", "wait", sender=ID)


def shown(cli: CommandLine, *command: str) -> list[str]:
    """Return the lines of a command on a terminal of 80 columns."""
    with on_terminal([PROGRAM, "--url", cli.url, *command]) as terminal:
        lines = terminal.read_to_end().splitlines()
        assert terminal.process.returncode == 0, lines
    assert max(map(len, lines)) <= 80, lines
    return lines


def test_a_hit_of_search_fits(cli: CommandLine) -> None:
    lines = shown(cli, "search", "flight")
    assert lines[0].endswith(f" UTC  {ID}")
    assert lines[1] == "    message 1, assistant"


def test_a_dead_letter_fits(cli: CommandLine) -> None:
    lines = shown(cli, "dead-letters")
    assert lines[0].endswith(" UTC  message 1, 1 attempt")
    assert lines[1] == f"    of session {ID}"


def test_a_waiting_message_with_a_sender_fits(cli: CommandLine) -> None:
    lines = shown(cli, "inbox", "quiet")
    assert lines[0].endswith(", 0 attempts")
    assert lines[1] == f"    from {ID}"


def test_a_schedule_fits(cli: CommandLine) -> None:
    assert shown(cli, "schedule", ID, "hi", "--at", "+1h", "--name", "n" * 40)[-1] == (
        f"    for session {ID}"
    )
    assert shown(cli, "schedules")[1] == "    " + "n" * 40


def test_the_bars_of_a_tree_fit_and_the_short_ids_are_whole(cli: CommandLine) -> None:
    lines = shown(cli, "report", "tree", "--plot")
    assert "…" not in "".join(lines)
    assert lines[1].split()[0] == "assistant-1a2b3c4d"
    assert len(lines) == 6  # with the header, and the other root


@pytest.mark.parametrize("report", ["sessions", "turns", "inbox", "tree"])
def test_a_report_tells_the_columns_that_do_not_fit(cli: CommandLine, report: str) -> None:
    told = " ".join(" ".join(shown(cli, "report", report)).split())
    assert "left out for the width: " in told
    assert told.endswith("; csv and json have all")


def test_a_pipe_has_each_heading_on_one_line(cli: CommandLine) -> None:
    heading = cli("search", "flight").ok().stdout.splitlines()[0]
    assert heading.endswith(f" UTC  {ID}, message 1, assistant")
    heading = cli("dead-letters").ok().stdout.splitlines()[0]
    assert heading.endswith(f" UTC  message 1 of session {ID}, 1 attempt")

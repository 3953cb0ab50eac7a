"""The commands cancel, interrupt and reopen."""

from __future__ import annotations

import asyncio
import re
import shlex

import pytest

from devtools.databases import Database
from sessionsdb import Outcome, SessionDetails, SessionsDB
from tests.support.command_line import CommandLine
from tests.support.live import stream
from tests.support.turns import claim
from tests.test_cli_inbox import answer_all

CHILD = "spawn-1a2b3c4d-0000-4000-8000-000000000001"


@pytest.fixture
def cli(database: Database) -> CommandLine:
    cli = CommandLine(database.url)
    cli("register", "chat-1").ok()
    return cli


def begin_turn(database: Database, id: str, *pieces: str) -> None:
    """Let a worker that never answers begin a turn, and stream pieces of its reply."""

    async def begin() -> None:
        async with SessionsDB(database.url) as db:
            await claim(db)
        await stream(database, id, *pieces)

    asyncio.run(begin())


def texts(cli: CommandLine, id: str) -> list[str]:
    return [message["content"] for message in cli("history", id, "--json").ok().json]


# ---- cancel ------------------------------------------------------------------------------------


def test_cancel_takes_a_waiting_message_out_of_the_inbox(cli: CommandLine) -> None:
    cli("send", "chat-1", "a").ok()
    cli("send", "chat-1", "b").ok()
    cancelled = cli("cancel", "chat-1", "1").ok()
    assert (cancelled.stdout, cancelled.stderr) == ("cancelled: message 1 of session chat-1\n", "")
    answer_all(cli.url)
    assert texts(cli, "chat-1") == ["b", "B"]


def test_cancel_keeps_the_partial_reply_of_a_running_message_and_says_so(
    cli: CommandLine, database: Database
) -> None:
    cli("send", "chat-1", "a").ok()
    begin_turn(database, "chat-1", "Ro", "me")
    assert cli("cancel", "chat-1", "1").ok().stdout == (
        "cancelled: message 1 of session chat-1; the partial reply is kept\n"
    )
    assert texts(cli, "chat-1") == ["a", "Rome"]


def test_cancel_drops_the_partial_reply_when_asked(cli: CommandLine, database: Database) -> None:
    cli("send", "chat-1", "a").ok()
    begin_turn(database, "chat-1", "Rome")
    cancelled = Outcome.model_validate(
        cli("cancel", "chat-1", "1", "--drop-partial", "--json").ok().json
    )
    assert (cancelled.status, cancelled.reply) == ("cancelled", None)
    assert texts(cli, "chat-1") == []


def test_cancel_leaves_a_finished_message_as_it_is(cli: CommandLine) -> None:
    cli("send", "chat-1", "a").ok()
    answer_all(cli.url)
    told = "finished before: message 1 of session chat-1 is done\n"
    assert cli("cancel", "chat-1", "1").ok().stdout == told
    assert cli("cancel", "chat-1", "1", "--json").ok().json["status"] == "done"


def test_cancel_refuses_what_is_no_message(cli: CommandLine) -> None:
    cli("cancel", "chat-1", "7").failed("unknown receipt: message 7 of session chat-1")
    cli("cancel", "nobody", "1").failed("unknown receipt")
    assert cli("cancel", "chat-1", "0").code == 2
    assert cli("cancel", "chat-1").code == 2


def test_a_unique_beginning_stands_for_the_id(cli: CommandLine) -> None:
    cli("register", CHILD).ok()
    cli("send", CHILD, "a").ok()
    cancelled = cli("cancel", "spawn-1a2b3c4d", "1").ok()
    assert cancelled.stdout == f"cancelled: message 1 of session {CHILD}\n"
    assert cancelled.stderr == f"session {CHILD}\n"
    for command in ("interrupt", "end", "reopen"):
        assert cli(command, "spawn-1a2b3c4d").ok().stderr.startswith(f"session {CHILD}\n")


# ---- interrupt ---------------------------------------------------------------------------------


def test_interrupt_stops_the_turn_and_keeps_the_session(
    cli: CommandLine, database: Database
) -> None:
    cli("send", "chat-1", "a").ok()
    cli("send", "chat-1", "b").ok()
    begin_turn(database, "chat-1", "Rome")
    assert cli("interrupt", "chat-1").ok().stdout == (
        "interrupted: message 1 of session chat-1; the partial reply is kept\n"
    )
    shown = cli("history", "chat-1").ok().stdout
    assert shown.endswith("Rome\n(stopped here)\n")
    answer_all(cli.url)
    assert texts(cli, "chat-1") == ["a", "Rome", "b", "B"]


def test_interrupt_of_an_idle_session_stops_nothing(cli: CommandLine) -> None:
    idle = cli("interrupt", "chat-1").ok()
    assert idle.stdout == ""
    assert idle.stderr == "nothing to stop: no turn runs in session chat-1\n"
    assert cli("interrupt", "chat-1", "--json").ok().json == []
    below = cli("interrupt", "chat-1", "--tree").ok().stderr
    assert below == "nothing to stop: no turn runs in session chat-1 or below it\n"
    cli("interrupt", "nobody").failed("unknown session: nobody")


def test_interrupt_stops_a_tree(cli: CommandLine, database: Database) -> None:
    cli("register", CHILD, "--parent", "chat-1").ok()
    cli("send", CHILD, "a").ok()
    begin_turn(database, CHILD, "Rome")
    assert cli("interrupt", "chat-1", "--json").ok().json == []
    [stopped] = cli("interrupt", "chat-1", "--tree", "--drop-partial", "--json").ok().json
    outcome = Outcome.model_validate(stopped)
    assert (outcome.receipt.session_id, outcome.status) == (CHILD, "cancelled")
    assert texts(cli, CHILD) == []


# ---- reopen ------------------------------------------------------------------------------------


def test_reopen_lets_an_ended_session_take_messages(cli: CommandLine) -> None:
    assert cli("reopen", "chat-1").ok().stdout == "had not ended: chat-1\n"
    cli("end", "chat-1").ok()
    refused = cli("send", "chat-1", "a").failed("session has ended: chat-1")
    [advised] = re.findall(r"with: sessionsdb (reopen .*)", refused)
    assert cli(*shlex.split(advised)).ok().stdout == "reopened: chat-1\n"
    cli("send", "chat-1", "a").ok()
    session = SessionDetails.model_validate(cli("reopen", "chat-1", "--json").ok().json)
    assert session.ended_at is None
    cli("reopen", "nobody").failed("unknown session: nobody")

"""The command line for people: short ids, tables that fit, colours, errors in its own words."""

from __future__ import annotations

import io
import json
import re
import shlex
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from devtools.databases import Database
from sessionsdb import InvalidMessage, SchemaOutOfDate, SearchUnavailable, SessionId, SessionSummary
from sessionsdb.cli.console.error_words import in_options, name_url
from sessionsdb.cli.console.plain_console import PlainConsole
from sessionsdb.cli.console.report_table import report_table
from sessionsdb.cli.console.session_table import session_table
from sessionsdb.cli.console.short_ids import short_ids
from sessionsdb.reports.catalogue import VIEWS, View
from sessionsdb.reports.queries import Report
from tests.support.command_line import CommandLine, environment

UUID = "1a2b3c4d-0000-4000-8000-00000000000"


@pytest.fixture
def cli(database: Database) -> CommandLine:
    return CommandLine(database.url)


# ---- short ids -----------------------------------------------------------------------------------


def test_eight_characters_of_a_uuid_are_shown_and_more_where_two_would_be_equal() -> None:
    other = f"ffffffff{UUID[8:]}1"
    assert short_ids([f"{UUID}1", other, "a-name-that-somebody-gave-1"]) == {
        f"{UUID}1": "1a2b3c4d",
        other: "ffffffff",
        "a-name-that-somebody-gave-1": "a-name-that-somebody-gave-1",
    }
    assert short_ids([f"spawn-{UUID}1"]) == {f"spawn-{UUID}1": "spawn-1a2b3c4d"}
    twins = [f"{UUID}1", f"{UUID}2"]
    assert list(short_ids(twins).values()) == twins


def test_a_unique_beginning_stands_for_the_id(cli: CommandLine) -> None:
    child = f"spawn-{UUID}1"
    for id in ("chat-2026-17", child):
        cli("register", id).ok()
    sent = cli("send", "spawn-1a2b3c4d", "hello").ok()
    assert sent.stdout == f"sent: message 1 of session {child}\n"
    assert sent.stderr == f"session {child}\n"
    assert cli("outcome", "spawn-1a2b", "1", "--json").ok().json["receipt"]["session_id"] == child
    for command in (["history"], ["tree"], ["list", "--root"], ["update", "--model", "m"], ["end"]):
        assert cli(*command, "spawn-1a").ok().stderr.startswith(f"session {child}\n")
    cli("history", "chat-202").ok()


def test_a_missing_session_is_never_taken_for_another_one(cli: CommandLine) -> None:
    cli("register", "chat-2026-17").ok()
    cli("register", f"spawn-{UUID}1").ok()
    for command in (["send", "chat-2026-1", "x"], ["end", "chat-2026-1"]):
        cli(*command).failed("unknown session: chat-2026-1")
    cli("history", "chat-20").failed("unknown session: chat-20")  # under 8 characters
    cli("delete", "spawn-1a2b3c4d").ok()  # what it deletes is named in full
    assert len(cli("list", "--json").json) == 2


def test_a_beginning_of_several_ids_is_refused_with_their_ids(cli: CommandLine) -> None:
    ids = [f"spawn-{UUID}{n}" for n in range(3)]
    for id in ids:
        cli("register", id).ok()
    cli("send", "spawn-1a2b3c4d", "x").failed(", ".join(ids), "give more characters")
    cli("history", f"spawn-{UUID}").failed("give more characters")


# ---- tables --------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [40, 80, 120, 1_000])
@pytest.mark.parametrize("view", VIEWS, ids=[view.report for view in VIEWS])
def test_a_report_fits_and_its_headers_are_whole(view: View, width: int) -> None:
    values = {"text": "t" * 60, "integer": 12_345_678, "seconds": 1.5}
    row = tuple(values.get(column.kind) for column in view.columns)
    table, left_out = report_table(Report(view, [row, row]), None, width)
    names = [str(column.header) for column in table.columns]
    assert sorted([*names, *left_out]) == sorted(view.display)
    assert names[0] == view.display[0]
    if width > 500:
        assert left_out == []
    needed = [max(len(str(c.header)), c.min_width or 0) for c in table.columns]
    assert sum(needed) + 2 * (len(needed) - 1) <= width
    if width >= 80 and "dead" in view.display:
        assert "dead" in names


# ---- words ---------------------------------------------------------------------------------------


def test_errors_speak_of_options(cli: CommandLine) -> None:
    cli("register", "a").ok()
    cli("register", "b", "--parent", "a").ok()
    told = [
        cli("register", "a").failed("--exist-ok", "sessionsdb update"),
        cli("delete", "a", "--children", "refuse").failed("--children cascade"),
        cli("send", "a", "x", "--idempotency-key", "").refused("--idempotency-key"),
        cli("register", "c", "--channel", "").refused("--channel"),
        cli("answer", "a:1", "x").failed("sessionsdb questions").replace(cli.url, ""),
        cli("follow", "a", "--after", "x").refused("give start, a message's seq"),
    ]
    for line in told:
        assert not re.search(r"\w=|\w\(\)|Limits\.|None", line.partition("Error:")[2] or line), line


def test_a_choice_is_refused_without_words_of_a_library(cli: CommandLine) -> None:
    cli("report", "nope").refused("Error: Invalid value for 'NAME': 'nope' is not one of")
    cli("token", "x", "--rights", "nope").refused("'--rights': 'nope' is not one of")


def test_no_error_says_to_raise_a_limit_of_the_api() -> None:
    error = InvalidMessage("message is 9 bytes, the limit is 5, or raise Limits.message_bytes")
    assert in_options(error) == "message is 9 bytes, the limit is 5"


def test_the_parameters_of_a_url_are_no_options() -> None:
    CommandLine("sqlite:///x.db?timeout=-1")("list").failed("timeout in the database URL")
    CommandLine("sqlite://")("--read-url", "x", "list").failed("leave --read-url out")


def test_copy_names_its_own_arguments(tmp_path: Path) -> None:
    cli = CommandLine("sqlite://")
    there, gone = (f"sqlite:///{tmp_path}/{name}.db" for name in ("there", "gone"))
    CommandLine(there)("list").ok()
    cli("copy", gone, there).failed("gone.db; name another one as FROM")
    cli("copy", there, there).refused("FROM and TO are the same database")
    with sqlite3.connect(tmp_path / "there.db") as file:
        file.execute("UPDATE sessionsdb_version SET version_num = '0014'")
    file.close()
    told = cli("copy", there, f"sqlite:///{tmp_path}/new.db").failed("sessionsdb migrate")
    assert f"--url {there}" in told


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:s3cret@host/name", "postgresql://me@host/name"),
        ("postgresql://me:p@ss@host/name", "postgresql://me@host/name"),
        ("postgresql://host/name?password=s3cret", "postgresql://host/name"),
        (
            "postgresql://me@host/name?password=s3cret&schema=agents",
            "'postgresql://me@host/name?schema=agents'",
        ),
        ("sqlite:///my agents.db", "'sqlite:///my agents.db'"),
    ],
)
def test_the_command_that_migrates_names_the_database_without_a_password(
    url: str, shown: str
) -> None:
    told = in_options(SchemaOutOfDate("0001", "0006"), url)
    assert told.endswith(f"run: sessionsdb migrate --url {shown}")
    assert name_url("run: sessionsdb migrate", url) == f"run: sessionsdb migrate --url {shown}"


def test_the_command_that_indexes_names_the_database_and_the_namespace() -> None:
    error = SearchUnavailable.without_index("acme")
    told = in_options(error, "sqlite:///a.db", "acme")
    assert "; run: sessionsdb search --url sqlite:///a.db --namespace acme --index" in told
    assert "or a worker with --index-search," in told
    told = in_options(SchemaOutOfDate("0001", "0006"), "sqlite:///a.db", "acme")
    assert told.endswith("run: sessionsdb migrate --url sqlite:///a.db")  # in all namespaces


def test_a_fork_to_an_id_that_exists_names_the_option(cli: CommandLine) -> None:
    for id in ("a", "b"):
        cli("register", id).ok()
    cli("fork", "a", "--new-id", "b").failed("session exists already: b; give another --new-id")
    cli("fork", "a", "--at", "-1").refused("--at must be 0 or more, not -1")


# ---- update --------------------------------------------------------------------------------------


def test_update_changes_what_is_given_and_keeps_the_rest(cli: CommandLine) -> None:
    cli("register", "a", "--model", "m", "--tool", "search", "--metadata", '{"n": 1}').ok()
    updated = cli("update", "a", "--peer", "ann", "--system", "Be brief.", "--json").ok().json
    assert (updated["model"], updated["peer"], updated["tools"]) == ("m", "ann", ["search"])
    assert (updated["system"], updated["metadata"]) == ("Be brief.", {"n": 1})
    updated = cli("update", "a", "--clear", "tools", "--clear", "model", "--json").ok().json
    assert updated.get("tools") is None
    assert updated.get("model") is None
    assert cli("update", "a", "--no-tools").ok().stdout == "updated: a\n"
    cli("update", "nobody", "--model", "m").failed("unknown session: nobody")
    for wrong in ([], ["--clear", "peer"], ["--clear", "model", "--model", "m"]):
        assert cli("update", "a", *wrong).code == 2


# ---- the program ---------------------------------------------------------------------------------


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sessionsdb", "--version"],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert re.fullmatch(r"sessionsdb \d+\.\d+\.\d+\n", done.stdout)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_commands(shell: str) -> None:
    words = {"COMP_WORDS": "sessionsdb dea", "COMP_CWORD": "1"}
    words |= {"_TYPER_COMPLETE_ARGS": "sessionsdb dea", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    done = subprocess.run(
        [sys.executable, "-m", "sessionsdb"],
        env=environment({**words, "_SESSIONSDB_COMPLETE": f"complete_{shell}"}),
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert "dead-letters" in done.stdout
    assert "register" not in done.stdout


# ---- a stranger's first hour ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [["list"], ["history", "chat-1"], ["tree"], ["dead-letters"], ["report", "sessions"]],
    ids=" ".join,
)
def test_a_limit_of_zero_is_a_wrong_option(cli: CommandLine, command: list[str]) -> None:
    cli("register", "chat-1").ok()
    for form in ([], ["--json"] if command[0] != "report" else ["--format", "json"]):
        refused = cli(*command, "--limit", "0", *form)
        assert refused.code == 2
        assert "'--limit'" in refused.stderr
        cli(*command, "--limit", "1", *form).ok()


def test_positions_begin_at_one(cli: CommandLine) -> None:
    cli("register", "chat-1").ok()
    refused = cli("outcome", "chat-1", "0")
    assert refused.code == 2
    assert "greater than or equal to 1" in refused.stderr


@pytest.mark.parametrize("command", [["history"], ["end"], ["send", "-"], ["tree"]], ids=" ".join)
def test_an_unknown_session_names_the_command_that_lists_them(
    cli: CommandLine, command: list[str]
) -> None:
    cli(command[0], "nope", *command[1:], input="x").failed(
        "unknown session: nope; ", f"sessionsdb list --url {shlex.quote(cli.url)} --ended"
    )


def test_a_wrong_time_is_refused_without_words_of_a_library(cli: CommandLine) -> None:
    refused = cli("list", "--active-since", "yesterday")
    assert refused.code == 2
    assert "--active-since: 'yesterday' is no time" in refused.stderr
    assert "Value error" not in refused.stderr
    assert cli("list", "--active-since", "2h", "--json").ok().json == []


def test_flags_name_no_type(cli: CommandLine) -> None:
    for command in ("list", "worker", "send"):
        assert "bool" not in cli(command, "--help").ok().stdout


def test_a_message_of_nothing_but_reasoning_is_no_empty_line(cli: CommandLine) -> None:
    thinking = {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm"}]}
    line = json.dumps({"session_id": "chat-1", "messages": [thinking]})
    cli("import", "-", input=line).ok()
    assert cli("history", "chat-1").ok().stdout.splitlines()[1] == "(no text)"


@pytest.mark.parametrize("width", [80, 120])
def test_a_long_peer_is_cut_and_each_session_has_one_line(width: int) -> None:
    now = datetime(2026, 1, 31, tzinfo=UTC)
    sessions = [
        SessionSummary(
            id=SessionId(id),
            channel="discord",
            peer=peer,
            created_at=now,
            last_active=now,
            message_count=3,
            parent=SessionId("chat-1"),
        )
        for id, peer in (("chat-1", "bob"), ("chat-2", "somebody with a very long name " * 4))
    ]
    console = PlainConsole(width=width, file=io.StringIO())
    console.print(session_table(sessions, width, short=True))
    shown = console.file.getvalue().splitlines()
    assert len(shown) == 3
    assert max(map(len, shown)) <= width
    assert "somebody" in shown[2]
    assert "…" in shown[2]
    assert "…" not in shown[1]

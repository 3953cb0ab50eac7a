"""The commands on sessions: register, list, tree, history, end, delete."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from devtools.databases import Database
from sessionsdb import SessionDetails, SessionMessage, SessionsDB, SessionSummary
from tests.support.command_line import CommandLine


@pytest.fixture
def cli(database: Database) -> CommandLine:
    return CommandLine(database.url)


def ids(sessions: list[dict[str, object]]) -> list[object]:
    return [session["id"] for session in sessions]


def transcript(id: str, *contents: str) -> str:
    messages = [{"role": "user", "content": content} for content in contents]
    return json.dumps({"session_id": id, "messages": messages}) + "\n"


# ---- register --------------------------------------------------------------------------------


def test_register_makes_a_session_with_all_its_settings(cli: CommandLine) -> None:
    cli("register", "top").ok()
    made = cli(
        *("register", "chat-1", "--channel", "discord", "--peer", "alice", "--parent", "top"),
        *("--model", "gpt-x", "--system", "Be kind.", "--tool", "search", "--tool", "read"),
        *("--metadata", '{"customer": 12}', "--json"),
    )
    summary = SessionSummary.model_validate(made.ok().json)
    assert (summary.id, summary.channel, summary.peer) == ("chat-1", "discord", "alice")
    [_, shown] = cli("tree", "top", "--json").json
    assert shown["parent"] == "top"
    assert (shown["model"], shown["system"]) == ("gpt-x", "Be kind.")
    assert shown["tools"] == ["search", "read"]
    assert shown["metadata"] == {"customer": 12}


def test_no_tools_is_not_no_restriction(cli: CommandLine) -> None:
    cli("register", "none", "--no-tools").ok()
    cli("register", "any").ok()
    tools = {session["id"]: session.get("tools") for session in cli("tree", "--json").json}
    assert tools == {"none": [], "any": None}


def test_register_tells_people_what_it_did(cli: CommandLine) -> None:
    assert cli("register", "chat-1").ok().stdout == "registered: chat-1\n"


def test_a_session_is_registered_once(cli: CommandLine) -> None:
    cli("register", "chat-1", "--peer", "alice").ok()
    cli("register", "chat-1").failed("session exists already: chat-1")
    again = cli("register", "chat-1", "--peer", "bob", "--exist-ok", "--json")
    assert again.ok().json["peer"] == "alice"


@pytest.mark.parametrize("id", ["", "x" * 513])
def test_an_id_that_cannot_be_is_refused(cli: CommandLine, id: str) -> None:
    cli("register", id).refused("session id")


def test_an_unknown_parent_is_refused(cli: CommandLine) -> None:
    cli("register", "chat-1", "--parent", "nobody").failed("unknown session: nobody")


# ---- list ------------------------------------------------------------------------------------


@pytest.fixture
def family(cli: CommandLine) -> CommandLine:
    cli("register", "a", "--channel", "discord", "--peer", "alice").ok()
    cli("register", "b", "--channel", "email", "--peer", "bob").ok()
    cli("register", "b-1", "--channel", "email", "--peer", "bob", "--parent", "b").ok()
    cli("register", "b-1-1", "--parent", "b-1").ok()
    cli("register", "c", "--channel", "discord", "--peer", "carol").ok()
    cli("end", "c").ok()
    return cli


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ([], ["a", "b", "b-1", "b-1-1"]),
        (["--ended"], ["a", "b", "b-1", "b-1-1", "c"]),
        (["--channel", "discord"], ["a"]),
        (["--channel", "discord", "--ended"], ["a", "c"]),
        (["--peer", "bob"], ["b", "b-1"]),
        (["--parent", "b"], ["b-1"]),
        (["--root", "b"], ["b", "b-1", "b-1-1"]),
        (["--root", "b-1"], ["b-1", "b-1-1"]),
        (["--limit", "2"], ["a", "b"]),
        (["--newest-first"], ["b-1-1", "b-1", "b", "a"]),
        (["--newest-first", "--limit", "2"], ["b-1-1", "b-1"]),
        (["--newest-first", "--limit", "2", "--after", "b-1"], ["b", "a"]),
        (["--oldest-first", "--limit", "2"], ["a", "b"]),
        (["--limit", "99999999999999999999"], ["a", "b", "b-1", "b-1-1"]),
        (["--after", "b"], ["b-1", "b-1-1"]),
        (["--after", "a", "--limit", "1"], ["b"]),
        (["--active-since", "2001-01-01"], ["a", "b", "b-1", "b-1-1"]),
        (["--active-since", "2001-01-01T10:00:00+02:00"], ["a", "b", "b-1", "b-1-1"]),
        (["--active-since", "9001-01-01T10:00:00Z"], []),
    ],
)
def test_list_filters_and_pages(
    family: CommandLine, filters: list[str], expected: list[str]
) -> None:
    listed = family("list", *filters, "--json").ok().json
    assert ids(listed) == expected
    for session in listed:
        SessionSummary.model_validate(session)


def test_a_page_that_is_cut_off_says_how_to_go_on(family: CommandLine) -> None:
    seen: list[object] = []
    more = ["--limit", "3"]
    page = family("list", *more, "--json")
    assert page.stderr == "more follow: --after b-1\n"
    seen += ids(page.json)
    page = family("list", *more, "--after", "b-1", "--json")
    assert page.stderr == ""
    assert seen + ids(page.json) == ["a", "b", "b-1", "b-1-1"]


def test_list_shows_people_a_table(family: CommandLine) -> None:
    header, *rows = family("list").ok().stdout.splitlines()
    assert header.split()[:4] == ["session", "channel", "peer", "messages"]
    assert [row.split()[0] for row in rows] == ["b-1-1", "b-1", "b", "a"]
    _, *rows = family("list", "--oldest-first").ok().stdout.splitlines()
    assert [row.split()[0] for row in rows] == ["a", "b", "b-1", "b-1-1"]


def test_people_see_the_newest_sessions_and_how_to_go_on(cli: CommandLine) -> None:
    lines = [json.dumps({"session_id": f"s-{n:02}", "messages": [{}]}) for n in range(52)]
    cli("import", "-", input="\n".join(lines)).ok()
    ordered = ids(cli("list", "--json").ok().json)
    page = cli("list").ok()
    assert [row.split()[0] for row in page.stdout.splitlines()[1:]] == ordered[:1:-1]
    assert page.stderr == f"more follow: --after {ordered[2]}\n"
    _, *rows = cli("list", "--after", ordered[2]).ok().stdout.splitlines()
    assert [row.split()[0] for row in rows] == ordered[1::-1]
    assert cli("list", "--limit", "1").ok().stdout.splitlines()[1].split()[0] == ordered[-1]


def test_an_empty_list_is_no_error(cli: CommandLine) -> None:
    assert cli("list").ok().stderr == "no sessions\n"
    assert cli("list", "--json").ok().json == []


def test_list_after_an_unknown_session_is_refused(cli: CommandLine) -> None:
    cli("list", "--after", "nobody").failed("unknown session: nobody")


# ---- tree ------------------------------------------------------------------------------------


def test_tree_draws_who_is_under_whom(family: CommandLine) -> None:
    family("send", "b-1", "hi").ok()
    drawn = family("tree").ok().stdout.splitlines()
    assert [line.rstrip() for line in drawn] == [
        "a  discord/alice  0 messages  idle",
        "b  email/bob  0 messages  idle",
        "└── b-1  email/bob  0 messages  1 waiting",
        "    └── b-1-1  cli  0 messages  idle",
        "c  discord/carol  0 messages  ended",
    ]


def test_tree_of_one_session_is_what_is_below_it(family: CommandLine) -> None:
    shown = family("tree", "b-1", "--json").ok().json
    assert [(s["id"], s["depth"]) for s in shown] == [("b-1", 0), ("b-1-1", 1)]
    for session in shown:
        del session["depth"]
        SessionDetails.model_validate(session)


def test_tree_tells_why_a_session_ended(family: CommandLine) -> None:
    family("end", "a", "--reason", "budget").ok()
    assert "a  discord/alice  0 messages  ended: budget" in family("tree").stdout


def test_tree_of_an_unknown_session_is_refused(cli: CommandLine) -> None:
    cli("tree", "nobody").failed("unknown session: nobody")


def test_tree_says_what_it_does_not_show(family: CommandLine) -> None:
    shown = family("tree", "--limit", "2", "--json")
    assert ids(shown.json) == ["b", "c"]
    assert shown.stderr == "3 sessions not shown: raise --limit, or give the id of one\n"
    shown = family("tree", "b", "--limit", "2", "--json")
    assert ids(shown.json) == ["b", "b-1"]
    assert shown.stderr.startswith("1 session not shown")


def test_a_tree_of_any_depth_is_drawn(database: Database, cli: CommandLine) -> None:
    async def grow() -> None:
        async with SessionsDB(database.url) as db:
            parent = None
            for depth in range(120):
                await db.broker.register(f"d{depth}", channel="x", peer="", parent=parent)
                parent = f"d{depth}"

    asyncio.run(grow())
    assert "d119" in cli("tree").ok().stdout
    assert cli("tree", "--json").json[-1]["depth"] == 119


# ---- history ---------------------------------------------------------------------------------


def test_history_shows_what_was_said(cli: CommandLine) -> None:
    cli("import", "-", input=transcript("chat-1", "hello\nworld", "and then")).ok()
    lines = cli("history", "chat-1").ok().stdout.splitlines()
    assert lines[0].startswith("#1 user  20")
    assert lines[1:3] == ["hello", "world"]
    assert lines[3].startswith("#2 user  20")
    assert lines[4] == "and then"


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        ([], list(range(11, 61))),
        (["--limit", "2"], [59, 60]),
        (["--limit", "2", "--before", "10"], [8, 9]),
        (["--limit", "2", "--after", "10"], [11, 12]),
        (["--after", "58"], [59, 60]),
        (["--after", "60"], []),
    ],
)
def test_history_has_a_window(cli: CommandLine, window: list[str], expected: list[int]) -> None:
    cli("import", "-", input=transcript("chat-1", *map(str, range(1, 61)))).ok()
    shown = cli("history", "chat-1", *window, "--json").ok().json
    assert [message["seq"] for message in shown] == expected
    assert [message["content"] for message in shown] == [str(seq) for seq in expected]
    for message in shown:
        SessionMessage.model_validate(message)


def test_history_of_an_unknown_session_is_refused(cli: CommandLine) -> None:
    cli("history", "nobody").failed("unknown session: nobody")
    cli("history", "nobody", "--json").failed("unknown session: nobody")


def test_history_of_a_new_session_is_empty(cli: CommandLine) -> None:
    cli("register", "chat-1").ok()
    assert cli("history", "chat-1", "--json").ok().json == []
    assert cli("history", "chat-1").ok().stderr == "no messages\n"


# ---- end and delete --------------------------------------------------------------------------


def test_end_keeps_the_transcript_and_takes_no_more(cli: CommandLine) -> None:
    cli("import", "-", input=transcript("chat-1", "hello")).ok()
    assert cli("end", "chat-1").ok().stdout == "ended: 1 session\n"
    cli("send", "chat-1", "more").failed("session has ended: chat-1")
    assert len(cli("history", "chat-1", "--json").json) == 1
    assert cli("end", "chat-1").ok().stdout == "had ended before\n"


def test_end_of_a_subtree_counts_its_sessions(family: CommandLine) -> None:
    assert family("end", "b", "--subtree", "--json").ok().json == {"ended": 3}
    assert ids(family("list", "--json").json) == ["a"]


def test_end_of_an_unknown_session_is_refused(cli: CommandLine) -> None:
    cli("end", "nobody").failed("unknown session: nobody")


def test_delete_forgets_a_session(cli: CommandLine) -> None:
    cli("import", "-", input=transcript("chat-1", "hello")).ok()
    assert cli("delete", "chat-1").ok().stdout == "deleted: chat-1\n"
    cli("history", "chat-1").failed("unknown session: chat-1")


def test_delete_can_be_repeated(cli: CommandLine) -> None:
    cli("register", "chat-1").ok()
    assert cli("delete", "chat-1", "--json").ok().json == {"deleted": True}
    assert cli("delete", "chat-1", "--json").ok().json == {"deleted": False}
    assert cli("delete", "chat-1").ok().stdout == "nothing to delete: no session chat-1\n"


def test_delete_does_with_the_children_as_told(family: CommandLine) -> None:
    family("delete", "b", "--children", "refuse").failed("session has children: b")
    family("delete", "b", "--children", "detach").ok()
    assert ids(family("tree", "b-1", "--json").json) == ["b-1", "b-1-1"]
    family("delete", "b-1", "--children", "cascade").ok()
    assert ids(family("list", "--json").json) == ["a"]


def test_what_one_command_wrote_the_next_program_reads(tmp_path: Path) -> None:
    cli = CommandLine(f"sqlite:///{tmp_path}/test.db")
    cli.program("register", "chat-1").ok()
    assert ids(cli.program("list", "--json").ok().json) == ["chat-1"]

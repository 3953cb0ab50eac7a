"""Files of other programs are imported: each form, with its ids, times and branches."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devtools.databases import Database
from sessionsdb import InvalidArgument, SessionsDB, TranscriptEntry
from sessionsdb.admin.foreign_import import parse_document, read_document, save_conversations
from sessionsdb.admin.transcript_import import RefusedLine, Verdict
from sessionsdb.cli.console.gunzip import Gunzip
from sessionsdb.cli.console.import_files import name_of
from sessionsdb.messages.formats.form import Conversation
from sessionsdb.messages.formats.registry import FORMS
from tests.support.command_line import CommandLine
from tests.support.foreign_records import RECORDS

TIME = "2026-01-02T03:04:05.678Z"


@pytest.fixture
def cli(database: Database) -> CommandLine:
    return CommandLine(database.url)


@pytest.fixture
def sqlite_cli(tmp_path: Path) -> CommandLine:
    return CommandLine(f"sqlite:///{tmp_path}/import.db")


def records(form: str) -> list[dict[str, Any]]:
    return [record for record, *_ in RECORDS[form]]


def lines(values: Sequence[Any]) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


def entries(cli: CommandLine, id: str) -> list[TranscriptEntry]:
    async def read() -> list[TranscriptEntry]:
        async with SessionsDB(cli.url) as db:
            return await db.store.entries(id, 1_000)

    return asyncio.run(read())


def times(cli: CommandLine, id: str) -> list[str | None]:
    found = (entry.sent_at for entry in entries(cli, id))
    return [None if time is None else time.isoformat() for time in found]


def sessions(cli: CommandLine) -> dict[str, int]:
    return {one["id"]: one["message_count"] for one in cli("list", "--json").json}


CLAUDE_USER = {"type": "user", "message": {"role": "user", "content": "hi"}, "uuid": "u1"}

FILES: dict[str, tuple[Any, str, int]] = {
    # form: (the value of a JSON document, the id of the session, its messages)
    "atif": ({"session_id": "run-1", "steps": records("atif")}, "run-1", 3),
    "adk": ({"id": "adk-1", "appName": "a", "events": records("adk")}, "adk-1", 5),
    "sharegpt": ({"id": "talk", "conversations": records("sharegpt")}, "talk", 6),
    "swe-agent": (
        {"trajectory": records("swe-agent")[:1], "history": records("swe-agent")[1:], "info": {}},
        "given",
        1,
    ),
    "openhands": ({"instance_id": "oh-1", "history": records("openhands")}, "oh-1", 10),
    "langchain": (records("langchain"), "given", 8),
    "pydantic-ai": (records("pydantic-ai"), "given", 5),
    "agent-framework": (records("agent-framework"), "given", len(records("agent-framework"))),
    "vercel": ({"id": "chat-1", "messages": records("vercel")}, "chat-1", 5),
    "bedrock": ({"messages": records("bedrock"), "system": [{"text": "s"}]}, "given", 4),
    "gemini": (
        {"contents": records("gemini"), "systemInstruction": {"parts": [{"text": "s"}]}},
        "given",
        5,
    ),
    "anthropic": ({"system": "s", "messages": records("anthropic")}, "given", 5),
    "openai-responses": ({"id": "resp_1", "output": records("openai-responses")}, "resp_1", 20),
    "openai-chat": ({"model": "m", "messages": records("openai-chat")}, "given", 6),
    "claude-code": (records("claude-code"), "s", 8),
    "codex": (records("codex"), "s", 6),
}


def test_every_form_has_a_file() -> None:
    assert {form.name for form in FORMS} == set(FILES)


@pytest.mark.parametrize("form", FILES)
def test_a_document_of_each_form_is_recognised_and_imported(
    sqlite_cli: CommandLine, tmp_path: Path, form: str
) -> None:
    value, id, count = FILES[form]
    title = next(one.title for one in FORMS if one.name == form)
    file = tmp_path / "given.json"
    for text in (json.dumps(value), json.dumps(value, indent=2)):
        file.write_text(text)
        answer = sqlite_cli("import", str(file), "--json").ok()
        assert f"{title}, session {id}, {count} message" in answer.stderr
    assert answer.json == {"saved": 0, "unchanged": 1, "refused": 0}
    assert sessions(sqlite_cli) == {id: count}
    sqlite_cli("import", str(file), "--format", form, "--id", "mine").ok()
    assert sessions(sqlite_cli) == {id: count, "mine": count}


@pytest.mark.parametrize("form", FILES)
def test_lines_of_each_form_are_recognised_and_imported(
    sqlite_cli: CommandLine, tmp_path: Path, form: str
) -> None:
    title = next(one.title for one in FORMS if one.name == form)
    file = tmp_path / "given.jsonl.gz"
    file.write_bytes(gzip.compress(lines(records(form)).encode()))
    answer = sqlite_cli("import", str(file), "--json").ok()
    assert f"{title}, session " in answer.stderr
    assert answer.json["saved"] == 1
    [id] = sessions(sqlite_cli)
    stored = [entry.message for entry in entries(sqlite_cli, id)]
    assert [one for one in records(form) if one in stored] == stored


def test_times_are_those_of_the_records_and_stay(cli: CommandLine, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    first = [
        {"author": "user", "content": {"parts": [{"text": "a"}]}, "timestamp": 1767323045.5},
        {"author": "agent", "content": {"parts": [{"text": "b"}]}, "timestamp": 1767323046},
        {"author": "agent", "content": {"parts": [{"text": "c"}]}},
        {
            "author": "agent",
            "content": {"parts": [{"text": "a time that not all hosts can read"}]},
            "timestamp": "9999-12-31T23:59:59Z",
        },
    ]
    file.write_text(lines(first))
    cli("import", str(file)).ok()
    expected = ["2026-01-02T03:04:05.500000+00:00", "2026-01-02T03:04:06+00:00", None, None]
    assert times(cli, "a") == expected
    [shown, *_] = cli("history", "a", "--json").json
    assert shown["timestamp"].startswith("2026-01-02T03:04:05.5")
    # The file has grown: what is there stays, with its times.
    more = {
        "author": "user",
        "content": {"parts": [{"text": "d"}]},
        "timestamp": "2026-01-02T05:00",
    }
    file.write_text(lines([*first, more]))
    assert cli("import", str(file), "--json").ok().json["saved"] == 1
    assert times(cli, "a") == [*expected, "2026-01-02T05:00:00+00:00"]
    assert [entry.seq for entry in entries(cli, "a")] == [1, 2, 3, 4, 5]


QUESTION = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}


def stored(cli: CommandLine, id: str) -> list[Any]:
    return [entry.message for entry in entries(cli, id)]


def test_a_second_import_keeps_what_the_session_got_since(cli: CommandLine, tmp_path: Path) -> None:
    file = tmp_path / "chat.json"
    file.write_text(json.dumps([QUESTION, ANSWER]))
    cli("import", str(file)).ok()
    cli("send", "chat", "go on here").ok()
    cli("worker", "sessionsdb.handlers:echo", "--until-idle").ok()
    before = stored(cli, "chat")
    assert len(before) == 4
    answer = cli("import", str(file), "--json").ok()
    assert answer.json == {"saved": 0, "unchanged": 1, "refused": 0}
    assert stored(cli, "chat") == before


def test_a_file_that_is_no_continuation_of_its_session_is_refused(
    cli: CommandLine, tmp_path: Path
) -> None:
    file = tmp_path / "chat.json"
    file.write_text(json.dumps([QUESTION, ANSWER]))
    cli("import", str(file)).ok()
    cli("send", "chat", "go on here").ok()
    cli("worker", "sessionsdb.handlers:echo", "--until-idle").ok()
    before = stored(cli, "chat")
    for records, place in (
        ([QUESTION, ANSWER, QUESTION], 3),  # the file has grown, and the session too
        ([QUESTION, QUESTION], 2),  # a message was replaced
        ([ANSWER], 1),
    ):
        file.write_text(json.dumps(records))
        answer = cli("import", str(file), "--json")
        assert answer.code == 1
        assert answer.json == {"saved": 0, "unchanged": 0, "refused": 1}
        assert f"session chat: its message {place} is another one than in the file" in answer.stderr
        assert "--id" in answer.stderr
        assert "delete the session" in answer.stderr
        assert stored(cli, "chat") == before
    cli("import", str(file), "--id", "other").ok()
    assert stored(cli, "other") == [ANSWER]


def test_a_long_file_that_has_grown_is_appended(cli: CommandLine, tmp_path: Path) -> None:
    file = tmp_path / "long.json"
    records = [{"role": "user", "content": f"{number}"} for number in range(950)]
    for count in (400, 400, 900, 950):
        file.write_text(json.dumps(records[:count]))
        cli("import", str(file)).ok()
        assert stored(cli, "long") == records[:count]
    file.write_text(json.dumps([*records[:700], ANSWER]))
    assert "its message 701 is another" in cli("import", str(file)).stderr
    assert stored(cli, "long") == records


async def test_of_two_imports_at_once_one_creates_the_session(db: SessionsDB) -> None:
    for number in range(20):
        files = [
            Conversation(f"talk-{number}", [{"role": "user", "content": text}] * 3, [None] * 3)
            for text in ("one", "two")
        ]

        async def verdict(file: Conversation) -> Verdict:
            [saved] = [one async for one in save_conversations(db, [file], max_message=100)]
            return saved.verdict

        verdicts = await asyncio.gather(*map(verdict, files))
        winner = verdicts.index("saved")
        assert isinstance(verdicts[1 - winner], RefusedLine)
        assert await db.store.load(f"talk-{number}") == files[winner].messages


def test_files_of_one_name_do_not_overwrite_each_other(
    sqlite_cli: CommandLine, tmp_path: Path
) -> None:
    files = []
    for folder in ("x", "y"):
        file = tmp_path / folder / "chat.json"
        file.parent.mkdir()
        file.write_text(json.dumps([{"role": "user", "content": f"from {folder}"}]))
        files.append(str(file))
    for expected in ((1, 0), (0, 1)):
        answer = sqlite_cli("import", *files, "--json")
        assert answer.code == 1
        assert (answer.json["saved"], answer.json["unchanged"]) == expected
        assert "y/chat.json: session chat: its message 1" in answer.stderr
        assert stored(sqlite_cli, "chat") == [{"role": "user", "content": "from x"}]
    # The names of files in a folder have their path.
    sqlite_cli("import", str(tmp_path)).ok()
    assert set(sessions(sqlite_cli)) == {"chat", "x/chat", "y/chat"}


def test_a_resumed_session_of_claude_code_has_the_id_of_its_file(
    sqlite_cli: CommandLine, tmp_path: Path
) -> None:
    """Its file begins with the records of the session that it resumes, with their id."""
    begun = [
        claude("1", None, "user", "go", sessionId="A"),
        claude("2", "1", "assistant", "yes", sessionId="A"),
    ]
    first = [*begun, claude("3", "2", "user", "one way", sessionId="A")]
    resumed = [*begun, claude("4", "2", "user", "another way", sessionId="B")]
    folder = tmp_path / "projects" / "p"
    folder.mkdir(parents=True)
    (folder / "A.jsonl").write_text(lines(first))
    (folder / "B.jsonl").write_text(lines(resumed))
    for verdict in ("saved", "unchanged"):
        answer = sqlite_cli("import", str(tmp_path / "projects"), "--json").ok()
        assert answer.json[verdict] == 2
    assert stored(sqlite_cli, "A") == first
    assert stored(sqlite_cli, "B") == resumed


def test_conversations_keep_their_ids_when_their_file_grows(
    sqlite_cli: CommandLine, tmp_path: Path
) -> None:
    file = tmp_path / "data.jsonl"
    talks = [[{"role": "user", "content": f"{number}"}] for number in range(12)]
    for count in (1, 2, 9, 12):
        file.write_text(lines([{"messages": talk} for talk in talks[:count]]))
        sqlite_cli("import", str(file)).ok()
        assert len(sessions(sqlite_cli)) == count
    assert stored(sqlite_cli, "data") == talks[0]
    assert stored(sqlite_cli, "data-12") == talks[11]


TALK = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
CONTENTS = [{"role": "user", "parts": [{"text": "q"}]}]
OUTPUT = [
    {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "a"}]}
]
SYSTEM_PARTS = {"role": "system", "parts": [{"text": "Be terse."}]}
SYSTEM_MESSAGE = {"role": "system", "content": "Be terse."}
TOLD = "Be terse."

WHOLE_OBJECTS: dict[str, tuple[dict[str, Any], list[Any]]] = {
    # the object of a file, and the messages of its session
    "sharegpt": (
        {"system": TOLD, "conversations": TALK},
        [{"from": "system", "value": TOLD}, *TALK],
    ),
    "chat": ({"system_prompt": TOLD, "messages": [QUESTION]}, [SYSTEM_MESSAGE, QUESTION]),
    "repeated": (
        {"system": TOLD, "messages": [SYSTEM_MESSAGE, QUESTION]},
        [SYSTEM_MESSAGE, QUESTION],
    ),
    "vercel": (
        {"system": TOLD, "messages": [{"role": "user", "parts": [{"type": "text", "text": "q"}]}]},
        [SYSTEM_MESSAGE, {"role": "user", "parts": [{"type": "text", "text": "q"}]}],
    ),
    "gemini-text": ({"system_instruction": TOLD, "contents": CONTENTS}, [SYSTEM_PARTS, *CONTENTS]),
    "gemini-history": (
        {"systemInstruction": {"parts": [{"text": TOLD}]}, "history": CONTENTS},
        [SYSTEM_PARTS, *CONTENTS],
    ),
    "gemini-part": (
        {"systemInstruction": {"text": TOLD}, "contents": CONTENTS},
        [SYSTEM_PARTS, *CONTENTS],
    ),
    "gemini-parts": (
        {"systemInstruction": [{"text": TOLD}], "contents": CONTENTS},
        [SYSTEM_PARTS, *CONTENTS],
    ),
    "bedrock": (
        {"system": [{"text": TOLD}], "messages": [{"role": "user", "content": [{"text": "q"}]}]},
        [
            {"role": "system", "content": [{"text": TOLD}]},
            {"role": "user", "content": [{"text": "q"}]},
        ],
    ),
    "responses-answer": ({"instructions": TOLD, "output": OUTPUT}, [SYSTEM_MESSAGE, *OUTPUT]),
    "responses-both": (
        {"instructions": TOLD, "input": [QUESTION], "output": OUTPUT},
        [SYSTEM_MESSAGE, QUESTION, *OUTPUT],
    ),
    "responses-text": ({"input": "q", "output": OUTPUT}, [QUESTION, *OUTPUT]),
    "responses-text-answer": (
        {"input": OUTPUT, "output": "a"},
        [*OUTPUT, ANSWER],
    ),
    "responses-items": (
        {"instructions": [{"role": "developer", "content": TOLD}], "output": OUTPUT},
        [{"role": "developer", "content": TOLD}, *OUTPUT],
    ),
    "adk": (
        {"instructions": TOLD, "events": records("adk")[:2]},
        [SYSTEM_MESSAGE, *records("adk")[:2]],
    ),
}


@pytest.mark.parametrize("kind", WHOLE_OBJECTS)
def test_an_object_is_imported_with_its_system_prompt_and_its_answer(
    sqlite_cli: CommandLine, tmp_path: Path, kind: str
) -> None:
    value, expected = WHOLE_OBJECTS[kind]
    file = tmp_path / "log.json"
    file.write_text(json.dumps(value))
    sqlite_cli("import", str(file)).ok()
    assert stored(sqlite_cli, "log") == expected
    shown = sqlite_cli("history", "log", "--json").json
    if value.keys() & {"system", "system_prompt", "instructions", "systemInstruction"}:
        assert shown[0]["content"] == TOLD


def test_lists_that_are_not_imported_are_named(sqlite_cli: CommandLine, tmp_path: Path) -> None:
    file = tmp_path / "log.json"
    file.write_text(json.dumps({"contents": CONTENTS, "history": [*CONTENTS, *CONTENTS]}))
    told = sqlite_cli("import", str(file)).ok().stderr
    assert "1 message\n" in told
    assert "left out the list history, 2 records" in told


def claude(uuid: str, parent: str | None, kind: str, content: Any, **others: Any) -> dict[str, Any]:
    message = {"role": kind, "content": content}
    fields = {"type": kind, "uuid": uuid, "parentUuid": parent, "message": message}
    return {**fields, "sessionId": "main", "isSidechain": False, "timestamp": TIME, **others}


def tool(id: str) -> list[dict[str, Any]]:
    return [{"type": "tool_use", "id": id, "name": "f", "input": {}}]


def result(id: str) -> list[dict[str, Any]]:
    return [{"type": "tool_result", "tool_use_id": id, "content": "ok"}]


BRANCHED = [
    {"type": "summary", "summary": "Earlier", "leafUuid": "x"},
    claude("1", None, "user", "go"),
    claude("2", "1", "assistant", tool("a")),
    claude("3", "2", "assistant", tool("b")),
    claude("4", "2", "user", result("a")),  # results of parallel calls are no branches
    claude("5", "3", "user", result("b")),
    claude("s1", None, "user", "sub", isSidechain=True, agentId="ag"),
    claude("s2", "s1", "assistant", "sub done", isSidechain=True, agentId="ag"),
    claude("6", "5", "user", "first try"),
    claude("7", "6", "assistant", "no"),
    claude("8", "5", "user", "second try"),
    claude("9", "8", "assistant", "yes"),
    {"type": "queue-operation", "operation": "enqueue", "sessionId": "main"},
]


def test_branches_and_sub_agents_become_children(cli: CommandLine, tmp_path: Path) -> None:
    file = tmp_path / "branched.jsonl"
    file.write_text(lines(BRANCHED))
    answer = cli("import", str(file), "--json").ok()
    assert answer.json["saved"] == 3
    assert "left out what is no message: 1 queue-operation" in answer.stderr
    parents = {one["id"]: one.get("parent") for one in cli("list", "--json").json}
    assert parents == {"main": None, "main/agent-ag": "main", "main/branch-6": "main"}
    uuids = [entry.message.get("uuid") for entry in entries(cli, "main")]
    assert uuids == [None, "1", "2", "3", "4", "5", "8", "9"]
    assert [entry.message["uuid"] for entry in entries(cli, "main/branch-6")] == ["6", "7"]
    assert [one["role"] for one in cli("history", "main", "--json").json][3:6] == [
        "assistant", "tool", "tool",
    ]  # fmt: skip
    assert cli("import", str(file), "--json").ok().json == {
        "saved": 0, "unchanged": 3, "refused": 0,
    }  # fmt: skip
    cli("import", str(file), "--id", "mine").ok()
    assert {"mine", "mine/agent-ag", "mine/branch-6"} <= set(sessions(cli))


def test_events_of_codex_are_messages_only_where_there_are_no_items(
    sqlite_cli: CommandLine, tmp_path: Path
) -> None:
    events = [record for record in records("codex") if record["type"] == "event_msg"]
    file = tmp_path / "rollout.jsonl"
    file.write_text(lines(events))
    sqlite_cli("import", str(file)).ok()
    assert sessions(sqlite_cli) == {"rollout": 3}
    old = [
        {"id": "old", "timestamp": TIME, "instructions": None},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        {"record_type": "state"},
    ]
    file.write_text(lines(old))
    sqlite_cli("import", str(file)).ok()
    assert sessions(sqlite_cli) == {"rollout": 3, "old": 1}


def test_a_folder_is_imported_whole(cli: CommandLine, tmp_path: Path) -> None:
    top = tmp_path / "top"
    events = top / "run" / "events"
    for folder in (top / "a", top / "b", events, top / ".git"):
        folder.mkdir(parents=True)
    (top / "a" / "chat.json").write_text(json.dumps(records("openai-chat")))
    (top / "b" / "chat.json").write_text(json.dumps(records("openai-chat")[:2]))
    (top / "b" / "own.jsonl").write_text(lines([{"session_id": "own", "messages": [CLAUDE_USER]}]))
    (top / "settings.json").write_text('{"theme": "dark"}')
    (top / "broken.json").write_text("{")
    (top / "notes.txt").write_text("not looked at")
    (top / ".git" / "chat.json").write_text(json.dumps(records("openai-chat")))
    (top / "run" / "base_state.json").write_text("{}")
    for number, record in enumerate(records("openhands")[:4]):
        (events / f"event-{number:05d}-x{number}.json").write_text(json.dumps(record))
    answer = cli("import", str(top), "--json").ok()
    assert answer.json == {"saved": 4, "unchanged": 0, "refused": 0}
    assert sessions(cli) == {"a/chat": 6, "b/chat": 2, "own": 1, "run": 4}
    assert "settings.json is of no known form" in answer.stderr
    assert "broken.json is of no known form" in answer.stderr
    assert [entry.message["kind"] for entry in entries(cli, "run")][:2] == [
        "SystemPromptEvent", "MessageEvent",
    ]  # fmt: skip


def test_several_conversations_of_a_file_have_a_number(
    sqlite_cli: CommandLine, tmp_path: Path
) -> None:
    file = tmp_path / "data.jsonl"
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    file.write_text(lines([{"messages": talk}] * 2 + [{"id": "own", "messages": talk}] * 2))
    sqlite_cli("import", str(file)).ok()
    assert set(sessions(sqlite_cli)) == {"data", "data-2", "own", "own-2"}
    sqlite_cli("import", str(file), "--id", "x").failed("holds 4 conversations")


def test_a_number_makes_no_name_that_another_conversation_has(
    sqlite_cli: CommandLine, tmp_path: Path
) -> None:
    file = tmp_path / "data.jsonl"
    ids = ("own", "own", "own-2", "own", "own-2")
    file.write_text(
        lines(
            [
                {"id": id, "messages": [{"role": "user", "content": f"{number}"}] * (number + 1)}
                for number, id in enumerate(ids)
            ]
        )
    )
    sqlite_cli("import", str(file)).ok()
    assert sessions(sqlite_cli) == {"own": 1, "own-3": 2, "own-2": 3, "own-4": 4, "own-2-2": 5}


def test_records_of_claude_code_without_ids_stay_in_the_main_conversation() -> None:
    said = {"message": {"role": "user", "content": "hello"}}
    answer = {"type": "assistant", "message": {"role": "assistant", "content": "yes"}}
    records = [
        {"type": "user", **said},
        {"type": "user", "isSidechain": True, "agentId": "x", **said},
        {"type": "user", **said},
        answer,
    ]
    document, _ = parse_document("chat", lines(records).encode())
    found = read_document(document)
    assert found is not None
    assert [(one.id, len(one.messages)) for one in found[1]] == [("chat", 3), ("chat/agent-x", 1)]


def test_what_cannot_be_imported_is_named(sqlite_cli: CommandLine, tmp_path: Path) -> None:
    file = tmp_path / "chat.json"
    file.write_text("{")
    sqlite_cli("import", str(file), "--format", "openai-chat").failed("chat.json", "is not JSON")
    file.write_text("{}")
    sqlite_cli("import", str(file), "--format", "claude-code").failed("chat.json")
    file.write_text(json.dumps(records("openai-chat")))
    assert "--format must be" in sqlite_cli("import", str(file), "--format", "none").stderr
    assert "--id needs one file" in sqlite_cli("import", str(file), str(file), "--id", "x").stderr
    long = {"role": "user", "content": [{"type": "text", "text": "x" * 2**20}]}
    file.write_text(json.dumps([long] * 2))
    told = sqlite_cli("import", str(file), "--max-file-mib", "1").failed("is larger than 1 MiB")
    assert "--max-file-mib" in told
    answer = sqlite_cli("import", str(file), "--json")
    assert answer.code == 1
    assert answer.json["refused"] == 1
    assert "session chat: message 0: message is" in answer.stderr
    sqlite_cli("import", str(file), "--max-message-mib", "2", "--format", "OpenAI_Chat").ok()
    file.write_text(lines([CLAUDE_USER, CLAUDE_USER]) + '{"type": "us')
    answer = sqlite_cli("import", str(file), "--json", "--id", "claude")
    assert answer.json == {"saved": 1, "unchanged": 0, "refused": 1}
    assert "line 3: not JSON" in answer.stderr
    folder = tmp_path / "folder"
    folder.mkdir()
    sqlite_cli("import", str(folder)).failed("holds no file to import")
    (folder / "a.json").write_text("[]")
    answer = sqlite_cli("import", str(folder))
    assert answer.code == 1
    assert answer.stderr.endswith("none of these files is of a known form; --format names it\n")


def test_gzip_that_is_damaged_or_hostile_is_refused(
    sqlite_cli: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = gzip.compress(lines(records("openai-chat")).encode() * 50)
    file = tmp_path / "chat.jsonl.gz"
    file.write_bytes(data[: len(data) // 2])
    sqlite_cli("import", str(file)).failed("chat.jsonl.gz ends early")
    file.write_bytes(data[:40] + b"x" * 40 + data[80:])
    sqlite_cli("import", str(file)).failed("is damaged gzip")
    monkeypatch.setattr("sessionsdb.cli.console.gunzip.FREE_BYTES", 2**20)
    file.write_bytes(gzip.compress(b"[" + b" " * 2**23))
    sqlite_cli("import", str(file)).failed("100 times as large")


async def test_gunzip_gives_small_pieces() -> None:
    pieces = [gzip.compress(b"a" * 10_000) + gzip.compress(b"b"), b""]

    async def read() -> bytes:
        return pieces.pop(0)

    source = Gunzip(read, "name", 4_096)
    made = b""
    while piece := await source.read():
        assert len(piece) <= 4_096
        made += piece
    assert made == b"a" * 10_000 + b"b"


def test_real_transcripts_are_the_same_in_openai_form(
    sqlite_cli: CommandLine, real_transcripts: Path, tmp_path: Path
) -> None:
    given = [json.loads(line) for line in real_transcripts.read_text().splitlines()][:20]
    file = tmp_path / "real.jsonl"
    file.write_text(
        lines([{"id": f"real-{n}", "messages": one["messages"]} for n, one in enumerate(given)])
    )
    assert sqlite_cli("import", str(file), "--json").ok().json["saved"] == 20
    assert [entry.message for entry in entries(sqlite_cli, "real-7")] == given[7]["messages"]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/x/chat.json", "chat"),
        ("chat.jsonl.gz", "chat"),
        ("a.b.traj", "a.b"),
        ("x.traj.json", "x"),
        (".json", ".json"),
        (".gz", "imported"),
    ],
)
def test_the_name_of_a_file_has_no_suffixes(path: str, name: str) -> None:
    assert name_of(path) == name


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([json.dumps(value).encode() for value, *_ in FILES.values()]),
    st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=4)), min_size=1, max_size=3),
)
def test_a_damaged_file_is_read_or_refused(text: bytes, damages: list[tuple[float, bytes]]) -> None:
    for place, junk in damages:
        at = int(place * len(text))
        text = text[:at] + junk + text[at + len(junk) :]
    try:
        document, _ = parse_document("name", text)
        found = read_document(document)
    except InvalidArgument:
        return
    for conversation in found[1] if found else ():
        assert conversation.id


def test_hostile_json_is_refused_or_read() -> None:
    for text in (
        b"[" * 100_000,
        b'{"messages": [' + b'{"a":' * 5_000 + b"1" + b"}" * 5_000 + b"]}",
        b'[{"role": "user", "content": ' + b"9" * 5_000 + b"}]",
        b'[{"role": "user", "content": NaN}]',
        b"\xff\xfe\x00",
        b'{"a": "\\ud800"}\n' + b"[" * 100_000,
    ):
        try:
            document, bad = parse_document("name", text)
        except InvalidArgument:
            continue
        read_document(document)
        assert bad or document.values

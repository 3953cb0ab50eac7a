"""Import and export: an export gives the imported lines, and a bad line stops no other."""

from __future__ import annotations

import asyncio
import bz2
import contextlib
import gc
import gzip
import json
import lzma
import os
import shlex
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from devtools.databases import Database, SqliteFiles
from sessionsdb import SessionsDB
from sessionsdb.admin import transcript_import
from sessionsdb.admin.transcript_import import Line
from sessionsdb.cli.console.import_run import rare_collections
from sessionsdb.cli.console.input_lines import CHUNK_BYTES, open_lines
from tests.support.command_line import PROGRAM, CommandLine, environment
from tests.test_cli import on_a_terminal

HOSTILE: list[dict[str, Any]] = [
    {"role": "user", "content": "nul \x00, half \ud800, other half \udc00 \x1b[2J \u202e"},
    {"role": "user", "content": "\u2028\u2029\x85 lines that are none"},
    {"role": "assistant", "content": [{"type": "text", "text": "😀"}, None, 1.5, -0.0, 1e300]},
    {"": {"\x00": {"\ud83d": []}}},
    {"big": 10**4000, "small": -(10**400), "float": 0.1 + 0.2},
    {"role": "", "content": ""},
    {"role": "user", "content": "", "extra": {"nested": [[[[[{}]]]]]}},
    {},
]


@pytest.fixture
def cli(database: Database) -> CommandLine:
    return CommandLine(database.url)


def line(id: Any, *messages: Any, **others: Any) -> str:
    return json.dumps({"session_id": id, "messages": list(messages), **others}) + "\n"


def said(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def exported(cli: CommandLine, *args: str) -> dict[str, Any]:
    lines = cli("export", *args).ok().stdout.splitlines()
    parsed = [json.loads(line) for line in lines]
    assert len({session["session_id"] for session in parsed}) == len(parsed)
    return {session["session_id"]: session["messages"] for session in parsed}


# ---- round trips -----------------------------------------------------------------------------


def test_real_transcripts_come_back_equal(
    cli: CommandLine, real_transcripts: Path, tmp_path: Path
) -> None:
    given = {
        session["session_id"]: session["messages"]
        for session in map(json.loads, real_transcripts.read_text().splitlines())
    }
    assert sum(map(len, given.values())) == 2888
    summary = cli("import", str(real_transcripts), "--json").ok().json
    assert summary == {"saved": len(given), "unchanged": 0, "refused": 0}
    assert exported(cli) == given
    again = cli("import", str(real_transcripts), "--json").ok().json
    assert again == {"saved": 0, "unchanged": len(given), "refused": 0}

    copy = CommandLine(f"sqlite:///{tmp_path}/copy.db")
    cli("export", "--output", str(tmp_path / "all.jsonl")).ok()
    copy("import", str(tmp_path / "all.jsonl")).ok()
    assert exported(copy) == given


def test_hostile_transcripts_come_back_equal(cli: CommandLine, tmp_path: Path) -> None:
    async def store() -> None:
        async with SessionsDB(cli.url) as db:
            await db.store.save("ähm \x1b[2J\n😀", HOSTILE)
            await db.store.save("empty", [])

    asyncio.run(store())
    out = cli("export").ok().stdout
    assert out.isascii()
    assert out.count("\n") == 2
    copy = CommandLine(f"sqlite:///{tmp_path}/copy.db")
    copy("import", "-", input=out).ok()
    assert exported(copy) == {"ähm \x1b[2J\n😀": HOSTILE, "empty": []}
    assert copy("import", "-", "--json", input=out).json["unchanged"] == 2


def test_export_of_what_import_took_is_what_was_given(cli: CommandLine) -> None:
    given = "".join(line(f"s-{n}", said(str(n)), *HOSTILE[:n]) for n in range(9))
    cli("import", "-", input=given).ok()
    first = cli("export").stdout
    cli("import", "-", input=first).ok()
    assert cli("export").stdout == first


# ---- import ----------------------------------------------------------------------------------


def test_import_can_be_run_again(cli: CommandLine) -> None:
    given = line("a", said("one")) + line("b", said("two"))
    assert cli("import", "-", input=given).ok().stdout == "2 saved, 0 unchanged, 0 refused\n"
    before = cli("list", "--json").json
    assert cli("import", "-", input=given).ok().stdout == "0 saved, 2 unchanged, 0 refused\n"
    assert cli("list", "--json").json == before
    more = line("a", said("one"), said("more")) + line("b", said("two")) + line("c")
    assert cli("import", "-", input=more).ok().stdout == "2 saved, 1 unchanged, 0 refused\n"


def test_import_names_the_lines_it_refuses_and_saves_the_others(cli: CommandLine) -> None:
    refused = [
        (b"{", "not JSON"),
        (b"[1]", "not an object"),
        (b'{"messages": []}', "session_id is missing"),
        (b'{"session_id": "x"}', "messages is missing"),
        (b'{"session_id": 1, "messages": []}', "session_id must be a string"),
        (b'{"session_id": "x", "messages": {}}', "messages must be an array"),
        (b'{"session_id": "x", "messages": ["hi"]}', "message 0: a message must be a JSON object"),
        (b'{"session_id": "x", "messages": [{}, 1]}', "message 1: a message must be"),
        (b'{"session_id": "", "messages": []}', "must not be empty"),
        (b'{"session_id": "a\\u0000b", "messages": []}', "NUL"),
        (b'{"session_id": "\\ud800", "messages": []}', "lone surrogate"),
        (json.dumps({"session_id": "y" * 513, "messages": []}).encode(), "512"),
        (b'{"session_id": "x", "messages": [{"n": NaN}]}', "not JSON"),
        (b'{"session_id": "x", "messages": [{"n": 1e999}]}', "not JSON"),
        (b'{"session_id": "x", "messages": [{"n": ' + b"9" * 5000 + b"}]}", "not readable JSON"),
        (b"[" * 100_000, "not readable JSON"),
        (
            b'{"session_id": "x", "messages": [' + b'{"a":' * 300 + b"1" + b"}" * 300 + b"]}",
            "nests",
        ),
        (b'{"session_id": "caf\xe9", "messages": []}', "not UTF-8"),
        (b"\xff\xfe{\x00}\x00", "not UTF-8"),
        (b"\x00\x00", "not JSON"),
        (b'{"session_id": "x", "messages": [{"a": "\x1b[2J\nb', "not JSON"),
        (line("x", said("x" * 1_048_577)).strip().encode(), "the limit is 1048576"),
    ]
    given = b""
    expected = []
    number = 0
    for text, reason in refused:
        given += line(f"good-{number}", said("hi")).encode() + text + b"\n"
        expected.append((number + 2, reason))
        number += 2 + text.count(b"\n")
    answer = cli("import", "-", "--json", input=given)
    assert answer.code == 1
    assert "Traceback" not in answer.stderr
    told = answer.stderr.splitlines()
    # Each half of the broken line is refused.
    assert answer.json == {"saved": len(refused), "unchanged": 0, "refused": len(refused) + 1}
    assert len(told) == len(refused) + 1
    for place, reason in expected:
        [message] = [text for text in told if text.startswith(f"line {place}: ")]
        assert reason in message
        assert len(message) < 400
        assert message.isprintable()
    numbers = [int(text.removeprefix("line ").split(":")[0]) for text in told]
    assert numbers == sorted(numbers)
    assert len(cli("list", "--json").json) == len(refused)


def test_import_says_to_people_how_many_it_refused(cli: CommandLine) -> None:
    answer = cli("import", "-", input="{\n" + line("a"))
    assert answer.code == 1
    assert answer.stdout == "1 saved, 0 unchanged, 1 refused\n"


def test_import_takes_what_json_lines_look_like_elsewhere(cli: CommandLine) -> None:
    given = b"\xef\xbb\xbf" + line("bom", said("a"), reward=1.0).encode()
    given += b"\n   \n\r\n" + line("crlf", said("b")).replace("\n", "\r\n").encode()
    given += line("no line end", said("c")).strip().encode()
    assert cli("import", "-", "--json", input=given).ok().json["saved"] == 3
    assert set(exported(cli)) == {"bom", "crlf", "no line end"}


def test_nothing_to_import_is_no_error(cli: CommandLine) -> None:
    assert cli("import", "-", "--json", input="").ok().json["saved"] == 0


def test_of_two_lines_of_a_session_the_later_counts(cli: CommandLine) -> None:
    given = "".join(
        line(f"s-{number % 5}", *(said(f"{step} {number}") for step in range(3)))
        for number in range(200)
    )
    assert cli("import", "-", "--json", input=given).ok().json["saved"] == 200
    for id, messages in exported(cli).items():
        last = 195 + int(id.removeprefix("s-"))
        assert messages == [said(f"{step} {last}") for step in range(3)]


def test_two_programs_may_import_the_same_file_at_once(cli: CommandLine, tmp_path: Path) -> None:
    path = tmp_path / "some.jsonl"
    path.write_text("".join(line(f"s-{n}", said("a"), said(str(n))) for n in range(300)))
    command = [PROGRAM, "--url", cli.url, "import", str(path), "--json"]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, env=environment()) for _ in range(2)
    ]
    for process in running:
        summary = json.loads(process.communicate(timeout=100)[0])
        assert process.returncode == 0
        assert summary["refused"] == 0
    assert exported(cli) == {f"s-{n}": [said("a"), said(str(n))] for n in range(300)}


@pytest.mark.parametrize("exists", [False, True], ids=["new", "existing"])
async def test_two_imports_of_the_same_sessions_at_once_save_them_once(
    db: SessionsDB, exists: bool
) -> None:
    """A client may repeat an import whose answer has not come yet."""
    ids = [f"s-{n}" for n in range(30)]
    chat = [said("one"), said("two")]
    if exists:
        await asyncio.gather(*(db.store.save(id, [said("before")]) for id in ids))

    async def verdicts() -> list[transcript_import.Verdict]:
        async def lines() -> AsyncIterator[Line]:
            for number, id in enumerate(ids, 1):
                yield Line(number, line(id, *chat).encode(), number)

        found = transcript_import.save_all(db, lines(), max_line=10_000)
        return [verdict async for _, verdict in found]

    both = await asyncio.gather(verdicts(), verdicts())
    assert all(set(each) <= {"saved", "unchanged"} for each in both)
    assert [await db.store.load(id) for id in ids] == [chat] * len(ids)
    if not exists:
        assert sum(each.count("saved") for each in both) == len(ids)


def test_import_replaces_what_a_session_had(cli: CommandLine) -> None:
    cli("import", "-", input=line("a", said("1"), said("2"), said("3"))).ok()
    cli("import", "-", input=line("a", said("1"), said("x"))).ok()
    assert exported(cli) == {"a": [said("1"), said("x")]}


@pytest.mark.parametrize("name", ["missing.jsonl", "."])
def test_a_file_that_cannot_be_read_is_one_line(
    cli: CommandLine, tmp_path: Path, name: str
) -> None:
    cli("import", str(tmp_path / name)).failed(str(tmp_path / name).rstrip("/."))


def test_an_overlong_line_is_refused_alone(cli: CommandLine) -> None:
    most = 1024 * 1024
    message = said("x" * 500_000)
    given = line("long", message, message, message) + line("short", said("hi"))
    answer = cli("import", "-", "--max-line-mib", "1", "--json", input=given)
    assert answer.code == 1
    assert answer.stderr == f"line 1: longer than {most} bytes; --max-line-mib raises the limit\n"
    assert set(exported(cli)) == {"short"}
    cli("import", "-", "--max-line-mib", "2", input=given).ok()
    assert set(exported(cli)) == {"long", "short"}


def test_a_database_that_fails_stops_the_import(database: Database, cli: CommandLine) -> None:
    asyncio.run(database.query("ALTER TABLE messages RENAME TO elsewhere"))
    answer = cli("import", "-", input=line("a", said("hi")))
    answer.failed("the database failed")
    assert answer.stdout == ""


def test_import_into_a_bar_on_a_terminal(tmp_path: Path) -> None:
    lines = tmp_path / "some.jsonl"
    lines.write_text("{\n" + "".join(line(f"s-{n}", said("hi")) for n in range(50)))
    command = f"{PROGRAM} --url sqlite:///{tmp_path}/test.db import {lines} || true"
    shown = on_a_terminal(["/bin/sh", "-c", command], columns=100)
    assert "importing" in shown
    assert "line 1: not JSON" in shown
    assert "50 saved, 0 unchanged, 1 refused" in shown


class Slow:
    """A pipe that gives its bytes piece by piece."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = list(pieces)

    def read(self, _most: int) -> bytes:
        return self._pieces.pop(0) if self._pieces else b""

    def fileno(self) -> int:
        raise OSError


@pytest.mark.parametrize("most", [1, 2, 3, 4, 100])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
async def test_lines_are_the_same_however_they_arrive(size: int, most: int) -> None:
    from sessionsdb.cli.console.input_lines import LineSource

    text = b"a\nbc\n\ndef\nghij\n\n\nk\nlmnopq"
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    lines = [found async for found in LineSource(Slow(*pieces)).lines(most)]
    whole = text.split(b"\n")
    assert [found.text for found in lines] == [w if len(w) <= most else None for w in whole]
    assert [found.number for found in lines] == list(range(1, len(whole) + 1))
    assert lines[-1].end == len(text)


async def test_lines_of_a_file_end_where_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"x" * CHUNK_BYTES + b"\nlast\n")
    with open_lines(str(path)) as source:
        assert source.size == path.stat().st_size
        lines = [found async for found in source.lines(CHUNK_BYTES)]
    assert [found.number for found in lines] == [1, 2]
    assert lines[-1] == Line(2, b"last", path.stat().st_size)


def test_an_import_that_fails_leaves_the_pace_of_the_garbage_collector_as_it_was() -> None:
    before = gc.get_threshold()
    with contextlib.suppress(OSError), rare_collections():
        assert gc.get_threshold()[0] > before[0]
        raise OSError
    assert gc.get_threshold() == before


def test_import_takes_constant_memory(sqlite_files: SqliteFiles, tmp_path: Path) -> None:
    """A file of 120 MiB with one line of 100 MiB needs less than 200 MiB of memory."""
    path = tmp_path / "large.jsonl"
    with path.open("w") as file:
        for number in range(2000):
            file.write(line(f"s-{number % 50}", said("x" * 10_000)))
            if number == 1000:
                file.write("y" * 100 * 1024 * 1024 + "\n")
    with sqlite_files.new_database() as database:
        command = [PROGRAM, "--url", database.url, "import", str(path), "--json"]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
        ) as process:
            watched = psutil.Process(process.pid)
            most = 0
            while process.poll() is None:
                with_memory = watched.memory_info().rss if watched.is_running() else 0
                most = max(most, with_memory)
                try:
                    process.wait(0.02)
                except subprocess.TimeoutExpired:
                    continue
            assert process.stdout is not None
            summary = json.loads(process.stdout.read())
    assert summary["saved"] + summary["unchanged"] == 2000
    assert summary["refused"] == 1
    assert most < 200 * 1024 * 1024, most


# ---- export ----------------------------------------------------------------------------------


def test_export_of_some_sessions_keeps_to_them(cli: CommandLine) -> None:
    cli("import", "-", input="".join(line(id, said(id)) for id in "abc")).ok()
    assert list(exported(cli, "--session", "c", "--session", "a")) == ["c", "a"]
    cli("export", "--session", "nobody").failed("unknown session: nobody")


def test_export_pages_over_all_and_includes_the_ended(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sessionsdb.cli.commands.transfer.PAGE", 3)
    cli("import", "-", input="".join(line(f"s-{n}", said(str(n))) for n in range(10))).ok()
    cli("end", "s-4").ok()
    assert set(exported(cli)) == {f"s-{n}" for n in range(10)}


def test_export_into_a_file_is_all_or_nothing(cli: CommandLine, tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    target.write_text("the backup of yesterday")
    cli("import", "-", input=line("a", said("hi"))).ok()
    cli("export", "--output", str(target), "--session", "a", "--session", "no").failed("unknown")
    assert target.read_text() == "the backup of yesterday"
    assert [path.name for path in tmp_path.glob("*out*")] == ["out.jsonl"]
    assert cli("export", "--output", str(target)).ok().stdout == "exported: 1 session\n"
    assert target.read_text() == cli("export").stdout


def test_export_into_a_folder_that_is_not_there_is_one_line(
    cli: CommandLine, tmp_path: Path
) -> None:
    cli("export", "--output", str(tmp_path / "no" / "out.jsonl")).failed("No such file")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_export_into_a_pipe_writes_into_it(cli: CommandLine, tmp_path: Path) -> None:
    cli("import", "-", input=line("a", said("hi"))).ok()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen([PROGRAM, "--url", cli.url, "export", "--output", pipe]) as process:
        text = pipe.read_text()
        assert process.wait(60) == 0
    assert json.loads(text)["session_id"] == "a"
    assert pipe.is_fifo()


def test_a_summary_counts_every_verdict() -> None:
    summary = transcript_import.ImportSummary()
    for verdict in ("saved", "unchanged", transcript_import.RefusedLine("because")):
        summary.count(verdict)
    assert summary == transcript_import.ImportSummary(1, 1, 1)


# ---- input of other forms ------------------------------------------------------------------------

LINES = "".join(line(id, said("hi")) for id in ("a", "b")).encode()
OBJECTS = [json.loads(one) for one in LINES.splitlines()]
LARGE_OBJECTS = [{**one, "note": "x" * 2_000} for one in OBJECTS] * 80  # over one chunk
FOREIGN = {
    "bzip2": (bz2.compress(LINES), "compressed with bzip2", "bzip2 -dc"),
    "xz": (lzma.compress(LINES), "compressed with xz", "xz -dc"),
    "UTF-16": (LINES.decode().encode("utf-16"), "is UTF-16", "iconv -f UTF-16 -t UTF-8"),
    "UTF-16LE": (LINES.decode().encode("utf-16-le"), "UTF-16LE", "iconv -f UTF-16LE -t UTF-8"),
    "UTF-16BE": (LINES.decode().encode("utf-16-be"), "UTF-16BE", "iconv -f UTF-16BE -t UTF-8"),
    "UTF-32": (LINES.decode().encode("utf-32"), "UTF-32", "iconv -f UTF-32 -t UTF-8"),
    "array": (json.dumps(OBJECTS).encode(), "one JSON array", "jq -c '.[]'"),
    "indented array": (json.dumps(OBJECTS, indent=2).encode(), "one JSON array", "jq -c '.[]'"),
    "array of lines": (
        b"[\n" + b",\n".join(LINES.splitlines()) + b"\n]\n", "one JSON array", "jq -c '.[]'",
    ),
    "large array": (json.dumps(LARGE_OBJECTS).encode(), "one JSON array", "jq -c '.[]'"),
    "indented object": (json.dumps(OBJECTS[0], indent=2).encode(), "several lines", "jq -c ."),
    "indented objects": (
        b"\xef\xbb\xbf" + b"\n".join(json.dumps(one, indent=1).encode() for one in OBJECTS),
        "several lines", "jq -c .",
    ),
}  # fmt: skip


def test_lines_in_gzip_are_imported(cli: CommandLine, tmp_path: Path) -> None:
    file = tmp_path / "lines.jsonl.gz"
    half = len(LINES) // 2
    # Files of gzip that were joined are one file.
    file.write_bytes(gzip.compress(LINES[:half]) + gzip.compress(LINES[half:]))
    assert cli("import", str(file), "--json").ok().json["saved"] == 2
    assert cli("import", "-", "--json", input=file.read_bytes()).ok().json["unchanged"] == 2


@pytest.mark.parametrize("form", FOREIGN)
def test_input_of_another_form_is_named_once_with_the_remedy(
    cli: CommandLine, tmp_path: Path, form: str
) -> None:
    data, finding, command = FOREIGN[form]
    file = tmp_path / "my chats"
    file.write_bytes(data)
    told = cli("import", str(file)).failed(f"{file} ", finding)
    remedy = told.partition("; run: ")[2]
    place = f"--url {shlex.quote(cli.url)}"
    assert remedy == f"{command} '{file}' | sessionsdb import {place} -\n"
    told = cli("import", str(file), "--namespace", "a b").failed(finding)
    assert told.endswith(f"| sessionsdb import {place} --namespace 'a b' -\n")
    cli("import", "-", input=data).failed("standard input ", f"{command} FILE | ")
    assert cli("list", "--json").json == []
    # The remedy is true: its output can be imported.
    tool = shlex.split(command)[0]
    if shutil.which(tool):
        converted = subprocess.run(
            f"{command} {shlex.quote(str(file))}", shell=True, capture_output=True, check=True
        )
        assert set(ids_of(cli, converted.stdout)) <= {"a", "b"}


def ids_of(cli: CommandLine, data: bytes) -> list[str]:
    cli("import", "-", input=data).ok()
    return [session["id"] for session in cli("list", "--json").json]


def test_a_database_is_no_input(tmp_path: Path) -> None:
    cli = CommandLine(f"sqlite:///{tmp_path}/a.db")
    cli("register", "chat-1").ok()
    told = cli("import", f"{tmp_path}/a.db").failed("is a SQLite database")
    url = f"sqlite:///{tmp_path}/a.db"
    assert f"sessionsdb --url {url} export | sessionsdb import --url {url} -" in told


def test_a_mark_at_the_start_of_any_line_is_ignored(cli: CommandLine) -> None:
    mark = b"\xef\xbb\xbf"
    data = mark + b"\n" + b"".join(mark + one for one in LINES.splitlines(keepends=True)) + mark
    assert cli("import", "-", "--json", input=data).ok().json == {
        "saved": 2, "unchanged": 0, "refused": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    "bad", ['{"session_id": "x",', '{"session_id": "x", "messages": [', "[]", "[1]", "[oops", "{"]
)
def test_a_single_bad_line_at_the_start_is_a_bad_line(cli: CommandLine, bad: str) -> None:
    answer = cli("import", "-", "--json", input=bad.encode() + b"\n" + LINES)
    assert answer.code == 1
    assert answer.json == {"saved": 2, "unchanged": 0, "refused": 1}
    assert answer.stderr.startswith("line 1: ")

"""``sessionsdb report``: every format, pictures, and SQL that the bare drivers run."""

from __future__ import annotations

import asyncio
import csv
import io
import struct
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console

from devtools.databases import Database
from sessionsdb import InvalidArgument, Reply, SessionsDB, SpawnRequest, Turn, reports
from sessionsdb.cli.console.charts import chart
from sessionsdb.reports.catalogue import REPORTS, VIEWS
from tests.support.command_line import CommandLine
from tests.support.reporting import viewed
from tests.support.work import SOON

HOSTILE = "bad\x1b[2J|\u202eid"


async def handler(turn: Turn) -> Reply:
    if "fail" in turn.text:
        raise RuntimeError("\x1b]0;title\x07 no | answer\nsecond line")
    return Reply("done", model="m", input_tokens=1_000, output_tokens=50)


async def write(url: str) -> None:
    async with SessionsDB(url) as db:
        for name, channel in (("a", "web"), ("b", "cli"), (HOSTILE, "$x_1$")):
            await db.broker.register(name, channel=channel, peer="ann")
            await db.broker.send(name, "hello")
            await db.broker.spawn(name, SpawnRequest(prompt="look"))
        await db.broker.send(HOSTILE, "fail")
        other = db.in_namespace("acme")
        await other.broker.register("theirs", channel="web", peer="bob")
        await db.worker(handler, max_attempts=1, retry=SOON, namespaces="*").run_until_idle()
        await db.broker.send("a", "waits")


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def written(request: pytest.FixtureRequest) -> Iterator[Database]:
    maker = "sqlite_files" if request.param == "sqlite" else "postgres_server"
    with request.getfixturevalue(maker).new_database() as database:
        asyncio.run(write(database.url))
        yield database


@pytest.fixture
def cli(written: Database) -> CommandLine:
    return CommandLine(written.url)


def rows_of(cli: CommandLine, *words: str) -> list[dict[str, Any]]:
    found = cli("report", *words, "--format", "json").ok().json
    assert isinstance(found, list)
    return found


# ---- formats -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REPORTS)
def test_json_has_all_columns_and_rows(cli: CommandLine, written: Database, name: str) -> None:
    found = rows_of(cli, name)
    everything = asyncio.run(viewed(written, REPORTS[name]))
    assert len(found) == sum(row["namespace"] == "default" for row in everything) > 0
    for row in found:
        assert list(row) == [column.name for column in REPORTS[name].columns]
        assert row["namespace"] == "default"
        for column in REPORTS[name].columns:
            value = row[column.name]
            if column.kind == "time" and value is not None:
                assert datetime.fromisoformat(value).tzinfo == UTC
                assert value.endswith("Z")
    assert [row["session_id"] for row in rows_of(cli, "sessions", "--namespace", "acme")] == [
        "theirs"
    ]


@pytest.mark.parametrize("name", REPORTS)
def test_csv_says_the_same_as_json(cli: CommandLine, name: str) -> None:
    text = cli("report", name, "--format", "csv").ok().stdout
    parsed = list(csv.DictReader(io.StringIO(text)))
    expected = [
        {name: "" if value is None else str(value) for name, value in row.items()}
        for row in rows_of(cli, name)
    ]
    if name == "inbox":  # the age grows meanwhile
        for row in (*parsed, *expected):
            del row["oldest_seconds"]
    assert parsed == expected


@pytest.mark.parametrize("name", REPORTS)
@pytest.mark.parametrize("format", ["table", "md"])
def test_people_see_the_columns_for_people_and_nothing_that_moves_the_cursor(
    cli: CommandLine, name: str, format: str
) -> None:
    answer = cli("report", name, "--format", format).ok()
    lines = answer.stdout.splitlines()
    assert [word for word in lines[0].split() if word != "|"] == list(REPORTS[name].display)
    assert len(lines) == len(rows_of(cli, name)) + (2 if format == "md" else 1)
    assert all(c.isprintable() for c in answer.stdout.replace("\n", "")), answer.stdout
    if format == "md":
        cells = {line.replace("\\|", "").count("|") for line in lines}
        assert cells == {len(REPORTS[name].display) + 1}


def test_a_table_shows_the_first_line_of_an_error(cli: CommandLine) -> None:
    table = cli("report", "sessions").ok().stdout
    assert "no | answer" in table
    assert "second line" not in table
    [error] = {row["last_error"] for row in rows_of(cli, "sessions")} - {None}
    assert "second line" in error


# ---- choosing ----------------------------------------------------------------------------------


def test_since_channel_and_limit_choose_rows(cli: CommandLine) -> None:
    assert {row["session_id"] for row in rows_of(cli, "sessions", "--channel", "web")} == {"a"}
    assert rows_of(cli, "turns", "--channel", "none") == []
    # The channel of the root selects a whole tree.
    tree = rows_of(cli, "tree", "--channel", "web")
    assert [(row["depth"], row["root_id"]) for row in tree] == [(0, "a"), (1, "a")]
    assert len(rows_of(cli, "sessions", "--limit", "2")) == 2
    for name in sorted(set(REPORTS) - {"inbox"}):
        everything = rows_of(cli, name)
        assert rows_of(cli, name, "--since", "1h") == everything
        assert rows_of(cli, name, "--since", "2026-01-01") == everything
        tomorrow = (datetime.now(UTC) + timedelta(days=1)).isoformat()
        assert rows_of(cli, name, "--since", tomorrow) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("7d", "2026-03-03T12:00:00+00:00"),
        ("24h", "2026-03-09T12:00:00+00:00"),
        ("90m", "2026-03-10T10:30:00+00:00"),
        ("2w", "2026-02-24T12:00:00+00:00"),
        ("2026-01-31", "2026-01-31T00:00:00+00:00"),
        ("2026-01-31T12:00:00+02:00", "2026-01-31T10:00:00+00:00"),
        ("2026-01-31 12:00:00Z", "2026-01-31T12:00:00+00:00"),
    ],
)
def test_since_is_so_long_ago_or_a_time(text: str, expected: str) -> None:
    now = datetime(2026, 3, 10, 12, tzinfo=UTC)
    assert reports.parse_since(text, now).isoformat() == expected


@pytest.mark.parametrize(
    "text", ["", "d", "7 d", "-7d", "7y", "999999w", "yesterday", "2026-13-01"]
)
def test_since_is_nothing_else(text: str) -> None:
    with pytest.raises(InvalidArgument, match="is no time: write an age like 7d"):
        reports.parse_since(text)


async def test_a_table_shows_fifty_rows_and_says_that_more_follow(database: Database) -> None:
    async with SessionsDB(database.url) as db:
        for number in range(51):
            await db.broker.register(f"s-{number}", channel="web", peer="")
    cli = CommandLine(database.url)
    answer = (await asyncio.to_thread(cli, "report", "sessions")).ok()
    assert len(answer.stdout.splitlines()) == 1 + 50
    assert "more follow: these are the first 50" in answer.stderr
    for words, count in ((["--limit", "51"], 51), (["--limit", "7"], 7)):
        answer = (await asyncio.to_thread(cli, "report", "sessions", *words)).ok()
        assert len(answer.stdout.splitlines()) == 1 + count
        assert answer.stderr == ""


async def test_an_empty_database_is_reported_as_such(database: Database) -> None:
    cli = CommandLine(database.url)
    for name in REPORTS:
        answer = (await asyncio.to_thread(cli, "report", name)).ok()
        assert (answer.stdout, answer.stderr) == ("", "nothing to report\n")
        answer = (await asyncio.to_thread(cli, "report", name, "--format", "json")).ok()
        assert answer.json == []


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["nothing"], "nothing"),
        (["inbox", "--since", "7d"], "--since is not for inbox"),
        (["turns", "--plot"], "turns is a table only"),
        (["sessions", "--out", "x.png"], "sessions is a table only"),
        (["tree", "--out", "x.gif"], ".svg or .png"),
        (["tree", "--plot", "--format", "csv"], "--format can't be used together with --plot"),
        (["tree", "--sql", "--out", "x.svg"], "--out can't be used together with --sql"),
        (["turns", "--since", "soon"], "is no time"),
    ],
)
def test_what_can_not_be_is_a_usage_error(cli: CommandLine, words: list[str], reason: str) -> None:
    answer = cli("report", *words, env={"COLUMNS": "200"})
    assert answer.code == 2
    assert reason in answer.stderr


# ---- SQL ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REPORTS)
async def test_the_sql_can_be_pasted(written: Database, name: str) -> None:
    cli = CommandLine(written.url)
    since = [] if name == "inbox" else ["--since", "2026-01-02T03:04:05"]
    for words in ([], since, ["--channel", "web"], ["--limit", "1", *since]):
        answer = (await asyncio.to_thread(cli, "report", "--sql", name, *words)).ok()
        assert answer.stdout.endswith(";\n")
        assert max(map(len, answer.stdout.splitlines())) <= 200
        pasted = await written.query(answer.stdout)
        reported = await asyncio.to_thread(rows_of, cli, name, *words)
        assert [row[:3] for row in plain(pasted)] == [tuple(row.values())[:3] for row in reported]
        assert len(pasted) == len(reported) > 0


def plain(rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    return [tuple(str(v) if hasattr(v, "isoformat") else v for v in row) for row in rows]


@pytest.mark.parametrize("value", ["O'Neill", "%", "%%s", "\\", ":x", "a\n ORDER BY b", '"', "$1"])
async def test_any_name_is_quoted_in_the_sql(database: Database, value: str) -> None:
    async with SessionsDB(database.url, namespace=value) as db:
        await db.broker.register("s", channel=value, peer="")
    cli = CommandLine(database.url)
    words = ["report", "--sql", "sessions", "--namespace", value, "--channel", value]
    answer = (await asyncio.to_thread(cli, *words)).ok()
    [row] = await database.query(answer.stdout)
    assert row[:3] == (value, "s", value)


def test_printing_the_sql_connects_to_nothing(tmp_path: Path) -> None:
    for url in (f"sqlite:///{tmp_path}/none.db", "postgresql://nobody@nowhere.invalid/none"):
        CommandLine(url)("report", "--sql", "turns").ok()
    assert not list(tmp_path.iterdir())


# ---- pictures ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["activity", "latency", "tree"])
def test_bars_are_drawn_in_the_terminal(cli: CommandLine, name: str) -> None:
    answer = cli("report", name, "--plot", env={"COLUMNS": "140"}).ok()
    assert "█" in answer.stdout or "▌" in answer.stdout or "▐" in answer.stdout
    assert len(answer.stdout.splitlines()) == len(rows_of(cli, name)) + 1
    assert all(c.isprintable() for c in answer.stdout.replace("\n", ""))


@pytest.mark.parametrize("name", ["activity", "latency", "tree"])
async def test_only_the_bars_give_way_on_a_terminal_of_80_columns(
    written: Database, name: str
) -> None:
    async with SessionsDB(written.url) as db:
        report = await reports.read(db, name)
    console = Console(width=80, file=io.StringIO())
    with console.capture() as capture:
        console.print(chart(report))
    assert max(map(len, capture.get().splitlines())) <= 80
    assert "…" not in capture.get()


@pytest.mark.parametrize("name", ["activity", "latency", "tree"])
def test_pictures_are_drawn(cli: CommandLine, name: str, tmp_path: Path) -> None:
    png, svg = tmp_path / "picture.png", tmp_path / "picture.svg"
    answer = cli("report", name, "--out", str(png)).ok()
    assert (answer.stdout, answer.stderr) == ("", f"written: {png}\n")
    content = png.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", content[16:24])
    assert width > 1_000
    assert height > 300
    assert len(content) > 10_000

    cli("report", name, "--out", str(svg)).ok()
    first = svg.read_bytes()
    root = ElementTree.fromstring(first)
    assert root.tag.endswith("svg")
    assert len(list(root.iter("{http://www.w3.org/2000/svg}path"))) > 20
    cli("report", name, "--out", str(svg)).ok()
    assert svg.read_bytes() == first  # the same report is the same file


def own(n: int) -> dict[str, Any]:
    """The columns that identify a row."""
    ids = {"session_id": f"s{n}", "path": f"s{n}", "root_id": f"s{n // 70}", "parent_id": None}
    return {**ids, "channel": f"c{n}", "depth": n % 3, "total_p99": 10.0**n}


def test_a_picture_of_much_says_what_it_left_out(tmp_path: Path) -> None:
    from sessionsdb.reports import pictures

    day = datetime(2026, 1, 1, tzinfo=UTC).date()
    values: dict[str, Any] = {"integer": 5, "seconds": 0.0, "text": "_x$y$", "day": day}
    for view in VIEWS:
        if view.report not in pictures.PAINTERS:
            continue
        rows = [
            tuple({**values, **own(n)}.get(c.name, values.get(c.kind)) for c in view.columns)
            for n in range(80)
        ]
        drawn = tmp_path / f"{view.report}.svg"
        pictures.draw(reports.Report(view, rows), drawn)
        assert drawn.stat().st_size > 10_000


def test_there_is_nothing_to_draw_of_nothing(cli: CommandLine, tmp_path: Path) -> None:
    out = tmp_path / "x.svg"
    cli("report", "tree", "--channel", "none", "--out", str(out)).failed("nothing to draw")
    assert not out.exists()
    cli("report", "tree", "--out", str(tmp_path / "no" / "x.svg")).failed("No such file")


def test_without_matplotlib_one_line_says_how_to_get_it(
    cli: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    cli("report", "tree", "--out", str(tmp_path / "x.png")).failed('pip install "sessionsdb[plot]"')
    assert "a" in cli("report", "tree", "--plot").ok().stdout


# ---- from Python -------------------------------------------------------------------------------


async def test_a_report_can_be_read_from_python(written: Database) -> None:
    async with SessionsDB(written.url) as db:
        report = await reports.read(db, "turns", since=reports.parse_since("1h"), limit=2)
        assert [type(row["finished_at"]) for row in report.dicts()] == [datetime] * 2
        assert all(row["finished_at"].tzinfo == UTC for row in report.dicts())
        with pytest.raises(InvalidArgument, match="no report 'x'; the reports are sessions, turns"):
            await reports.read(db, "x")
        with pytest.raises(InvalidArgument, match="shows the present"):
            await reports.read(db, "inbox", since=datetime.now(UTC))

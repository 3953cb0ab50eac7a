"""The benchmarks run, check their bars, and compare with a floor that does the same writes."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks import __main__ as benchmarks_main
from benchmarks import (
    bars,
    conversations,
    groups,
    importing,
    page,
    plot,
    queue,
    results,
    stamps,
    store,
    turns,
)  # fmt: skip
from benchmarks.bench import POSTGRESQL, SQLITE, Bench
from benchmarks.cases import (
    APPEND,
    HISTORY,
    LIST,
    LOAD,
    SAVE,
    SEND,
    UPDATE,
    WORK,
    WORK_KEEPING,
    WORK_READING,
)
from benchmarks.filling import Size, fill
from benchmarks.floor import opened_floor
from benchmarks.messages import transcript
from benchmarks.results import FLOOR, OURS, GroupResult, Measurement
from devtools.databases import Database, PostgresServer, SqliteFiles
from sessionsdb import SessionsDB, Turn

ROOT = Path(__file__).parents[1]


@pytest.fixture
def bench(postgres_server: PostgresServer, sqlite_files: SqliteFiles) -> Bench:
    """The smallest run: one round of hundredths of a second, ours and the floor."""
    makers: dict[str, Any] = {SQLITE: sqlite_files, POSTGRESQL: postgres_server}
    for maker in makers.values():
        with maker.new_database():
            pass
    return Bench(
        quick=True,
        tiny=True,
        only=frozenset((OURS, FLOOR)),
        databases=(SQLITE, POSTGRESQL),
        makers=makers,
        console=Console(file=StringIO()),
        rounds=1,
        seconds=0.01,
    )


def judged(result: GroupResult) -> set[tuple[str, str, Any]]:
    return {
        (verdict.case.what, verdict.case.database, dict(verdict.case.at)["callers"])
        for verdict in bars.verdicts(result)
    }


def test_a_run_of_the_stores_measures_both_sides_and_holds_them_against_the_bars(
    bench: Bench,
) -> None:
    result = bench.run("store", store.measure)
    for case in result.cases():
        assert {m.side for m in result.measurements if m.case == case} == {OURS, FLOOR}
    assert {case.what for case in result.cases()} == {
        APPEND, HISTORY, LOAD, SAVE, LIST,
    }  # fmt: skip
    assert judged(result) == {
        (what, database, callers)
        for database in (SQLITE, POSTGRESQL)
        for what, callers in ((APPEND, 1), (APPEND, 64), (LOAD, 1), (LIST, 1))
    }


def test_a_run_of_the_queues_measures_both_sides_and_holds_them_against_the_bars(
    bench: Bench,
) -> None:
    result = bench.run("queue", queue.measure)
    assert judged(result) == {
        (what, database, callers)
        for what in (SEND, WORK, WORK_READING)
        for database in (SQLITE, POSTGRESQL)
        for callers in (1, 64)
    }


@pytest.mark.parametrize("group", ["turns", "conversations"])
def test_a_run_of_turns_and_of_conversations_measures_both_sides(bench: Bench, group: str) -> None:
    result = bench.run(group, groups.GROUPS[group])
    known = {"turns": {turns.TURN}, "conversations": set(conversations.WORK)}
    assert {case.what for case in result.cases()} == known[group]
    for case in result.cases():
        assert {m.side for m in result.measurements if m.case == case} == {OURS, FLOOR}


def test_a_run_of_the_stamps_measures_writes_with_and_without_them(bench: Bench) -> None:
    bench._only = frozenset((OURS, stamps.WITHOUT))
    bench.seconds = 0.2  # is divided by stamps.SHARE
    result = bench.run("stamps", stamps.measure)
    assert set(result.sides()) == {OURS, stamps.WITHOUT}
    assert judged(result) == {
        (what, POSTGRESQL, callers) for what in (APPEND, SEND, WORK, UPDATE) for callers in (1, 64)
    }


@pytest.mark.parametrize("kind", ["postgresql"])
async def test_the_other_side_leaves_out_every_stamp_and_nothing_else(database: Database) -> None:
    async def stored() -> tuple[Any, ...]:
        [row] = await database.query(
            "SELECT count(seq), count(write_id), count(i.position), count(fingerprint),"
            " count(i.epoch), (SELECT count(*) FROM write_stamps)"
            " FROM messages AS m LEFT JOIN inbox AS i USING (namespace, session_id, position)"
        )
        return row

    async def write(db: SessionsDB, id: str) -> None:
        async def answer(turn: Turn) -> None: ...

        await db.broker.update(id, model="m")
        await db.store.append(id, [{"role": "user", "content": "hello"}])
        await db.broker.send(id, "hello")
        assert await db.worker(answer).run_until_idle() == 1

    await fill(database, Size(2, 0, 0))
    async with SessionsDB(database.url) as db:
        with stamps.without_stamps():
            await write(db, "session-000000")
        assert await stored() == (2, 0, 1, 0, 0, 0)
        await write(db, "session-000001")
        assert await stored() == (4, 1, 2, 1, 1, 1)


# ---- the floor -----------------------------------------------------------------------------------

# Values of clocks and of random numbers are compared by presence, and by whether they are of 2024,
# the year of the first fill. write_id is ignored: the batches differ between runs, and each batch
# puts its write_id on the first row of a session.
IGNORED = {"write_id"}
PRESENT = {
    "created_at", "updated_at", "last_active", "ready_at", "lease_until", "enqueued_at",
    "claimed_at", "finished_at", "sent_at", "worker", "owner", "fingerprint",
}  # fmt: skip


async def rows(database: Database, name: str) -> list[dict[str, Any]]:
    columns = await database.query(
        f"SELECT name FROM pragma_table_info('{name}')"
        if database.kind == "sqlite"
        else f"SELECT column_name FROM information_schema.columns WHERE table_name = '{name}'"
    )
    names = sorted({column for (column,) in columns} - IGNORED)
    return sorted(
        (
            {
                column: moment(value) if column in PRESENT else value
                for column, value in zip(names, row, strict=True)
            }
            for row in await database.query(f"SELECT {', '.join(names)} FROM {name}")
        ),
        key=repr,
    )


def moment(value: object) -> str | None:
    if value is None:
        return None
    return "then" if str(value).startswith("2024-") else "now"


@pytest.fixture
def other_database(kind: str, request: pytest.FixtureRequest) -> Any:
    maker = "sqlite_files" if kind == "sqlite" else "postgres_server"
    with request.getfixturevalue(maker).new_database() as database:
        yield database


async def test_the_floor_writes_the_same_rows_as_the_package(
    database: Database, other_database: Database
) -> None:
    size = Size(10, 8, 0)
    await fill(database, size, sent=True)
    await fill(other_database, size, sent=True)
    async with (
        SessionsDB(database.url) as db,
        opened_floor(other_database) as floor,
    ):
        await exercise(queue.OurQueue(db, size.ids()), store.OurStore(db, size))
        await exercise(queue.FloorQueue(floor, size.ids()), store.FloorStore(floor, size))
        for name in ("sessions", "mailboxes", "inbox", "messages"):
            ours, floors = await rows(database, name), await rows(other_database, name)
            assert len(ours) == len(floors), name
            for our, floors_ in zip(ours, floors, strict=True):
                assert our == floors_, name


async def test_conversations_by_hand_write_the_same_rows(
    database: Database, other_database: Database
) -> None:
    for one, opened in (
        (database, conversations._ours),
        (other_database, conversations._floor),
    ):
        await conversations._fill(one, 4, 10)
        async with opened(one) as side:
            assert len(await side.entries(0)) == 4
            await side.pop(0)
            await side.edit(1)
            await side.edit(1)
            await side.fork(conversations.LONG)
    for name in ("sessions", "mailboxes", "messages", "state_scopes", "state_values"):
        ours = [known(row) for row in await rows(database, name)]
        by_hand = [known(row) for row in await rows(other_database, name)]
        assert sorted(ours, key=repr) == sorted(by_hand, key=repr), name


def known(row: dict[str, Any]) -> dict[str, Any]:
    """A row without the values that are made by chance."""
    values = {key: value for key, value in row.items() if key not in ("incarnation", "epoch")}
    return {
        key: "fork" if isinstance(value, str) and value.startswith("fork-") else value
        for key, value in values.items()
    }


async def exercise(inboxes: queue.Queue, transcripts: store.Store) -> None:
    """Do every measured operation, alone and concurrently."""

    def formed(count: int, first: int = 0) -> list[Any]:
        return [transcripts.form(message) for message in transcript(count, first)]

    inboxes.sessions = 8
    await inboxes.send_many(20)
    await inboxes.work(20, 4, WORK_READING)
    await inboxes.send(3, "alone")
    await inboxes.work(1, 1, WORK)
    await transcripts.append(1, formed(2))
    await asyncio.gather(*(transcripts.append(n % 4, formed(2, n)) for n in range(9)))
    await transcripts.save(5, [*formed(390), *formed(1, 7)])
    await transcripts.save(6, formed(403))
    await transcripts.save(6, formed(403))  # changes nothing
    await transcripts.save(7, formed(100))
    await inboxes.send_many(9)
    await inboxes.send(8, "to a session without changes since 2024")


async def test_the_floor_reads_the_same_rows_as_the_package(database: Database) -> None:
    size = Size(4, 4, 0)
    await fill(database, size, sent=True)
    await database.query("UPDATE messages SET sender = 'somebody' WHERE position % 3 = 0")
    async with SessionsDB(database.url) as db, opened_floor(database) as floor:
        ids = size.ids()
        history = [(m.role, m.content, m.seq, m.sender) for m in await db.broker.history(ids[1])]
        assert {sender for _, _, _, sender in history} == {None, "somebody"}
        read = await floor.history(ids[1], 50)
        assert history == [(row[0], row[1], row[3], row[4]) for row in reversed(read)]
        assert await db.store.load(ids[2]) == [
            {"role": row[0], "content": row[1]} for row in await floor.load(ids[2])
        ]
        assert [s.id for s in await db.broker.list(limit=3)] == [
            row[0] for row in await floor.list(3)
        ]


async def test_the_floor_refuses_a_late_commit(database: Database) -> None:
    size = Size(2, 2, 0)
    await fill(database, size, sent=True)
    async with opened_floor(database) as floor:
        await floor.send(size.ids()[0], "hello")
        [lease] = await floor.claim(8)
        await database.query("UPDATE mailboxes SET epoch = epoch + 1 WHERE owner IS NOT NULL")
        before = await rows(database, "messages")
        assert await floor.commit(lease, [("user", "hello", None)]) is False
        assert await rows(database, "messages") == before


# ---- results, bars and the page ------------------------------------------------------------------


def measured(side: str, *values: float, what: str = "x", **at: int) -> Measurement:
    return Measurement(what, SQLITE, side, "/s", list(values), at)


def result_of(*measurements: Measurement) -> GroupResult:
    machine = {"cores": 2, "processor": "one", "memory_gb": 24, "load_before": 0.1}
    return GroupResult("g", "2026-01-01T00:00:00", False, machine, {}, list(measurements))


def bar(**keys: Any) -> bars.Bar:
    return bars._bar(**({"group": "g", "what": "x"} | keys))


def test_a_ratio_is_the_median_of_the_rounds_own_ratios() -> None:
    # The machine was half as fast in the second round. The ratio of each round is still two.
    result = result_of(measured(OURS, 20, 10, 40), measured(FLOOR, 10, 5, 10))
    [verdict] = bars.verdicts(result, [bar(against=FLOOR, at_least=2.5)])
    assert verdict.value == results.Ratio(2, 2, 4)
    assert not verdict.met


def test_of_several_runs_the_median_run_decides_and_the_range_goes_over_the_runs() -> None:
    runs = [
        result_of(measured(OURS, *ours), measured(FLOOR, 10, 10))
        for ours in ((10, 12), (30, 30), (4, 100), (6, 6), (20, 22))
    ]
    result = results.joined(runs)
    ours = result.find(result.cases()[0], OURS)
    assert ours is not None
    assert ours.figures == [11, 30, 52, 6, 21]
    assert ours.median == 21
    [verdict] = bars.verdicts(result, [bar(against=FLOOR, at_least=2.0)])
    assert verdict.value == results.Ratio(2.1, 0.6, 5.2)
    assert verdict.met
    [verdict] = bars.verdicts(result, [bar(at_least=22)])
    assert verdict.value == results.Ratio(21, 6, 52)
    assert not verdict.met
    assert "21 /s (6 to 52)".replace(" /", "/") in page.shown(result, None)
    assert "The medians of 5 runs" in page.shown(result, None)
    assert "runs" not in page.shown(runs[0], None)


def test_a_side_that_a_run_lacks_is_compared_in_the_other_runs() -> None:
    both = result_of(measured(OURS, 4), measured(FLOOR, 2))
    result = results.joined([both, both, result_of(measured(OURS, 9))])
    [verdict] = bars.verdicts(result, [bar(against=FLOOR, at_least=2.0)])
    assert verdict.value == results.Ratio(2, 2, 2)


@pytest.fixture
def kept_signal() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("kept_signal")
def test_a_group_is_measured_as_often_as_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    counted: list[int] = []

    def measure(bench: Bench) -> None:
        counted.append(1)
        bench.record("x", database=SQLITE, side=OURS, unit="/s", values=[len(counted)])

    file = tmp_path / "results.json"
    monkeypatch.setitem(groups.GROUPS, "store", measure)
    given = ["--group", "store", "--database", SQLITE]
    assert benchmarks_main.main([*given, "--json", str(file)]) == 0
    [stored] = results.load(file)["store"].measurements
    assert (stored.values, stored.rounds) == ([1, 2, 3, 4, 5], [1, 1, 1, 1, 1])
    assert benchmarks_main.main(given) == 0
    assert len(counted) == 6
    assert benchmarks_main.main([*given, "--runs", "2"]) == 0
    assert len(counted) == 8


def test_less_is_better_for_a_cost() -> None:
    slow = Measurement("x", SQLITE, OURS, "ms", [10.0], {}, "less")
    fast = Measurement("x", SQLITE, FLOOR, "ms", [5.0], {}, "less")
    [verdict] = bars.verdicts(result_of(slow, fast), [bar(against=FLOOR, at_least=0.5)])
    assert verdict.value.median == 0.5
    assert verdict.met


def test_a_flat_cost_does_not_grow_with_the_size() -> None:
    flat = [measured(OURS, 100, n=1_000), measured(OURS, 80, n=10**6), measured(OURS, 10, n=10**5)]
    [verdict] = bars.verdicts(result_of(*flat), [bar(over="n", at_most=1.5)])
    assert verdict.value.median == 1.25
    assert verdict.met
    steep = [measured(OURS, 100, n=1_000), measured(OURS, 50, n=10**6)]
    [verdict] = bars.verdicts(result_of(*steep), [bar(over="n", at_most=1.5)])
    assert not verdict.met


def test_the_tail_of_several_runs_is_held_against_the_median_call() -> None:
    runs = [
        result_of(Measurement("x", SQLITE, OURS, "/s", [1.0], p99_ms=p99, p50_ms=p50))
        for p99, p50 in ((8.0, 2.0), (30.0, 1.0), (4.0, 3.0))
    ]
    result = results.joined(runs)
    [verdict] = bars.verdicts(result, [bar(tail=True, at_most=4.0)])
    assert (verdict.value.median, verdict.against, verdict.met) == (4.0, "p99 / median", True)
    [verdict] = bars.verdicts(result, [bar(tail=True, at_most=3.9)])
    assert not verdict.met
    assert bars.verdicts(result_of(measured(OURS, 1)), [bar(tail=True, at_most=4.0)]) == []


def test_a_bar_is_for_the_places_it_names() -> None:
    result = result_of(
        *(measured(side, 1, callers=callers) for side in (OURS, FLOOR) for callers in (1, 16, 64))
    )
    found = bars.verdicts(result, [bar(against=FLOOR, at_least=1, callers=[16, 64])])
    assert [dict(verdict.case.at) for verdict in found] == [{"callers": 16}, {"callers": 64}]


def test_every_bar_of_the_file_is_on_something_that_is_measured() -> None:
    known = {
        "store": {APPEND, HISTORY, LOAD, SAVE, LIST},
        "queue": {SEND, WORK, WORK_READING},
        "workflows": {SEND, WORK, WORK_KEEPING, WORK_READING},
        "stamps": {APPEND, SEND, WORK, UPDATE},
        "turns": {turns.TURN},
        "conversations": set(conversations.WORK),
        "import": {importing.IMPORT, importing.MEMORY},
    }
    for one in bars.load():
        if one.group in known:
            assert set(one.what) <= known[one.group], one
        assert one.group in groups.GROUPS, one


def test_results_come_back_from_disk_and_groups_are_replaced_apart(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    first = result_of(measured(OURS, 1.5, 2.5, callers=64))
    results.save(file, [first])
    other = result_of(measured(OURS, 3.0))
    other.group = "other"
    results.save(file, [other])
    read = results.load(file)
    assert read == {"g": first, "other": other}


def test_the_page_is_rewritten_in_its_places_only() -> None:
    before = (
        "Before.\n<!-- results: g -->\nold\n<!-- end of results -->\nbetween\n"
        "<!-- results: h -->\nkept\n<!-- end of results -->\nafter\n"
    )
    result = result_of(measured(OURS, 20, 10, callers=64), measured(FLOOR, 10, 10, callers=64))
    after = page.rewritten(before, {"g": result}, {"g": "picture.svg"})
    assert "old" not in after
    assert after.startswith("Before.\n<!-- results: g -->\n")
    assert after.endswith(
        "<!-- end of results -->\nbetween\n"
        "<!-- results: h -->\nkept\n<!-- end of results -->\nafter\n"
    )
    assert "(picture.svg)" in after
    assert "| x | 64 | 15/s (10 to 20) | 10/s (10 to 10) |" in after
    assert page.rewritten(after, {"g": result}, {"g": "picture.svg"}) == after


def test_a_picture_is_drawn_and_is_the_same_for_the_same_results(tmp_path: Path) -> None:
    result = result_of(
        *(measured(side, 1, 2, callers=n) for side in (OURS, FLOOR) for n in (1, 64))
    )
    first, second = tmp_path / "first.svg", tmp_path / "second.svg"
    assert plot.draw(result, first)
    assert plot.draw(result, second)
    assert first.read_text() == second.read_text()
    assert not plot.draw(result_of(measured(OURS, 1)), tmp_path / "none.svg")


@pytest.mark.parametrize("group", groups.GROUPS)
def test_the_page_has_a_place_for_every_group(group: str) -> None:
    assert f"<!-- results: {group} -->\n" in page.PAGE.read_text()


def test_the_page_shows_the_results_that_are_kept() -> None:
    kept = ROOT / "benchmarks" / "results.json"
    pictures = {
        file.stem.removeprefix("results-"): file.name
        for file in (ROOT / "benchmarks").glob("results-*.svg")
    }
    measured = results.load(kept) if kept.exists() else {}
    written = page.PAGE.read_text()
    assert page.rewritten(written, measured, pictures) == written


def test_docs_performance_shows_the_ten_bars_of_the_results_that_are_kept() -> None:
    measured = results.load(ROOT / "benchmarks" / "results.json")
    written = page.OVERVIEW.read_text()
    assert page.with_headlines(written, measured) == written
    for headline in page.HEADLINES:
        assert page._headline_row(headline, measured), headline


def test_the_ten_bars_stay_as_they_are_where_the_results_are_a_part() -> None:
    before = "<!-- results: bars -->\nkept\n<!-- end of results -->\n"
    assert page.with_headlines(before, {"g": result_of(measured(OURS, 1))}) == before


def test_docs_performance_shows_the_bars_of_a_group_in_its_place() -> None:
    before = "before\n<!-- results: stamps -->\nold\n<!-- end of results -->\nafter\n"
    result = result_of(
        *(
            Measurement(SEND, POSTGRESQL, side, "/s", [rate], {"callers": 64})
            for side, rate in ((OURS, 99), (stamps.WITHOUT, 100))
        )
    )
    result.group = "stamps"
    after = page.with_headlines(before, {"stamps": result})
    assert "| send | PostgreSQL | 64 callers | × without stamps | 0.99" in after
    assert "≥ 0.97 | met |" in after
    assert "old" not in after
    assert page.with_headlines(after, {}) == after

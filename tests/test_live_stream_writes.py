"""The writes of streamed pieces: fenced, numbered, without durability, and swept."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Connection, text

from devtools.databases import Database
from sessionsdb import SessionsDB, Turn
from sessionsdb.admin import purge
from sessionsdb.database import open_database_of
from sessionsdb.operations import pieces
from sessionsdb.operations.piece_types import Piece, Run, RunPieces
from sessionsdb.operations.retention import RetentionRules
from sessionsdb.runtime.piece_sweep import sweep_pieces
from sessionsdb.worker import streaming
from tests.support.plans import explain_everything, plans_are_in, watched
from tests.support.proxy import proxy_to
from tests.support.streamed import stored_pieces, stored_text
from tests.support.turns import WORKER, claim, commit
from tests.support.waiting import until
from tests.support.work import running

RUNS = 64


async def leased(db: SessionsDB, id: str = "chat") -> Run:
    """Lease a session to ``WORKER``."""
    await db.broker.register(id, channel="test", peer="p", exist_ok=True)
    await db.broker.send(id, "go")
    [lease] = await claim(db)
    assert lease.session.id == id
    return Run(*lease.key, lease.epoch)


async def write(db: SessionsDB, *runs: RunPieces, worker: str = WORKER) -> list[int | None]:
    return await open_database_of(db).write_unsynced(
        partial(pieces.write_pieces, worker=worker, runs=runs), wakes=()
    )


def texts(*given: str, start: int = 0) -> list[Piece]:
    found = []
    for one in given:
        found.append(Piece(start, text=one))
        start += len(one)
    return found


# ---- the fence and the numbers --------------------------------------------------------------


async def test_pieces_are_stored_only_behind_the_stored_ones(
    db: SessionsDB, database: Database
) -> None:
    run = await leased(db)
    assert await write(db, RunPieces(run, 0, 0, texts("a", "b"))) == [0]
    assert await write(db, RunPieces(run, 0, 2, texts("c", start=2))) == [2]
    assert await write(db, RunPieces(run, 0, 4, texts("too far"))) == [3]
    assert await write(db, RunPieces(run, 0, 1, texts("too early"))) == [3]
    assert await stored_text(database) == "abc"


async def test_a_write_whose_answer_was_lost_stores_its_pieces_once(
    db: SessionsDB, database: Database
) -> None:
    run = await leased(db)
    pieces = RunPieces(run, 0, 0, texts("a", "b"))
    assert await write(db, pieces) == [0]
    assert await write(db, pieces) == [2]
    assert await stored_text(database) == "ab"


async def test_a_generation_replaces_the_earlier_ones(db: SessionsDB, database: Database) -> None:
    run = await leased(db)
    other = await leased(db, "other")
    await write(db, RunPieces(run, 0, 0, texts("a")), RunPieces(other, 0, 0, texts("o")))
    counts = await write(
        db,
        RunPieces(run, 1, 0, texts("all", " of it")),
        RunPieces(other, 0, 1, texts("h", start=1)),
    )
    assert counts == [0, 1]
    stored = await stored_pieces(database)
    assert [(one.session_id, one.generation, one.text) for one in stored] == [
        ("chat", 1, "all"),
        ("chat", 1, " of it"),
        ("other", 0, "o"),
        ("other", 0, "h"),
    ]
    assert await write(db, RunPieces(run, 1, 2, texts("more", start=9))) == [2]


@pytest.mark.parametrize("lost", ["epoch", "worker", "committed", "deleted"])
async def test_a_worker_without_the_lease_stores_nothing(
    db: SessionsDB, database: Database, lost: str
) -> None:
    await db.broker.register("chat", channel="test", peer="p")
    await db.broker.send("chat", "go")
    [lease] = await claim(db)
    run = Run(*lease.key, lease.epoch)
    kept = await leased(db, "kept")
    worker = WORKER
    if lost == "epoch":
        run = run._replace(epoch=run.epoch - 1)
    elif lost == "worker":
        worker = "another"
    elif lost == "committed":
        await commit(db, lease, "done")
    else:
        await db.store.delete("chat")
    counts = await write(
        db,
        RunPieces(run, 0, 0, texts("zombie")),
        RunPieces(kept, 0, 0, texts("kept")),
        worker=worker,
    )
    assert counts == ([None, None] if lost == "worker" else [None, 0])
    assert await stored_text(database) == ("" if lost == "worker" else "kept")


@pytest.mark.parametrize("kind", ["postgresql"])
async def test_a_slow_transaction_over_one_mailbox_holds_no_pieces_up(
    db: SessionsDB, database: Database
) -> None:
    runs = [await leased(db, id) for id in ("locked", "free")]
    holder = await database.connect_to_postgres()
    try:
        async with holder.transaction():
            await holder.execute("SELECT 1 FROM mailboxes WHERE session_id = 'locked' FOR UPDATE")
            async with asyncio.timeout(10):
                assert await write(db, *(RunPieces(run, 0, 0, texts("a")) for run in runs)) == [
                    0,
                    0,
                ]
    finally:
        await holder.close()


# ---- without durability ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["postgresql"])
async def test_the_write_does_not_wait_for_its_commit_on_postgresql(db: SessionsDB) -> None:
    run = await leased(db)
    settings: list[str] = []

    def observed(connection: Connection) -> None:
        show = text("SHOW synchronous_commit")
        settings.append(connection.execute(show).scalar_one())
        pieces.write_pieces(connection, WORKER, [RunPieces(run, 0, 0, texts("a"))])
        settings.append(connection.execute(show).scalar_one())

    await open_database_of(db).write(observed, wakes=())
    await open_database_of(db).runner.write_autocommit(observed)
    # Inside a transaction it holds until the end. Alone it is over with the statement.
    assert settings == ["on", "off", "on", "on"]


@pytest.mark.parametrize("kind", ["sqlite"])
async def test_the_write_does_not_wait_for_the_disk_on_sqlite(db: SessionsDB) -> None:
    levels: list[int] = []
    runner: Any = open_database_of(db).runner

    def observed(connection: Connection) -> None:
        levels.append(connection.execute(text("PRAGMA synchronous")).scalar_one())

    await runner.write_unsynced(observed)
    await runner.write(observed)
    assert levels == [1, 2]
    # Beside a write that waits for the disk it goes along in the same transaction.
    levels.clear()
    await runner.write_unsynced(observed)
    await asyncio.gather(
        runner.write(observed), runner.write_unsynced(observed), runner.write(observed)
    )
    assert levels[0] == 1
    assert sorted(levels[1:]) == [2, 2, 2]


@pytest.mark.parametrize("kind", ["sqlite"])
async def test_a_failed_write_leaves_the_durability_of_the_next_one(db: SessionsDB) -> None:
    runner: Any = open_database_of(db).runner

    def fail(_connection: Connection) -> None:
        raise ValueError("refused")

    with pytest.raises(ValueError, match="refused"):
        await runner.write_unsynced(fail)
    level = await runner.write(lambda c: c.execute(text("PRAGMA synchronous")).scalar_one())
    assert level == 2


# ---- faults ---------------------------------------------------------------------------------


class Typist:
    """A handler that streams the numbers up to ``count``, and waits for the rest to be stored."""

    def __init__(self, count: int) -> None:
        self.text = "".join(f"{n} " for n in range(count))
        self.stored = asyncio.Event()

    async def __call__(self, turn: Turn) -> str:
        for word in self.text.split():
            turn.stream(f"{word} ")
            await asyncio.sleep(0.005)
        await self.stored.wait()
        return self.text


async def text_is(database: Database, wanted: str) -> bool:
    return await stored_text(database) == wanted


@pytest.mark.parametrize("kind", ["postgresql"])
@pytest.mark.parametrize("when", ["before", "while", "after"])
async def test_a_broken_connection_loses_and_repeats_no_piece(
    database: Database, when: Any
) -> None:
    async with proxy_to(database) as proxy, SessionsDB(proxy.url) as db:
        await db.broker.register("chat", channel="test", peer="p")
        await db.broker.send("chat", "go")
        typist = Typist(100)
        async with running(db, typist):
            await until(partial(stored_pieces, database))
            proxy.cut("INSERT INTO pieces", when, times=3)
            await until(lambda: text_is(database, typist.text))
            assert proxy.cuts == 3
            assert {piece.generation for piece in await stored_pieces(database)} == {0}
            typist.stored.set()
            await until(partial(is_empty, database))


@pytest.mark.parametrize("kind", ["postgresql"])
async def test_the_commit_waits_for_a_flush_of_its_turn(db: SessionsDB, database: Database) -> None:
    """Otherwise the flush leaves rows that only a sweep finds."""
    streams, returns = asyncio.Event(), asyncio.Event()

    async def reply(turn: Turn) -> str:
        turn.stream("first ")
        await streams.wait()
        turn.stream("second")
        await returns.wait()
        return "first second"

    await db.broker.register("chat", channel="test", peer="p")
    await db.broker.send("chat", "go")
    holder = await database.connect_to_postgres()
    try:
        async with running(db, reply):
            transaction = holder.transaction()
            await transaction.start()
            await until(partial(stored_pieces, database))
            # The write of the second piece waits for this one.
            await holder.execute(
                "INSERT INTO pieces (namespace, session_id, epoch, generation, number, start,"
                " text, written_at) SELECT namespace, session_id, epoch, 0, 1, 0, 'x', now()"
                " FROM mailboxes"
            )
            streams.set()
            await until(partial(waits_for_a_lock, database))
            returns.set()
            await asyncio.sleep(0.1)
            await transaction.rollback()
            await until(lambda: history_is(db, "chat", ["go", "first second"]))
            await until(partial(is_calm, database))
            assert await stored_pieces(database) == []
    finally:
        await holder.close()


async def waits_for_a_lock(database: Database) -> bool:
    return bool(
        await database.query(
            "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            " AND datname = current_database() AND query LIKE '%INSERT INTO pieces%'"
        )
    )


async def is_calm(database: Database) -> bool:
    return not await database.query(
        "SELECT 1 FROM pg_stat_activity WHERE state = 'active' AND pid <> pg_backend_pid()"
        " AND datname = current_database()"
    )


async def is_empty(database: Database) -> bool:
    return await stored_pieces(database) == []


@pytest.mark.parametrize("kind", ["postgresql"])
async def test_pieces_of_a_time_without_a_server_are_written_later(database: Database) -> None:
    async with proxy_to(database) as proxy, SessionsDB(proxy.url) as db:
        await db.broker.register("chat", channel="test", peer="p")
        await db.broker.send("chat", "go")
        typist = Typist(60)
        async with running(db, typist):
            await until(partial(stored_pieces, database))
            await proxy.down()
            await asyncio.sleep(0.2)
            await proxy.up()
            await until(lambda: text_is(database, typist.text))
            typist.stored.set()


async def test_a_run_that_the_database_refuses_holds_no_other_up(
    db: SessionsDB, database: Database
) -> None:
    if database.kind == "sqlite":
        await database.query(
            "CREATE TRIGGER refuse BEFORE INSERT ON pieces WHEN new.text = 'bad'"
            " BEGIN SELECT RAISE(ABORT, 'refused'); END"
        )
    else:
        await database.query("ALTER TABLE pieces ADD CHECK (text <> 'bad')")

    ended = asyncio.Event()

    async def reply(turn: Turn) -> str:
        turn.stream(turn.text)
        await ended.wait()
        turn.stream("more")
        return turn.text

    for id in ("bad", "good", "fine"):
        await db.broker.register(id, channel="test", peer="p")
        await db.broker.send(id, id)
    async with running(db, reply):
        await until(lambda: has_texts(database, ["fine", "good"]))
        ended.set()
        await until(lambda: history_is(db, "bad", ["bad", "bad"]))


async def has_texts(database: Database, wanted: Sequence[str]) -> bool:
    return sorted(str(one.text) for one in await stored_pieces(database)) == list(wanted)


async def history_is(db: SessionsDB, id: str, contents: list[str]) -> bool:
    return [message.content for message in await db.broker.history(id)] == contents


# ---- sweeps and plans -----------------------------------------------------------------------


async def sweep(db: SessionsDB, runs: int = 200) -> int:
    return await sweep_pieces(open_database_of(db), runs=runs)


async def plant_runs(database: Database, count: int, each: int) -> None:
    """Store the pieces of runs that no turn owns."""
    recursive = (
        "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r WHERE n < {count}),"
        " p(m) AS (SELECT 0 UNION ALL SELECT m + 1 FROM p WHERE m < {each} - 1)"
        " INSERT INTO pieces (namespace, session_id, epoch, generation, number, start, text,"
        " written_at) SELECT 'default', 'gone-' || n, n, 0, m, m, 'x',"
        " '2026-01-01 00:00:00.000000' FROM r, p"
    )
    await database.query(recursive.format(count=count, each=each))


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 200])
async def test_a_sweep_deletes_all_void_pieces_and_no_others(
    db: SessionsDB, database: Database, limit: int
) -> None:
    current = await leased(db, "gone-3-not")
    await write(db, RunPieces(current, 0, 0, texts("current")))
    await plant_runs(database, 7, 3)
    await database.query(
        "INSERT INTO pieces (namespace, session_id, epoch, generation, number, start, text,"
        " written_at) SELECT namespace, session_id, epoch - 1, 0, 0, 0, 'earlier run', written_at"
        " FROM pieces WHERE session_id = 'gone-3-not'"
    )
    assert await sweep(db, limit) == 8
    assert await stored_text(database) == "current"
    assert await sweep(db, limit) == 0


async def test_a_purge_deletes_void_pieces(db: SessionsDB, database: Database) -> None:
    current = await leased(db)
    await write(db, RunPieces(current, 0, 0, texts("current")))
    await plant_runs(database, 5, 2)
    assert (await purge.purge(db, RetentionRules())).total == 0
    assert await stored_text(database) == "current"


async def test_a_worker_whose_turns_stream_sweeps(
    db: SessionsDB, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "SWEEP_SECONDS", 0.05)
    await plant_runs(database, 5, 2)

    async def reply(turn: Turn) -> str:
        turn.stream("current")
        await until(lambda: text_is(database, "current"))
        return "current"

    await db.broker.register("chat", channel="test", peer="p")
    await db.broker.send("chat", "go")
    assert await db.worker(reply).run_until_idle() == 1


async def test_a_sweep_reads_no_piece_of_a_run_but_one(database: Database) -> None:
    async with watched(database) as (db, _):
        for n in range(20):
            run = await leased(db, f"s{n}")
            await write(db, RunPieces(run, 0, 0, texts(*("x" for _ in range(200)))))
        await database.query("ANALYZE")
    await explain_everything(database)
    async with watched(database) as (db, watch):
        watch.clear()
        assert await sweep(db) == 0
        await plans_are_in()
        assert [plan for plan in watch.plans if "pieces" in plan.sql]
        assert watch.rows_read <= 20 * 10, watch


@pytest.mark.parametrize("anew", [False, True])
async def test_a_write_reads_no_earlier_pieces(database: Database, anew: bool) -> None:
    async with watched(database) as (db, _):
        runs = [await leased(db, f"s{n}") for n in range(RUNS)]
        for run in runs:
            await write(db, RunPieces(run, 0, 0, texts(*("x" for _ in range(100)))))
        await plant_runs(database, 100, 50)
        await database.query("ANALYZE")
    await explain_everything(database)
    async with watched(database) as (db, watch):
        for turn in range(2):
            watch.clear()
            given = (
                [RunPieces(runs[turn], 1, 0, texts("a", "b"))]
                if anew
                else [RunPieces(run, 0, 100 + 2 * turn, texts("a", "b")) for run in runs]
            )
            assert await write(db, *given) == [0 if anew else 100 + 2 * turn] * len(given)
            await plans_are_in()
            found = [plan for plan in watch.plans if "pieces" in plan.sql]
            assert found
            for plan in found:
                allowed = 250 if anew else 5 * RUNS
                assert plan.rows_read <= allowed, plan
                assert plan.pairs_discarded <= 2 * RUNS, plan

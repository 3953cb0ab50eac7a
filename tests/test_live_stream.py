"""A handler streams text and data out of its turn: ``turn.stream`` and ``turn.emit``."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest

from devtools.databases import Database
from sessionsdb import InvalidArgument, InvalidMessage, Limits, SessionsDB, Turn
from sessionsdb.database import open_database_of
from sessionsdb.engine.repeatable import REASONS
from sessionsdb.operations import pieces, stopping
from sessionsdb.runtime.piece_sweep import sweep_pieces
from sessionsdb.worker.run_buffer import RUN_DATA_BYTES
from sessionsdb.worker.streaming import FLUSH_SECONDS, StreamLane
from tests.support.streamed import stored_pieces, stored_text
from tests.support.waiting import until
from tests.support.work import SOON, running


class Script:
    """A handler that runs functions of its turn, one at a time, until ``finish``."""

    def __init__(self) -> None:
        self.turn: Turn
        self.began = asyncio.Event()
        self._end: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def __call__(self, turn: Turn) -> str:
        self.turn = turn
        self.began.set()
        return await asyncio.shield(self._end)

    def finish(self, reply: str) -> None:
        self._end.set_result(reply)

    def fail(self) -> None:
        self._end.set_exception(ValueError("the model failed"))


@asynccontextmanager
async def scripted(db: SessionsDB, **options: Any) -> AsyncIterator[Script]:
    """Run a worker whose handler does as the script says."""
    script = Script()
    await db.broker.register("chat", channel="test", peer="p")
    await db.broker.send("chat", "hello")
    async with running(db, script, **options):
        await script.began.wait()
        yield script


async def sweep(db: SessionsDB) -> int:
    return await sweep_pieces(open_database_of(db))


# ---- what is stored while the turn runs -----------------------------------------------------


async def test_pieces_are_stored_while_the_handler_runs(db: SessionsDB, database: Database) -> None:
    async with scripted(db) as script:
        script.turn.stream("Rom")
        script.turn.stream("e is ")
        script.turn.emit("tool", {"name": "search"})
        script.turn.stream("")
        script.turn.stream("old\U0001f3db")
        script.turn.stream(".")
        stored = await until(partial(stored_pieces, database))
        assert [piece.shown for piece in stored] == [
            "Rome is ",
            ("tool", '{"name":"search"}'),
            "old\U0001f3db.",
        ]
        assert [piece.start for piece in stored] == [0, 8, 8]
        script.turn.stream(" Very old.")
        assert await until(partial(more_than, 3, database))
        assert [piece.number for piece in await stored_pieces(database)] == [0, 1, 2, 3]
        assert [piece.start for piece in await stored_pieces(database)][3] == 13
        assert {piece.generation for piece in await stored_pieces(database)} == {0}


async def more_than(count: int, database: Database) -> bool:
    return len(await stored_pieces(database)) > count


async def test_the_commit_deletes_the_pieces(db: SessionsDB, database: Database) -> None:
    async with scripted(db) as script:
        script.turn.stream("Rome")
        await until(partial(stored_pieces, database))
        script.finish("Rome is old.")
        await until(lambda: history_is(db, ["hello", "Rome is old."]))
        assert await stored_pieces(database) == []


async def history_is(db: SessionsDB, contents: list[str]) -> bool:
    return [message.content for message in await db.broker.history("chat")] == contents


async def test_turns_that_end_right_after_a_piece_leave_no_rows(
    db: SessionsDB, database: Database
) -> None:
    """The commit waits for the flush that has pieces of its turn."""

    async def reply(turn: Turn) -> str:
        turn.stream("a")
        for _ in range(int(turn.text) % 7):  # the flush is at another point each time
            await asyncio.sleep(0)
        turn.stream("b")
        return "ab"

    for n in range(150):
        await db.broker.register(f"s{n}", channel="test", peer="p")
        await db.broker.send(f"s{n}", str(n))
    assert await db.worker(reply, concurrency=16).run_until_idle() == 150
    assert await stored_pieces(database) == []


async def test_a_turn_that_streams_nothing_opens_no_stream(
    db: SessionsDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a stream was opened")

    async def reply(turn: Turn) -> str:
        return "yes"

    monkeypatch.setattr(StreamLane, "open", refuse)
    monkeypatch.setattr(pieces, "delete_pieces", refuse)
    await db.broker.register("chat", channel="test", peer="p")
    await db.broker.send("chat", "hello")
    assert await db.worker(reply).run_until_idle() == 1


async def test_a_turn_that_streams_and_stages_does_both(db: SessionsDB, database: Database) -> None:
    async def reply(turn: Turn) -> str:
        if turn.session.id == "chat":
            turn.stream("a")
            turn.send("other", "staged")
            await until(partial(stored_pieces, database))
        return "yes"

    await db.broker.register("chat", channel="test", peer="p")
    await db.broker.register("other", channel="test", peer="p")
    await db.broker.send("chat", "hello")
    assert await db.worker(reply).run_until_idle() == 2
    assert await stored_pieces(database) == []
    assert [m.content for m in await db.broker.history("other")] == ["staged", "yes"]


# ---- the rate -------------------------------------------------------------------------------


async def test_the_pieces_of_all_turns_are_written_together_at_most_every_50_ms(
    db: SessionsDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes: list[tuple[float, int]] = []
    write_pieces = pieces.write_pieces

    def counted(connection: Any, worker: str, runs: Any) -> Any:
        writes.append((time.monotonic(), len(runs)))
        return write_pieces(connection, worker, runs)

    monkeypatch.setitem(REASONS, counted, "as the operation that it counts")
    monkeypatch.setattr(pieces, "write_pieces", counted)

    async def reply(turn: Turn) -> str:
        for n in range(100):
            turn.stream(f"{n} ")
            await asyncio.sleep(0.005)
        return "done"

    for n in range(64):
        await db.broker.register(f"s{n}", channel="test", peer="p")
        await db.broker.send(f"s{n}", "go")
    began_at = time.monotonic()
    assert await db.worker(reply, concurrency=64).run_until_idle() == 64
    seconds = time.monotonic() - began_at
    assert 2 <= len(writes) <= seconds / FLUSH_SECONDS + 1
    assert max(runs for _, runs in writes) == 64


# ---- bounds and arguments -------------------------------------------------------------------


async def test_text_above_the_limit_is_dropped_and_said_once(database: Database) -> None:
    async with (
        SessionsDB(database.url, limits=Limits(stream_bytes=10)) as db,
        scripted(db) as script,
    ):
        script.turn.stream("12345")
        script.turn.stream("67ä8ö9")  # the ö would be the eleventh byte
        script.turn.stream("more")
        script.turn.emit("note", 1)
        script.turn.stream("and more")
        stored = await until(partial(stored_pieces, database))
        assert [piece.shown for piece in stored] == [
            "1234567ä8",
            ("cut", '{"dropped":"text","limit":10}'),
            ("note", "1"),
        ]


async def test_data_above_the_limit_is_dropped_and_said_once(
    db: SessionsDB, database: Database
) -> None:
    large = "x" * 60_000
    async with scripted(db) as script:
        for _ in range(RUN_DATA_BYTES // 60_000 + 5):
            script.turn.emit("large", large)
        script.turn.stream("text")
        await until(lambda: ends_with(database, "text"))
        *before, cut, text = [piece.shown for piece in await stored_pieces(database)]
        assert {kind for kind, _ in before} == {"large"}
        assert len(before) == RUN_DATA_BYTES // 60_071
        assert cut == ("cut", f'{{"dropped":"data","limit":{RUN_DATA_BYTES}}}')
        assert text == "text"


async def test_data_is_any_json_of_64_kib(db: SessionsDB, database: Database) -> None:
    given = [None, 1, "text", [1, {"a": []}], {"nul": "\0", "half": "\ud800"}, "x" * 65_534]
    async with scripted(db) as script:
        for data in given:
            script.turn.emit("k" * 64, data)
        stored = await until(partial(stored_pieces, database))
        assert [json.loads(str(piece.data)) for piece in stored] == given
        wrong = ["x" * 65_535, float("nan"), b"bytes", {1: 2}, {"a": object()}, [0] * 70_000]
        for data in wrong:
            with pytest.raises(InvalidMessage, match=r"^data is (?!.*message)"):
                script.turn.emit("kind", data)
        deep: list[Any] = []
        for _ in range(300):
            deep = [deep]
        with pytest.raises(InvalidMessage, match="nests deeper"):
            script.turn.emit("kind", deep)


@pytest.mark.parametrize("kind_of_data", ["", "k" * 65, "a\0", "\ud800", None, 7])
async def test_a_kind_is_a_short_name(db: SessionsDB, kind_of_data: Any) -> None:
    async with scripted(db) as script:
        with pytest.raises(InvalidArgument, match="kind"):
            script.turn.emit(kind_of_data, 1)


@pytest.mark.parametrize("text", [None, b"bytes", 7, ["a"]])
async def test_streamed_text_is_a_string(db: SessionsDB, text: Any) -> None:
    async with scripted(db) as script:
        with pytest.raises(InvalidArgument, match="text must be a string"):
            script.turn.stream(text)


async def test_characters_that_no_column_holds_are_replaced(
    db: SessionsDB, database: Database
) -> None:
    async with scripted(db) as script:
        script.turn.stream("a\0b\ud800c")
        stored = await until(partial(stored_pieces, database))
        assert [piece.text for piece in stored] == ["a\ufffdb\ufffdc"]


# ---- ends of a turn -------------------------------------------------------------------------


async def test_a_piece_after_the_handler_returned_has_no_effect(
    db: SessionsDB, database: Database
) -> None:
    async with scripted(db) as script:
        script.finish("done")
        await until(lambda: history_is(db, ["hello", "done"]))
        script.turn.stream("late")
        script.turn.emit("late", 1)
        await asyncio.sleep(2 * FLUSH_SECONDS)
        assert await stored_pieces(database) == []


async def test_the_pieces_of_a_failed_turn_are_void_and_swept(
    db: SessionsDB, database: Database
) -> None:
    async with scripted(db, max_attempts=1) as script:
        script.turn.stream("Rome")
        await until(partial(stored_pieces, database))
        assert await sweep(db) == 0
        assert await stored_text(database) == "Rome"
        script.fail()
        await until(partial(is_dead, db))
        assert await sweep(db) == 1
        assert await stored_pieces(database) == []


async def is_dead(db: SessionsDB) -> bool:
    return bool(await db.broker.dead_letters())


async def test_a_second_attempt_streams_from_the_start(db: SessionsDB, database: Database) -> None:
    texts: list[str] = []

    async def reply(turn: Turn) -> str:
        turn.stream(f"attempt {turn.attempt}")
        await until(partial(stored_epochs, database, turn.attempt))
        if turn.attempt == 1:
            raise ValueError
        key = (turn.namespace, turn.session.id)
        texts.append(
            await open_database_of(db).read(
                lambda connection: pieces.read_partial_text(connection, key)
            )
        )
        return "done"

    await db.broker.register("chat", channel="test", peer="p")
    await db.broker.send("chat", "hello")
    assert await db.worker(reply, retry=SOON).run_until_idle() == 1
    assert texts == ["attempt 2"]
    assert await stored_pieces(database) == []  # also the void ones of the session


async def stored_epochs(database: Database, count: int) -> bool:
    return len({piece.epoch for piece in await stored_pieces(database)}) == count


async def test_a_worker_that_lost_its_lease_stores_no_pieces(
    db: SessionsDB, database: Database
) -> None:
    async with scripted(db, lease_seconds=3_600) as script:
        script.turn.stream("old")
        await until(partial(stored_pieces, database))
        await database.query("UPDATE mailboxes SET owner = 'another', epoch = epoch + 1")
        script.turn.stream("zombie")
        script.turn.emit("zombie", 1)
        await asyncio.sleep(3 * FLUSH_SECONDS)
        assert await stored_text(database) == "old"
        assert await sweep(db) == 1


async def ends_with(database: Database, end: str) -> bool:
    return (await stored_text(database)).endswith(end)


async def test_a_stopped_turn_keeps_the_stored_text(db: SessionsDB, database: Database) -> None:
    async with scripted(db) as script:
        script.turn.stream("Rome is")
        script.turn.emit("tool", 1)
        script.turn.stream(" old")
        await until(partial(stored_pieces, database))
        await open_database_of(db).write(
            partial(stopping.cancel, namespace="default", session_id="chat", position=1),
            wakes=("stop",),
        )
        assert await history_is(db, ["hello", "Rome is old"])
        script.turn.stream(" and void")
        await asyncio.sleep(2 * FLUSH_SECONDS)
        assert await stored_text(database) == "Rome is old"
        assert await sweep(db) == 1


@pytest.mark.parametrize("children", ["detach", "cascade"])
async def test_the_deletion_of_a_session_deletes_its_pieces(
    db: SessionsDB, database: Database, children: Any
) -> None:
    async with scripted(db) as script:
        script.turn.stream("Rome")
        await until(partial(stored_pieces, database))
        await db.store.delete("chat", children=children)
        assert await stored_pieces(database) == []


async def test_a_worker_that_stops_leaves_no_task(db: SessionsDB, database: Database) -> None:
    before = asyncio.all_tasks()
    async with scripted(db) as script:
        script.turn.stream("Rome")
        await until(partial(stored_pieces, database))
        script.turn.stream("never written")
    names = {task.get_name() for task in asyncio.all_tasks() - before}
    assert not names & {"pieces", "sweep of pieces"}
    assert await db.worker(yes).run_until_idle() == 1


async def yes(turn: Turn) -> str:
    return "yes"


# ---- lost rows ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lost", "delete"),
    [
        ("the last", "DELETE FROM pieces WHERE number = 1"),
        ("all", "DELETE FROM pieces"),
    ],
)
async def test_a_run_whose_rows_were_lost_is_written_anew(
    db: SessionsDB, database: Database, lost: str, delete: str
) -> None:
    """A server that fails may lose the last rows: they are written without durability."""
    async with scripted(db) as script:
        script.turn.stream("one ")
        await until(partial(more_than, 0, database))
        script.turn.stream("two ")
        await until(partial(more_than, 1, database))
        await database.query(delete)
        script.turn.emit("tool", 1)
        script.turn.stream("three ")
        await until(lambda: ends_with(database, "three "))
        stored = await stored_pieces(database)
        assert [piece.shown for piece in stored] == ["one two ", ("tool", "1"), "three "]
        assert [piece.start for piece in stored] == [0, 8, 8]
        assert {piece.generation for piece in stored} == {1}
        script.turn.stream("four")
        await until(lambda: ends_with(database, "four"))
        assert [piece.number for piece in await stored_pieces(database)] == [0, 1, 2, 3]
        script.finish("one two three four")
        await until(lambda: history_is(db, ["hello", "one two three four"]))
        assert await stored_pieces(database) == []


async def test_a_run_may_be_lost_again_and_again(db: SessionsDB, database: Database) -> None:
    async with scripted(db) as script:
        text = ""
        for n in range(3):
            text += f"{n} "
            script.turn.stream(f"{n} ")
            await until(lambda text=text: text_is(database, text))
            await database.query("DELETE FROM pieces")
        script.turn.stream("end")
        await until(lambda: text_is(database, text + "end"))
        assert {piece.generation for piece in await stored_pieces(database)} == {3}


async def text_is(database: Database, text: str) -> bool:
    return await stored_text(database) == text

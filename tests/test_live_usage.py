"""turn.usage: tokens are counted, whatever becomes of the turn."""

from __future__ import annotations

from typing import Any

import pytest

from devtools.databases import Database
from sessionsdb import InvalidArgument, Reply, SessionsDB, Turn
from tests.support.live import Hanging
from tests.support.waiting import until
from tests.support.work import SOON, running


@pytest.fixture(autouse=True)
async def _chat(db: SessionsDB) -> None:
    await db.broker.register("chat", channel="cli", peer="ada")


async def work(db: SessionsDB, handler: Any, **options: Any) -> int:
    return await db.worker(handler, retry=SOON, **options).run_until_idle()


async def tokens(database: Database) -> list[tuple[Any, ...]]:
    return await database.query(
        "SELECT status, input_tokens, output_tokens FROM inbox ORDER BY position"
    )


async def test_calls_add_up_and_are_kept_with_the_last_message(
    db: SessionsDB, database: Database
) -> None:
    async def handler(turn: Turn) -> str:
        turn.usage(input_tokens=10)
        turn.usage(input_tokens=5, output_tokens=2)
        return "ok"

    for text in "ab":
        await db.broker.send("chat", text)
    await work(db, handler, batch=2)
    assert await tokens(database) == [("done", None, None), ("done", 15, 2)]


async def test_a_number_of_the_reply_takes_the_place_of_the_sum(
    db: SessionsDB, database: Database
) -> None:
    async def handler(turn: Turn) -> Reply:
        turn.usage(input_tokens=10, output_tokens=2)
        return Reply("ok", input_tokens=7)

    await db.broker.send("chat", "a")
    await work(db, handler)
    assert await tokens(database) == [("done", 7, 2)]


async def test_a_turn_that_says_nothing_keeps_nothing(db: SessionsDB, database: Database) -> None:
    async def handler(turn: Turn) -> str:
        turn.usage()
        return "ok"

    await db.broker.send("chat", "a")
    await work(db, handler)
    assert await tokens(database) == [("done", None, None)]


async def test_the_tokens_of_failed_attempts_are_kept_and_add_up(
    db: SessionsDB, database: Database
) -> None:
    async def handler(turn: Turn) -> str | Reply:
        if turn.text == "b" or turn.attempt < 3:
            turn.usage(input_tokens=10, output_tokens=1)
            raise ValueError("no")
        return Reply("ok", input_tokens=100)

    for text in "ab":
        await db.broker.send("chat", text)
    await work(db, handler, max_attempts=3)
    assert await tokens(database) == [("done", 120, 2), ("dead", 30, 3)]


async def test_the_tokens_of_a_run_over_a_rewritten_transcript_are_kept(
    db: SessionsDB, database: Database
) -> None:
    runs = []

    async def handler(turn: Turn) -> str:
        runs.append(turn)
        turn.usage(input_tokens=10)
        if len(runs) == 1:
            await database.query("UPDATE sessions SET rewrites = rewrites + 1")
        return "ok"

    await db.broker.send("chat", "a")
    await work(db, handler)
    assert await tokens(database) == [("done", 20, None)]


@pytest.mark.parametrize("verb", ["interrupt", "end"])
async def test_the_tokens_of_a_stopped_turn_are_kept(
    db: SessionsDB, database: Database, verb: str
) -> None:
    hanging = Hanging()
    async with running(db, hanging, lease_seconds=3_600):
        await db.broker.send("chat", "a")
        turn = await hanging.begun()
        turn.usage(input_tokens=10, output_tokens=3)
        await (db.broker.interrupt("chat") if verb == "interrupt" else db.broker.end("chat"))
        await until(lambda: is_kept(database))
    assert await tokens(database) == [("cancelled", 10, 3)]


async def is_kept(database: Database) -> bool:
    return (await tokens(database))[0][1] is not None


@pytest.mark.parametrize("wrong", [-1, 1.5, True, "5", 10**13])
async def test_a_wrong_number_is_refused(db: SessionsDB, database: Database, wrong: Any) -> None:
    async def handler(turn: Turn) -> str:
        for name in ("input_tokens", "output_tokens"):
            with pytest.raises(InvalidArgument, match=name):
                turn.usage(**{name: wrong})
        return "ok"

    await db.broker.send("chat", "a")
    assert await work(db, handler, max_attempts=1) == 1
    assert await tokens(database) == [("done", None, None)]

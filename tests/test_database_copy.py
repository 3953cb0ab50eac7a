"""copy: all rows of a database in another one, of the same kind or the other one."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from devtools.databases import Database
from sessionsdb import InvalidArgument, SessionsDB, SpawnRequest, StorageError, Turn
from sessionsdb.admin import database_copy, tokens
from sessionsdb.admin.database_copy import LEFT_OUT, TABLES, copy_database, count_rows
from sessionsdb.schema import metadata, sessions
from tests.support.command_line import CommandLine
from tests.support.turns import bury_next, claim
from tests.support.waiting import until


async def fill(db: SessionsDB) -> None:
    """Sessions in every state, with parents that sort behind their children."""
    await db.broker.register("z-top", channel="cli", peer="ada", tools=["a"], metadata={"m": 1})
    for _ in range(3):
        await db.broker.spawn("z-top", SpawnRequest(prompt="go"))
    await db.store.append("chat", [{"role": "user", "content": "\0", "n": 10**30}] * 250)
    await db.store.save("chat", [{"role": "user", "content": "\0", "n": 10**30}] * 249)
    await db.broker.fork("chat", new_id="fork", at=100)
    for scope in ("session", "peer", "namespace"):
        await db.store.update_state("z-top", {"of": scope, "k": []}, scope=scope)
    await db.broker.send("z-top", "dead", idempotency_key="k")

    async def handler(turn: Turn) -> str:
        if turn.session.id == "z-top":
            turn.send("chat", "from a turn")
        return "yes"

    await db.worker(handler).run_until_idle()
    await db.broker.register("dead", channel="cli", peer="ada")
    await db.broker.send("dead", "dead", sender="chat")
    await bury_next(db)
    await db.broker.send("dead", "running")
    await claim(db)
    await db.broker.register("ended", channel="cli", peer="ada")
    await db.broker.end("ended", reason="over")
    await db.broker.schedule("chat", "later", cron="0 3 * * *", name="night")
    await db.in_namespace("other").store.append("chat", [{"role": "user", "content": "theirs"}])
    await tokens.create(db, "dashboard", rights="admin", expires_in=3_600)


async def rows_of(db: SessionsDB) -> dict[str, list[Any]]:
    async with db.engine.connect() as connection:
        return {
            table.name: [
                tuple(row)
                for row in await connection.execute(
                    select(table).order_by(*table.primary_key.columns)
                )
            ]
            for table in TABLES
        }


@pytest.fixture(params=["sqlite", "postgresql"])
def empty(request: pytest.FixtureRequest) -> Iterator[Database]:
    """A second database, without sessions."""
    maker = "sqlite_files" if request.param == "sqlite" else "postgres_server"
    with request.getfixturevalue(maker).new_database() as database:
        yield database


@pytest.fixture
async def target(empty: Database) -> AsyncIterator[SessionsDB]:
    async with SessionsDB(empty.url) as db:
        yield db


async def test_a_copy_has_all_rows_and_goes_on_by_itself(
    db: SessionsDB, target: SessionsDB
) -> None:
    await fill(db)
    steps: list[int] = []
    copied = await copy_database(db, target, progress=steps.append)
    assert await rows_of(target) == await rows_of(db)
    assert copied.rows == await count_rows(db) == sum(steps) / 2
    assert copied.written == copied.rows  # a child is one row, although its link is made later
    assert (await copy_database(db, target)).written == 0
    # The copy works: the children are below their parent, the inboxes take messages.
    assert len(await target.broker.list(root="z-top")) == 4
    assert (await target.broker.send("z-top", "dead", idempotency_key="k")).duplicate
    assert (await target.store.state("z-top", scope="peer")).values == {"of": "peer", "k": []}


async def test_an_interrupted_copy_goes_on_and_mends_what_changed(
    db: SessionsDB, target: SessionsDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(db)
    monkeypatch.setattr(database_copy, "MAX_ROWS", 40)
    interrupted = asyncio.create_task(copy_database(db, target))

    async def copied_some() -> Any:
        return (await rows_of(target))["messages"]

    await until(copied_some, within=30)
    interrupted.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await interrupted
    await db.store.save("chat", [{"role": "user", "content": "all is new"}])
    await db.store.update_state("z-top", {"k": None, "new": 1})
    await db.broker.update("ended", model="new")
    await copy_database(db, target)
    assert await rows_of(target) == await rows_of(db)


async def test_a_session_with_a_new_parent_is_one_written_row(
    db: SessionsDB, target: SessionsDB
) -> None:
    await fill(db)
    await copy_database(db, target)
    spawned = next(one for one in await db.broker.list(root="z-top") if one.parent)
    async with db.engine.begin() as connection:
        await connection.execute(
            update(sessions)
            .where(sessions.c.id == spawned.id)
            .values(parent_id="chat", model="new")
        )
    assert (await copy_database(db, target)).written == 1
    assert await rows_of(target) == await rows_of(db)


async def test_another_database_is_never_overwritten(db: SessionsDB, target: SessionsDB) -> None:
    await db.store.append("chat", [{"role": "user", "content": "mine"}])
    await target.store.append("chat", [{"role": "user", "content": "theirs"}])
    before = await rows_of(target)
    with pytest.raises(InvalidArgument, match=r"chat .*name an empty database"):
        await copy_database(db, target)
    await db.store.delete("chat")
    with pytest.raises(InvalidArgument, match="no copy from the source: chat"):
        await copy_database(db, target)
    assert await rows_of(target) == before


async def test_a_copy_that_was_used_is_not_overwritten(db: SessionsDB, target: SessionsDB) -> None:
    await db.store.append("chat", [{"role": "user", "content": "mine"}])
    await copy_database(db, target)
    await target.store.append("chat", [{"role": "user", "content": "of the copy"}])
    with pytest.raises(InvalidArgument, match="was used since it was copied"):
        await copy_database(db, target)
    assert len(await target.store.load("chat") or ()) == 2


async def test_clients_of_the_server_keep_their_tokens(db: SessionsDB, target: SessionsDB) -> None:
    lasting = await tokens.create(db, "dashboard", rights="write")
    short = await tokens.create(db.in_namespace("other"), "ci", expires_in=60)
    copied = await copy_database(db, target)
    assert (copied.rows, copied.written) == (2, 2)
    for secret, token in (lasting, short):
        assert await tokens.find(target, secret) == token
    # A second run takes over what changed.
    await tokens.create(db, "new")
    assert (await copy_database(db, target)).written == 1
    assert await rows_of(target) == await rows_of(db)


async def test_a_token_of_the_target_alone_is_not_lost(db: SessionsDB, target: SessionsDB) -> None:
    await db.store.append("chat", [{"role": "user", "content": "mine"}])
    secret, token = await tokens.create(target, "dashboard")
    with pytest.raises(InvalidArgument, match=f"token --revoke {token.id}"):
        await copy_database(db, target)
    assert await tokens.find(target, secret) == token
    assert await target.store.list() == []
    await tokens.revoke(target, token.id)
    await copy_database(db, target)


def test_every_table_is_copied_or_left_out_by_name() -> None:
    assert {*TABLES, *LEFT_OUT} == set(metadata.tables.values())
    assert not {*TABLES} & {*LEFT_OUT}


async def test_a_target_that_others_write_to_is_told(
    db: SessionsDB, target: SessionsDB, empty: Database
) -> None:
    await db.store.append("chat", [{"role": "user", "content": "mine"}])
    total, seen = await count_rows(db), 0

    def spoil(rows: int) -> None:
        nonlocal seen
        seen += rows
        if rows and seen == total:  # all is copied, and nothing is verified
            change = empty.query("UPDATE sessions SET model = 'x'")
            thread = threading.Thread(target=lambda: asyncio.run(change))
            thread.start()
            thread.join()

    with pytest.raises(StorageError, match="differs from its source in the table sessions"):
        await copy_database(db, target, progress=spoil)


@pytest.mark.parametrize("kind", ["sqlite"])
async def test_the_command_copies_there_and_back(
    database: Database, postgres_server: Any, tmp_path: Path
) -> None:
    async with SessionsDB(database.url) as db:
        await fill(db)
        original = await rows_of(db)
    back = f"sqlite:///{tmp_path}/back.db"
    pooled = {"SESSIONSDB_TRANSACTION_POOLER": "1"}  # SQLite has none, and is copied all the same
    with postgres_server.new_database() as there:
        for source, to in ((database.url, there.url), (there.url, back)):
            copy = partial(CommandLine(source), "copy", source, to, "--json", env=pooled)
            done = await asyncio.to_thread(copy)
            assert done.ok().json["rows"] == sum(map(len, original.values()))
    async with SessionsDB(back) as db:
        assert await rows_of(db) == original
    refused = await asyncio.to_thread(CommandLine(back), "copy", back, back)
    assert (refused.code, "the same database" in refused.stderr) == (2, True)

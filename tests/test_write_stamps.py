"""Every transaction leaves a stamp, by which a lost COMMIT is settled: by data alone."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from functools import partial
from typing import Any

import asyncpg
import pytest

from devtools.databases import Database, PostgresServer
from sessionsdb import (
    Edit,
    Question,
    Receipt,
    Reply,
    SessionsDB,
    SpawnRequest,
    StorageError,
    Turn,
)
from sessionsdb.admin import doctor
from sessionsdb.admin.purge import purge
from sessionsdb.database import open_database_of
from sessionsdb.engine import migrations
from sessionsdb.engine.postgresql import write_stamps
from sessionsdb.engine.postgresql.stamped_begin import StampingConnection, UnstampedTransaction
from sessionsdb.engine.repeatable import REASONS, UndeclaredWrite
from sessionsdb.operations import expiry, firing, mailbox, pieces, registry, search_index
from sessionsdb.operations.retention import RetentionRules
from sessionsdb.types import StateScope
from tests.support.proxy import Proxy, When, proxy_to
from tests.support.schemas import differences, downgrade
from tests.support.turns import answer_next, bury_next, claim
from tests.support.waiting import until

CUTS: list[When] = ["before", "while", "after"]


@pytest.fixture
def kind() -> str:
    return "postgresql"


@pytest.fixture
async def proxy(database: Database) -> AsyncIterator[Proxy]:
    async with proxy_to(database) as proxy:
        yield proxy


def said(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


# ---- each write, undisturbed and with lost answers, has the same result and leaves the same ------


async def staged_turn(db: SessionsDB) -> object:
    async def handle(turn: Turn) -> str:
        if turn.session.id == "chat":
            turn.send("other", "staged")
            turn.spawn(SpawnRequest(prompt="go"))
        return "answer"

    turns = await db.worker(handle, concurrency=1).run_until_idle()
    outcome = await db.broker.outcome(Receipt(session_id="chat", position=1))
    return turns, outcome.status, outcome.attempts, outcome.reply


async def failed_turn(db: SessionsDB) -> object:
    async def handle(turn: Turn) -> str:
        raise ValueError("broken")

    await db.broker.end("other")
    await db.worker(handle, max_attempts=1).run_until_idle()
    outcome = await db.broker.outcome(Receipt(session_id="chat", position=1))
    return outcome.status, outcome.attempts


async def released_turn(db: SessionsDB) -> object:
    started = asyncio.Event()

    async def handle(turn: Turn) -> str:
        started.set()
        await asyncio.sleep(60)
        return "never"

    worker = db.worker(handle, concurrency=1)
    run = asyncio.create_task(worker.run())
    await started.wait()
    await worker.stop(grace=0)
    await run
    outcome = await db.broker.outcome(Receipt(session_id="chat", position=1))
    return outcome.status, outcome.attempts


async def spawned(db: SessionsDB) -> object:
    child = await db.broker.spawn("chat", SpawnRequest(prompt="go"), idempotency_key="k")
    again = await db.broker.spawn("chat", SpawnRequest(prompt="go"), idempotency_key="k")
    return child == again


async def requeued(db: SessionsDB) -> object:
    return await db.broker.requeue(Receipt(session_id="buried", position=1))


async def purged(db: SessionsDB) -> object:
    now = datetime.now(UTC)
    rules = RetentionRules(finished_before=now, ended_before=now, messages_before=now, dead=True)
    return await purge(db, rules)


async def repaired(db: SessionsDB) -> object:
    report = await doctor.examine(db, fix=True)
    return [(one.check, one.count, one.mended) for one in report.findings if one.mended]


async def waited(db: SessionsDB) -> object:
    receipt = Receipt(session_id="chat", position=1)
    return (await db.broker.wait(receipt, timeout=0.05, waiter="other")).status


async def reaped(db: SessionsDB) -> object:
    [lease] = await claim(db)
    await open_database_of(db).runner.write(
        lambda c: c.exec_driver_sql("UPDATE mailboxes SET lease_until = now() WHERE owner <> ''")
    )
    write = open_database_of(db).write
    taken = await write(partial(expiry.reap, namespaces=None, max_attempts=5), wakes=())
    return lease.session.id, taken


LATER = datetime(2100, 1, 1, tzinfo=UTC)
EARLIER = datetime(2020, 1, 1, tzinfo=UTC)


async def unscheduled(db: SessionsDB) -> object:
    [schedule] = await db.broker.schedules("other")
    return await db.broker.unschedule(schedule.id)


async def asks(turn: Turn) -> Reply:
    return Reply("let me ask", ask=Question(prompt="Delete the file?"))


async def answered(db: SessionsDB) -> object:
    [question] = await db.broker.questions("asking")
    receipt = await db.broker.answer(question.id, "yes", author="ada")
    return receipt, await db.broker.questions("asking")


async def fired(db: SessionsDB) -> object:
    database = open_database_of(db)
    fire = partial(firing.fire, namespaces=["default"], limits=database.limits)
    return await database.write(fire, wakes=())


STATE: dict[StateScope, dict[str, Any]] = {"session": {"a": 1}}

WRITES: dict[str, Callable[[SessionsDB], Awaitable[object]]] = {
    "register": lambda db: db.broker.register("new", channel="cli", peer="ada", parent="chat"),
    "update": lambda db: db.broker.update("chat", model="m"),
    "end": lambda db: db.broker.end("chat", subtree=True, reason="over"),
    "delete": lambda db: db.store.delete("chat", children="cascade"),
    "save": lambda db: db.store.save("kept", [said("two"), said("three")]),
    "save new": lambda db: db.store.save("fresh", [said("one")]),
    "append new": lambda db: db.store.append("fresh", [said("one")]),
    "append with a key": lambda db: db.store.append("kept", [said("three")], keys=["k"]),
    "edit": lambda db: db.store.edit(
        "kept", Edit(append=[said("x")], keep_through=1, metadata={"n": 1}, state=STATE)
    ),
    "pop": lambda db: db.store.pop("kept"),
    "replace": lambda db: db.store.replace("kept", 1, said("other")),
    "spawn": spawned,
    "requeue": requeued,
    "purge": purged,
    "repair": repaired,
    "wait": waited,
    "reap": reaped,
    "schedule": lambda db: db.broker.schedule("chat", "tick", at=LATER, name="n", author="ada"),
    "unschedule": unscheduled,
    "fire": fired,
    "answer": answered,
    "staged turn": staged_turn,
    "failed turn": failed_turn,
    "released turn": released_turn,
}

TABLES = {
    "sessions": "id, parent_id, root_id, depth, channel, peer, model, end_reason, version,"
    " last_seq, message_count, ended_at IS NULL",
    "messages": "session_id, seq, role, content, position, key, sender, extra",
    "mailboxes": "session_id, head, tail, pending, taken, closed, ready_at IS NULL,"
    " wake_at IS NULL, owner IS NULL",
    "inbox": "session_id, position, status, content, sender, attempts, ahead, hops,"
    " finished_at IS NULL",
    "waits": "waiter_id, target_id",
    "questions": "session_id, position, prompt, status, answer_position, closed_at IS NULL",
    "schedules": "session_id, name, content, extra, at, last_fired_at IS NULL",
}


async def prepare(database: Database) -> None:
    async with SessionsDB(database.url) as db:
        await db.broker.register("buried", channel="cli", peer="ada")
        await db.broker.send("buried", "hello")
        await bury_next(db)
        await db.broker.register("gone", channel="cli", peer="ada")
        await db.broker.send("gone", "hello")
        await answer_next(db, "bye")
        await db.broker.end("gone")
        await db.store.save("kept", [said("one"), said("two")])
        await db.broker.register("asking", channel="cli", peer="ada")
        await db.broker.send("asking", "delete it")
        await db.worker(asks).run_until_idle()
        for name in ("chat", "other"):
            await db.broker.register(name, channel="cli", peer="ada")
        await db.broker.send("chat", "hello")
        await db.broker.schedule("other", "tick", at=EARLIER)
    await database.query("UPDATE sessions SET message_count = 9 WHERE id = 'buried'")


async def content(database: Database) -> dict[str, Any]:
    rows = {
        table: sorted(map(repr, await database.query(f"SELECT {columns} FROM {table}")))
        for table, columns in TABLES.items()
    }
    spawned = re.compile(r"spawn-[0-9a-f-]{36}")
    return {table: [spawned.sub("spawned", row) for row in each] for table, each in rows.items()}


def lasting(answer: object) -> object:
    """An answer without the times in it."""
    answer = re.sub(r"schedule-[0-9a-f-]{36}", "", repr(answer))
    return re.sub(r"datetime\.datetime\([^)]*\)", "", answer).replace("tzinfo=UTC", "")


@pytest.mark.parametrize("name", [name for name in WRITES if name != "wait"])
async def test_a_write_whose_commit_breaks_is_made_once_with_its_answer(
    database: Database, postgres_server: PostgresServer, name: str
) -> None:
    """The answer and the rows are the same as where nothing breaks.

    Without a wait: its timeout ends it, also while it is recorded.
    """
    await prepare(database)
    async with SessionsDB(database.url) as db:
        undisturbed = lasting(await WRITES[name](db)), await content(database)
    for when in CUTS:
        with postgres_server.new_database() as fresh:
            await prepare(fresh)
            async with proxy_to(fresh) as proxy, SessionsDB(proxy.url) as db:
                proxy.cut("COMMIT", when, times=2)
                answer = await asyncio.wait_for(WRITES[name](db), 60)
                assert proxy.cuts == 2
            assert (lasting(answer), await content(fresh)) == undisturbed, when


async def test_a_migration_whose_commit_is_not_answered_is_made_once(database: Database) -> None:
    for target in ("base", "0006"):
        await downgrade(database, target)
        async with proxy_to(database) as proxy:
            proxy.cut("COMMIT", "after")
            async with SessionsDB(proxy.url, migrate=True) as db:
                await db.broker.register("chat", channel="cli", peer="ada")
                await db.store.delete("chat")
            assert proxy.cuts == 1
        assert await differences(database) == []


# ---- others go on while the answer is lost -------------------------------------------------------


async def register(db: SessionsDB) -> None:
    await db.broker.register("new", channel="cli", peer="ada")


async def registered_by_others(db: SessionsDB) -> None:
    await db.broker.update("new", peer="bob")


async def ended_and_made_again(db: SessionsDB) -> None:
    await db.store.delete("chat")
    await db.broker.register("chat", channel="cli", peer="bob")


async def made_again(db: SessionsDB) -> None:
    await db.broker.register("chat", channel="cli", peer="bob")


async def handle_requeued(db: SessionsDB) -> None:
    while (await answer_next(db, "answer")).session.id != "buried":
        pass


MEANWHILE: dict[str, tuple[Callable[..., Any], Callable[..., Any], str, object]] = {
    "a registered session is changed": (
        register,
        registered_by_others,
        "SELECT peer FROM sessions WHERE id = 'new'",
        "bob",
    ),
    "a registered session is deleted": (
        register,
        lambda db: db.store.delete("new"),
        "SELECT count(*) FROM sessions WHERE id = 'new'",
        0,
    ),
    "an update is followed by another": (
        lambda db: db.broker.update("chat", model="first"),
        lambda db: db.broker.update("chat", model="second"),
        "SELECT model FROM sessions WHERE id = 'chat'",
        "second",
    ),
    "an ended session is made again": (
        lambda db: db.broker.end("chat"),
        ended_and_made_again,
        "SELECT count(*) FROM sessions WHERE id = 'chat' AND ended_at IS NULL AND peer = 'bob'",
        1,
    ),
    "a deleted session is made again": (
        lambda db: db.store.delete("chat"),
        made_again,
        "SELECT count(*) FROM sessions WHERE id = 'chat' AND peer = 'bob'",
        1,
    ),
    "a saved transcript is saved by another": (
        lambda db: db.store.save("kept", [said("mine")]),
        lambda db: db.store.save("kept", [said("theirs")]),
        "SELECT string_agg(content, ' ') FROM messages WHERE session_id = 'kept'",
        "theirs",
    ),
    "a requeued message is handled": (
        requeued,
        handle_requeued,
        "SELECT status FROM inbox WHERE session_id = 'buried'",
        "done",
    ),
}


@pytest.mark.parametrize("case", list(MEANWHILE))
async def test_a_committed_write_is_not_repeated_over_the_writes_of_others(
    database: Database, proxy: Proxy, case: str
) -> None:
    call, others, look, expected = MEANWHILE[case]
    await prepare(database)
    async with SessionsDB(proxy.url) as db, SessionsDB(database.url) as other:
        proxy.cut("COMMIT", "after", for_good=True)
        write = asyncio.create_task(call(db))
        await until(lambda: proxy.cuts == 1)
        await proxy.down()
        await others(other)
        assert not write.done()
        await proxy.up()
        await asyncio.wait_for(write, 30)
    assert await database.value(look) == expected


async def test_a_transaction_that_still_runs_is_waited_for(
    database: Database, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a pooler no server process can be ended, and its commit may come at any moment."""
    await prepare(database)
    async with SessionsDB(proxy.url, transaction_pooler=True) as db:
        await db.broker.update("chat", model="before")
        await database.query(
            "CREATE FUNCTION wait_here() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " PERFORM pg_advisory_xact_lock(42); RETURN NULL; END $$"
        )
        await database.query(
            "CREATE CONSTRAINT TRIGGER slow AFTER UPDATE ON sessions DEFERRABLE INITIALLY DEFERRED"
            " FOR EACH ROW WHEN (NEW.model = 'slow') EXECUTE FUNCTION wait_here()"
        )
        lock = await database.connect_to_postgres()
        await lock.execute("SELECT pg_advisory_lock(42)")
        proxy.cut("COMMIT", "while")
        update = asyncio.create_task(db.broker.update("chat", model="slow"))
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            " AND datname = current_database()"
        )

        async def both_wait() -> bool:
            return bool(await database.value(waiting) == 2)

        await until(both_wait)
        await lock.close()
        assert (await asyncio.wait_for(update, 30)).model == "slow"
    assert await database.query("SELECT max(repeats) FROM write_stamps") == [(1,)]


# ---- the stamp that goes along with BEGIN --------------------------------------------------------

NAME = "sessionsdb_stamp"


@pytest.mark.parametrize("when", CUTS)
async def test_a_write_whose_begin_breaks_is_made_once(
    database: Database, proxy: Proxy, when: When
) -> None:
    await prepare(database)
    async with SessionsDB(proxy.url) as db:
        for model in ("first", "second"):  # the row of the slot is there
            await db.broker.update("chat", model=model)
        proxy.cut(f"EXECUTE {NAME}", when, times=2)
        updated = await asyncio.wait_for(db.broker.update("chat", model="third"), 60)
        assert updated.model == "third"
        assert proxy.cuts >= 1
        await db.broker.update("chat", peer="bob")
    rows = await database.query("SELECT model, peer FROM sessions WHERE id = 'chat'")
    assert rows == [("third", "bob")]


async def test_a_stamp_whose_row_was_deleted_is_inserted(database: Database, proxy: Proxy) -> None:
    await prepare(database)
    async with SessionsDB(proxy.url) as db:
        for model in ("first", "second"):
            await db.broker.update("chat", model=model)
        await database.query("DELETE FROM write_stamps")
        proxy.cut("COMMIT", "after")
        await asyncio.wait_for(db.broker.update("chat", model="third"), 60)
        assert proxy.cuts == 1
    # The lost COMMIT was settled by the new row: the number was found once more.
    assert await database.query("SELECT number, repeats FROM write_stamps") == [(3, 1)]


async def test_a_connection_whose_begin_was_refused_can_be_used_again(database: Database) -> None:
    await prepare(database)
    await database.query("DELETE FROM write_stamps")
    async with SessionsDB(database.url) as db:
        for model in ("first", "second"):
            await db.broker.update("chat", model=model)
        await database.query("ALTER TABLE write_stamps RENAME TO hidden")
        with pytest.raises(StorageError, match="write_stamps"):
            await db.broker.update("chat", model="refused")
        open_transactions = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            " AND state LIKE 'idle in transaction%'"
        )
        assert await database.value(open_transactions) == 0
        await database.query("ALTER TABLE hidden RENAME TO write_stamps")
        assert (await db.broker.update("chat", model="third")).model == "third"
    assert await database.query("SELECT number, repeats FROM write_stamps") == [(4, 0)]


async def test_a_stamp_is_written_where_the_server_has_forgotten_its_name(
    database: Database, proxy: Proxy
) -> None:
    async with SessionsDB(proxy.url) as db:
        await db.broker.register("chat", channel="cli", peer="ada")
        await db.broker.update("chat", model="first")
        runner = open_database_of(db).runner
        await runner.write(lambda connection: connection.exec_driver_sql("DEALLOCATE " + NAME))
        assert (await db.broker.update("chat", model="second")).model == "second"
        proxy.cut("COMMIT", "after")
        await asyncio.wait_for(db.broker.update("chat", model="third"), 60)
        assert proxy.cuts == 1
    assert await database.query("SELECT number, repeats FROM write_stamps") == [(5, 1)]


async def test_a_connection_that_was_in_autocommit_stamps_its_transactions_with_begin(
    database: Database, proxy: Proxy
) -> None:
    # The pool sets the isolation level of such a connection back, and BEGIN names it from then on.
    async with SessionsDB(proxy.url, migrate=True) as db:
        async with AsyncExitStack() as stack:
            for _ in range(3):
                connection = await stack.enter_async_context(db.engine.connect())
                await connection.execution_options(isolation_level="AUTOCOMMIT")
                await connection.exec_driver_sql("SELECT 1")
        await db.broker.register("chat", channel="cli", peer="ada")
        for model in ("first", "second", "third"):
            assert (await db.broker.update("chat", model=model)).model == model
        proxy.cut("COMMIT", "after")
        await asyncio.wait_for(db.broker.update("chat", model="fourth"), 60)
        assert proxy.cuts == 1
    begun = [sql for sql in proxy.executed if "EXECUTE sessionsdb_stamp(" in sql]
    assert any(sql.startswith("BEGIN ISOLATION LEVEL READ COMMITTED; ") for sql in begun), begun


async def test_a_transaction_that_begins_in_another_way_is_not_taken_for_a_stamped_one(
    postgres_server: PostgresServer,
) -> None:
    connection: StampingConnection = await asyncpg.connect(
        postgres_server.url("postgres"), connection_class=StampingConnection
    )
    try:
        connection.stamp_next_transaction("slot", 2)
        connection.require_stamp()
        await connection.execute("BEGIN")
        with pytest.raises(UnstampedTransaction):
            connection.require_stamp()
    finally:
        await connection.close()


# ---- what leaves no stamp is declared ------------------------------------------------------------

CHANGES = re.compile(r"\b(INSERT INTO|DELETE FROM|UPDATE \w+ (AS \w+ )?SET)\b")


async def test_every_transaction_that_writes_leaves_a_stamp(
    database: Database, proxy: Proxy
) -> None:
    await prepare(database)
    async with SessionsDB(proxy.url) as db:
        for name in (
            "save",
            "save new",
            "register",
            "update",
            "spawn",
            "requeue",
            "wait",
            "repair",
        ):
            await WRITES[name](db)
        await staged_turn(db)
        await WRITES["purge"](db)
        await WRITES["end"](db)
        await WRITES["delete"](db)
    transactions: list[list[str]] = []
    for statements in proxy.executed_by_connection:
        transactions.append([])  # the statements before the first transaction
        for statement in statements:
            if statement.startswith("BEGIN"):
                transactions.append([])
            transactions[-1].append(statement)
            if statement.startswith(("COMMIT", "ROLLBACK")):
                transactions.append([])  # the statements outside of a transaction
    committed = [one for one in transactions if one and one[-1].startswith("COMMIT")]
    writing = [one for one in committed if any(CHANGES.search(sql) for sql in one)]
    assert len(writing) >= 12
    with_begin = [one for one in writing if one[0].startswith("BEGIN; EXECUTE sessionsdb_stamp(")]
    assert len(with_begin) >= 8
    for one in writing:
        assert one in with_begin or any("INTO write_stamps" in sql for sql in one), one


async def test_an_undeclared_write_without_a_stamp_is_refused(database: Database) -> None:
    async with SessionsDB(database.url) as db:
        access = open_database_of(db)
        operation = partial(registry.change, namespace="default", session_id="a", values={})
        for write in (access.write_autocommit, access.write_repeatable):
            with pytest.raises(UndeclaredWrite, match=r"change leaves no stamp.*@repeatable"):
                await write(operation, wakes=())
    assert set(REASONS) == {
        mailbox.claim,
        mailbox.heartbeat,
        migrations.upgrade,
        pieces.write_pieces,
        pieces.sweep,
        search_index.create_index,
        search_index.write_parts,
    }


# ---- the table stays small -----------------------------------------------------------------------


async def test_slots_are_used_again_and_rows_of_dead_processes_are_deleted(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write_stamps, "WRITES_A_SLOT", 10)
    await database.query(
        "INSERT INTO write_stamps (slot, number, repeats, used_at) VALUES"
        " ('dead', 1, 0, now() - interval '25 hours'), ('busy', 1, 0, now() - interval '23 hours')"
    )
    async with SessionsDB(database.url) as db:
        for number in range(35):
            await db.broker.register(f"s{number}", channel="cli", peer="ada")
    rows = await database.query("SELECT slot, number FROM write_stamps ORDER BY number")
    assert len(rows) == 2
    assert rows[0] == ("busy", 1)
    assert rows[1][1] == 5

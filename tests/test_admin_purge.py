"""Retention: old rows are deleted, unfinished ones never, and the counters stay correct."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from devtools.databases import Database
from sessionsdb import InvalidArgument, Question, Reply, SessionsDB, SpawnRequest, Turn
from sessionsdb.admin import purge as purging
from sessionsdb.admin.doctor import examine
from sessionsdb.admin.purge import PAGE_SESSIONS, PurgeResult, count, purge
from sessionsdb.database import open_database_of
from sessionsdb.operations import retention
from sessionsdb.operations.retention import RetentionRules
from tests.support.command_line import CommandLine
from tests.support.turns import answer_next, bury_next, claim
from tests.support.work import running, user_and_reply

OLD = "2020-01-01 00:00:00.000000"
CUTOFF = datetime(2021, 1, 1, tzinfo=UTC)


def rules(**given: Any) -> RetentionRules:
    return RetentionRules(namespace="default", **given)


async def age(database: Database, table: str, column: str, where: str = "true") -> None:
    """Move all times years back."""
    await database.query(f"UPDATE {table} SET {column} = '{OLD}' WHERE {where}")


async def both(db: SessionsDB, wanted: RetentionRules) -> PurgeResult:
    """A dry run counts the rows that the purge deletes, none is left, and the counters agree."""
    before = await rows(db)
    counted = await count(db, wanted)
    assert await rows(db) == before, "a count changes nothing"
    gone = await purge(db, wanted)
    assert counted == gone
    after = await rows(db)
    assert [b - a for b, a in zip(before, after, strict=True)] == [
        gone.sessions,
        gone.messages,
        gone.inbox,
    ]
    assert (await purge(db, wanted)).total == 0
    assert (await examine(db)).findings == []
    return gone


async def rows(db: SessionsDB) -> list[int]:
    tables = ("sessions", "messages", "inbox")
    async with db.engine.connect() as connection:
        found = [
            (await connection.exec_driver_sql(f"SELECT count(*) FROM {table}")).scalar_one()
            for table in tables
        ]
        await connection.rollback()
    return found


# ---- receipts ------------------------------------------------------------------------------------


async def test_finished_receipts_go_and_what_is_not_finished_stays(
    db: SessionsDB, database: Database
) -> None:
    await db.broker.register("chat", channel="cli", peer="ada")
    await db.broker.send("chat", "answered", idempotency_key="k")
    await answer_next(db, "re")
    await db.broker.send("chat", "died")
    await bury_next(db)
    await db.broker.send("chat", "running")
    await claim(db)
    await db.broker.send("chat", "waiting")
    await age(database, "inbox", "enqueued_at")
    await age(database, "inbox", "finished_at", "finished_at IS NOT NULL")
    assert (await both(db, rules(finished_before=CUTOFF))).inbox == 1
    assert await database.query("SELECT status FROM inbox ORDER BY position") == [
        ("dead",),
        ("running",),
        ("pending",),
    ]
    assert len(await db.broker.dead_letters()) == 1
    assert (await both(db, rules(finished_before=CUTOFF, dead=True))).inbox == 1
    # The transcript is unchanged, and the next position is new.
    assert await db.store.load("chat") == user_and_reply("answered", "re")
    assert (await db.broker.send("chat", "next", idempotency_key="k")).position == 5


async def test_a_message_keeps_its_sender_when_its_inbox_row_is_purged(
    db: SessionsDB, database: Database
) -> None:
    await db.broker.register("agent", channel="cli", peer="ada")
    await db.broker.register("chat", channel="cli", peer="ada")
    await db.broker.send("chat", "an agent's words", sender="agent")
    await answer_next(db, "re")
    await age(database, "inbox", "finished_at", "finished_at IS NOT NULL")
    assert (await both(db, rules(finished_before=CUTOFF))).inbox == 1
    assert [m.sender for m in await db.broker.history("chat")] == ["agent", None]


async def test_old_questions_go_where_no_receipt_is_old(db: SessionsDB, database: Database) -> None:
    await ask(db, "chat")
    await age(database, "inbox", "finished_at")
    assert (await both(db, rules(finished_before=CUTOFF))).inbox == 1
    await db.broker.interrupt("chat")  # closes the question, which has no row in the inbox now
    assert (await both(db, rules(finished_before=CUTOFF))).inbox == 0
    assert await database.query("SELECT status FROM questions") == [("withdrawn",)]
    await age(database, "questions", "closed_at")
    assert (await both(db, rules(finished_before=CUTOFF))).inbox == 0
    assert await database.query("SELECT status FROM questions") == []


async def test_old_questions_go_with_every_transaction_of_a_page(
    db: SessionsDB, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(purging, "TRANSACTION_ROWS", 1)
    for id in ("first", "second"):
        await ask(db, id)
        await db.broker.interrupt(id)
    await age(database, "inbox", "finished_at")
    await age(database, "questions", "closed_at")
    assert (await both(db, rules(finished_before=CUTOFF))).inbox == 2
    assert await database.query("SELECT status FROM questions") == []


async def ask(db: SessionsDB, id: str) -> None:
    """Let a session be held by a question."""

    async def handler(_: Turn) -> Reply:
        return Reply("I have to ask.", ask=Question(prompt="Delete it?"))

    await db.broker.register(id, channel="cli", peer="ada")
    await db.broker.send(id, "go")
    await db.worker(handler).run_until_idle()


# ---- transcripts ---------------------------------------------------------------------------------


async def test_messages_of_transcripts_go_with_their_count_and_a_new_version(
    db: SessionsDB, database: Database
) -> None:
    await db.store.append("chat", [{"role": "user", "content": str(n)} for n in range(10)])
    await age(database, "messages", "created_at", "seq <= 6")
    before = await db.broker.get("chat")
    assert (await both(db, rules(messages_before=CUTOFF))).messages == 6
    after = await db.broker.get("chat")
    assert (after.message_count, after.version > before.version) == (4, True)
    assert after.last_active == before.last_active, "a purge is no activity"
    assert [m.seq for m in await db.broker.history("chat")] == [7, 8, 9, 10]
    await db.store.append("chat", [{"role": "user", "content": "next"}])
    assert (await db.broker.history("chat", 1))[0].seq == 11


async def test_only_the_channel_and_the_namespace_that_were_named(
    db: SessionsDB, database: Database
) -> None:
    for space in ("default", "acme"):
        for channel in ("cli", "mail"):
            there = db.in_namespace(space)
            await there.broker.register(f"{channel}-1", channel=channel, peer="ada")
            await there.store.append(f"{channel}-1", [{"role": "user", "content": "x"}])
    await age(database, "messages", "created_at")
    assert (await both(db, rules(messages_before=CUTOFF, channel="mail"))).messages == 1
    assert (await both(db, rules(messages_before=CUTOFF))).messages == 1
    assert (await both(db, RetentionRules(messages_before=CUTOFF))).messages == 2


async def test_one_transaction_purges_many_sessions_and_counts_each(
    db: SessionsDB, database: Database
) -> None:
    old = {"a": 3, "b": 5, "c": 3, "d": 0}
    for id, size in old.items():
        said = [{"role": "user", "content": f"word {n}"} for n in range(size + 1)]
        await db.store.append(id, said)
        await age(database, "messages", "created_at", f"session_id = '{id}' AND seq <= {size}")
    await db.index_search()
    before = {id: (await db.broker.get(id)).version for id in old}
    transactions: list[int] = []
    await purge(db, rules(messages_before=CUTOFF), transactions.append)
    assert transactions == [11]
    for id, size in old.items():
        after = await db.broker.get(id)
        assert (after.message_count, after.version > before[id]) == (1, size > 0)
        assert [m.seq for m in await db.broker.history(id)] == [size + 1]
    words = await database.query("SELECT session_id, seq FROM search_documents ORDER BY session_id")
    assert [tuple(row) for row in words] == [(id, size + 1) for id, size in old.items()]
    assert await db.index_search() == 0, "the rest of a purged transcript is not indexed again"


async def test_a_session_with_more_rows_than_a_transaction_goes_in_steps(
    db: SessionsDB, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(purging, "TRANSACTION_ROWS", 4)
    for id, size in {"a": 1, "b": 9, "c": 2, "d": 2}.items():
        await db.store.append(id, [{"role": "user", "content": str(n)} for n in range(size)])
    await age(database, "messages", "created_at", "seq > 0")
    transactions: list[int] = []
    await purge(db, rules(messages_before=CUTOFF), transactions.append)
    assert sum(transactions) == 14
    assert max(transactions) == 4
    assert await rows(db) == [4, 0, 0]


async def test_real_transcripts_go_by_their_date_in_many_transactions(
    db: SessionsDB, database: Database, real_transcripts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli = CommandLine(database.url)
    (await asyncio.to_thread(cli, "import", str(real_transcripts))).ok()
    await age(database, "messages", "created_at", "seq % 3 > 0")
    monkeypatch.setattr(purging, "TRANSACTION_ROWS", 7)
    monkeypatch.setattr(purging, "PAGE_SESSIONS", 11)
    expected = await database.value("SELECT count(*) FROM messages WHERE seq % 3 > 0")
    assert (await both(db, rules(messages_before=CUTOFF))).messages == expected


# ---- sessions ------------------------------------------------------------------------------------


async def family(db: SessionsDB) -> dict[str, str]:
    """top > (left > leaf, right). Each has answered its prompt."""
    await db.broker.register("top", channel="cli", peer="ada")
    ids = {"top": "top"}
    for name, parent in (("left", "top"), ("right", "top"), ("leaf", "left")):
        ids[name] = (await db.broker.spawn(ids[parent], SpawnRequest(prompt=name))).id
        await answer_next(db, f"re {name}")
    return ids


@pytest.mark.parametrize(
    ("children", "ended", "gone", "kept"),
    [
        ("detach", {"top"}, {"top"}, 0),
        ("detach", {"top", "left"}, {"top", "left"}, 0),
        ("cascade", {"top"}, set(), 1),
        ("cascade", {"top", "left", "leaf"}, {"left", "leaf"}, 1),
        ("cascade", {"top", "left", "right", "leaf"}, {"top", "left", "right", "leaf"}, 0),
        ("refuse", {"top", "left", "leaf"}, {"left", "leaf"}, 1),
        ("refuse", {"left"}, set(), 1),
        ("refuse", {"top", "left", "right", "leaf"}, {"top", "left", "right", "leaf"}, 0),
    ],
)
async def test_ended_sessions_go_as_the_policy_for_children_says(
    db: SessionsDB,
    database: Database,
    children: Any,
    ended: set[str],
    gone: set[str],
    kept: int,
) -> None:
    ids = await family(db)
    for name in ended:
        await db.broker.end(ids[name])
    await age(database, "sessions", "ended_at", "ended_at IS NOT NULL")
    purged = await both(db, rules(ended_before=CUTOFF, children=children))
    assert (purged.sessions, purged.kept) == (len(gone), kept)
    left = {s.id for s in await db.broker.list(include_ended=True)}
    assert left == {ids[name] for name in ids.keys() - gone}


async def test_a_channel_limits_which_sessions_go_and_cascade_takes_what_is_below(
    db: SessionsDB, database: Database
) -> None:
    ids = await family(db)
    await db.broker.end("top", subtree=True)
    await age(database, "sessions", "ended_at")
    kept = rules(ended_before=CUTOFF, channel="cli", children="refuse")
    assert (await both(db, kept)).kept == 1
    assert (await both(db, kept._replace(children="cascade"))).sessions == len(ids)


async def test_sessions_that_ended_lately_or_live_stay(db: SessionsDB) -> None:
    ids = await family(db)
    await db.broker.end(ids["leaf"])
    for children in ("detach", "cascade", "refuse"):
        purged = await both(db, rules(ended_before=CUTOFF, children=children))
        assert purged.total == 0


async def test_all_three_at_once_count_nothing_twice(
    db: SessionsDB, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = await family(db)
    await db.broker.end(ids["left"])
    for table, column in (("sessions", "ended_at"), ("messages", "created_at")):
        await age(database, table, column, f"{column} IS NOT NULL")
    await age(database, "inbox", "finished_at", "finished_at IS NOT NULL")
    monkeypatch.setattr(purging, "TRANSACTION_ROWS", 2)
    purged = await both(
        db, rules(ended_before=CUTOFF, messages_before=CUTOFF, finished_before=CUTOFF)
    )
    assert purged == PurgeResult(sessions=1, messages=6, inbox=3)


# ---- under load ----------------------------------------------------------------------------------


async def test_a_purge_under_load_loses_nothing_that_is_unfinished(
    db: SessionsDB, database: Database
) -> None:
    """Every finished row is due at once, while messages are sent and handled."""
    handled: dict[str, list[str]] = {f"s{n}": [] for n in range(8)}
    for id in handled:
        await db.broker.register(id, channel="cli", peer="ada")

    async def handler(turn: Any) -> str:
        handled[turn.session.id].append(turn.text)
        return "yes"

    async def send(id: str) -> list[str]:
        texts = [f"{id}: {n}" for n in range(60)]
        for text in texts:
            await db.broker.send(id, text)
        return texts

    tomorrow = datetime.now(UTC) + timedelta(days=1)
    everything = rules(finished_before=tomorrow, messages_before=tomorrow, ended_before=tomorrow)
    purged = 0
    async with running(db, handler, concurrency=4), SessionsDB(database.url) as operator:
        senders = [asyncio.create_task(send(id)) for id in handled]
        while not all(sender.done() for sender in senders):
            purged += (await purge(operator, everything)).inbox
            assert (await examine(operator)).findings == []
        sent = await asyncio.gather(*senders)
        await db.worker(handler).run_until_idle()
        purged += (await purge(operator, everything)).inbox
    assert list(handled.values()) == sent, "each once, in order"
    assert purged == 8 * 60
    assert await rows(db) == [8, 0, 0]
    assert (await examine(db)).findings == []


async def test_a_purge_that_is_broken_off_leaves_true_counters_and_is_taken_up_again(
    db: SessionsDB, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(purging, "TRANSACTION_ROWS", 10)
    for id in ("a", "b"):
        await db.store.append(id, [{"role": "user", "content": str(n)} for n in range(100)])
    await db.broker.end("b")
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    wanted = rules(ended_before=tomorrow, messages_before=tomorrow)
    task: asyncio.Task[PurgeResult]
    steps = 0

    def interrupt(_: int) -> None:
        nonlocal steps
        steps += 1
        if steps == 4:
            task.cancel()

    async with SessionsDB(database.url) as operator:
        task = asyncio.create_task(purge(operator, wanted, interrupt))
        with pytest.raises(asyncio.CancelledError):
            await task
    left = (await rows(db))[1]
    assert 0 < left < 200
    assert (await examine(db)).findings == []
    assert (await purge(db, wanted)).messages == left
    assert await rows(db) == [1, 0, 0]


async def test_a_purge_does_not_wait_for_sessions_without_old_rows(
    db: SessionsDB, database: Database
) -> None:
    if database.kind == "sqlite":  # one writer at a time, whichever session it writes
        return
    now = datetime.now(UTC)
    for id in ("a", "b"):
        await db.store.append(id, [{"role": "user", "content": "hello"}])
    await database.query(
        "UPDATE messages SET created_at = created_at - interval '1 day' WHERE session_id = 'a'"
    )
    connection = await database.connect_to_postgres()
    try:
        async with connection.transaction():
            await connection.execute("SELECT 1 FROM sessions WHERE id = 'b' FOR UPDATE")
            wanted = rules(messages_before=now - timedelta(hours=1))
            async with asyncio.timeout(20):
                assert (await purge(db, wanted)).messages == 1
    finally:
        await connection.close()


async def test_a_purge_of_messages_passes_over_sessions_that_have_none(db: SessionsDB) -> None:
    for id in ("a", "b", "c"):
        await db.broker.register(id, channel="cli", peer="ada")
    await db.store.append("b", [{"role": "user", "content": "hello"}])
    read = open_database_of(db).read
    later = datetime.now(UTC) + timedelta(days=1)

    async def page(wanted: RetentionRules) -> list[str]:
        found = await read(
            partial(retention.session_page, rules=wanted, after=None, limit=PAGE_SESSIONS)
        )
        return [id for _, id in found]

    assert await page(rules(messages_before=later)) == ["b"]
    assert await page(rules(messages_before=later, finished_before=later)) == ["a", "b", "c"]


async def test_a_purge_rests_after_each_transaction(db: SessionsDB) -> None:
    await db.store.append("a", [{"role": "user", "content": "hello"}])
    wanted = rules(messages_before=datetime.now(UTC) + timedelta(days=1))
    deleted = asyncio.Event()
    # It rests for a million times as long as its transaction took.
    task = asyncio.create_task(purge(db, wanted, lambda _: deleted.set(), duty_cycle=1e-6))
    await deleted.wait()
    done, _ = await asyncio.wait({task}, timeout=0.3)
    assert not done
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await rows(db) == [1, 0, 0]


@pytest.mark.parametrize("wrong", [0, -1, 1.1, float("nan")])
async def test_a_duty_cycle_is_a_share(db: SessionsDB, wrong: float) -> None:
    with pytest.raises(InvalidArgument, match="over 0 and at most 1"):
        await purge(db, rules(), duty_cycle=wrong)


# ---- the command ---------------------------------------------------------------------------------


async def test_the_command_counts_deletes_and_asks(db: SessionsDB, database: Database) -> None:
    await db.store.append("chat", [{"role": "user", "content": "x"}])
    cli = CommandLine(database.url)

    async def run(*args: str) -> Any:
        return await asyncio.to_thread(cli, "purge", *args)

    nobody = await run("--messages-before", "0m")
    assert (nobody.code, "use --yes" in nobody.stderr) == (2, True)
    assert (await run("--yes")).code == 2
    assert (await run("--messages-before", "yesterday", "--yes")).code == 2
    assert (await run("--dead", "--messages-before", "0m", "--yes")).code == 2
    counted = await run("--messages-before", "0m", "--dry-run", "--json")
    assert counted.ok().json == {
        "sessions": 0,
        "messages": 1,
        "inbox": 0,
        "kept": 0,
        "dry_run": True,
    }
    gone = await run("--messages-before", "0m", "--yes")
    assert gone.ok().stdout == "purged: 0 sessions, 1 message of transcripts, 0 receipts\n"
    assert gone.stderr == ""
    assert await db.store.load("chat") == []

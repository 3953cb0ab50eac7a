"""fork: a new session with the transcript, the settings and the state of another one."""

from __future__ import annotations

import asyncio
import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import event

from devtools.databases import Database
from sessionsdb import (
    ForkPoint,
    InvalidArgument,
    SessionExists,
    SessionsDB,
    SpawnRequest,
    State,
    Turn,
    UnknownSession,
)
from tests.support.turns import answer_next, bury_next, claim

MESSAGES: list[dict[str, Any]] = [
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": [{"type": "text", "text": "two"}], "nul": "\0"},
    {"role": "user", "content": "three"},
]


async def prepare(db: SessionsDB) -> None:
    await db.broker.register(
        "chat", channel="web", peer="ada", model="m", system="s", tools=["t"], metadata={"a": [1.5]}
    )
    await db.store.append("chat", MESSAGES)
    await db.store.update_state("chat", {"facts": ["\0", 1]})


async def test_a_fork_has_all_of_its_source_but_the_inbox(db: SessionsDB) -> None:
    await prepare(db)
    await db.broker.send("chat", "waits", idempotency_key="k")
    source = await db.broker.get("chat")
    made = await db.broker.fork("chat")
    fork = await db.broker.get(made.id)
    assert made.id.startswith("fork-")
    assert made == fork.summary
    assert fork.settings == source.settings
    assert (fork.channel, fork.peer, fork.metadata) == ("web", "ada", {"a": [1.5]})
    assert (fork.message_count, fork.version, fork.pending, fork.parent) == (3, 1, 0, None)
    assert fork.forked_from == ForkPoint(id=source.id, seq=3)
    assert source.forked_from is None
    assert await db.store.load(fork.id) == MESSAGES
    assert await db.broker.history(fork.id) == await db.broker.history("chat")
    assert await db.store.state(fork.id) == State(values={"facts": ["\0", 1]}, version=1)
    assert await db.broker.inbox(fork.id) == []
    assert (await db.broker.send(fork.id, "another", idempotency_key="k")).position == 1


async def test_a_fork_is_no_older_than_its_messages_after_the_clock_went_back(
    db: SessionsDB, database: Database
) -> None:
    await prepare(db)
    await database.query("UPDATE messages SET created_at = '2999-01-01 00:00:00.000000'")
    await database.query("UPDATE sessions SET updated_at = '2999-01-01 00:00:00.000000'")
    fork = await db.broker.fork("chat")
    newer = await database.value(
        "SELECT count(*) FROM messages JOIN sessions"
        " ON sessions.id = session_id"
        " AND (messages.created_at > updated_at OR messages.created_at > last_active)"
        f" WHERE session_id = '{fork.id}'"
    )
    assert newer == 0


async def test_a_fork_and_its_source_go_their_own_ways(db: SessionsDB) -> None:
    await prepare(db)
    await db.broker.fork("chat", new_id="fork")
    await db.store.append("fork", [{"role": "user", "content": "of the fork"}])
    await db.store.append("chat", [{"role": "user", "content": "of the source"}])
    await db.store.update_state("fork", {"facts": None, "new": 1})
    assert [m.seq for m in await db.broker.history("fork")] == [1, 2, 3, 4]
    assert (await db.broker.history("fork"))[-1].content == "of the fork"
    assert (await db.broker.history("chat"))[-1].content == "of the source"
    assert (await db.store.state("chat")).values == {"facts": ["\0", 1]}
    await db.store.delete("chat")
    assert (await db.broker.get("fork")).forked_from == ForkPoint(id="chat", seq=3)
    assert (await db.store.state("fork")).values == {"new": 1}
    assert len(await db.store.load("fork") or ()) == 4


@pytest.mark.parametrize(
    ("at", "seqs"),
    [(0, []), (1, [1]), (4, [1, 4]), (3, [1]), (5, [1, 4, 5]), (10**30, [1, 4, 5])],
)
async def test_a_fork_at_a_seq_has_what_is_up_to_it(
    db: SessionsDB, at: int, seqs: list[int]
) -> None:
    await db.store.append("chat", MESSAGES)
    await db.store.save("chat", [MESSAGES[0], MESSAGES[2], MESSAGES[1]])  # seqs 1, 4 and 5
    assert [m.seq for m in await db.broker.history("chat")] == [1, 4, 5]
    await db.broker.fork("chat", at=at, new_id="fork")
    assert [m.seq for m in await db.broker.history("fork")] == seqs
    fork = await db.broker.get("fork")
    last = seqs[-1] if seqs else 0
    assert (fork.message_count, fork.forked_from) == (len(seqs), ForkPoint(id="chat", seq=last))
    await db.store.append("fork", [MESSAGES[0]])
    assert (await db.broker.history("fork"))[-1].seq == last + 1


async def test_the_position_of_a_message_is_no_place_in_the_inbox_of_the_fork(
    db: SessionsDB,
) -> None:
    await prepare(db)
    await db.broker.send("chat", "from a user")
    await answer_next(db, "yes")
    await db.broker.register("agent", channel="cli", peer="bot")
    await db.broker.fork("chat", new_id="fork")
    await db.broker.send("fork", "from an agent", sender="agent")
    await answer_next(db, "yes, agent")
    senders = [(m.content, m.sender) for m in await db.broker.history("fork") if m.role == "user"]
    assert senders == [
        ("one", None),
        ("three", None),
        ("from a user", None),
        ("from an agent", "agent"),
    ]


async def test_an_ended_session_and_a_child_may_be_forked(db: SessionsDB) -> None:
    await prepare(db)
    child = (await db.broker.spawn("chat", SpawnRequest(prompt="go"))).id
    await db.store.append(child, MESSAGES)
    await db.broker.end("chat", subtree=True, reason="over")
    for id in ("chat", child):
        fork = await db.broker.get((await db.broker.fork(id)).id)
        assert (fork.ended_at, fork.end_reason, fork.parent, fork.root) == (None,) * 4
        assert await db.store.load(fork.id) == MESSAGES
        await db.broker.send(fork.id, "it lives")


async def test_the_fork_of_a_running_session_has_what_is_committed(db: SessionsDB) -> None:
    await prepare(db)

    async def handler(turn: Turn) -> str:
        await db.broker.fork("chat", new_id="fork")
        return "not in the fork"

    await db.broker.send("chat", "nor is this")
    await db.worker(handler).run_until_idle()
    assert await db.store.load("fork") == MESSAGES
    assert len(await db.store.load("chat") or ()) == 5


async def test_what_cannot_be_forked_is_refused(db: SessionsDB) -> None:
    await prepare(db)
    with pytest.raises(UnknownSession, match=r"^unknown session: nobody$"):
        await db.broker.fork("nobody")
    with pytest.raises(SessionExists, match="another new_id") as refused:
        await db.broker.fork("chat", new_id="chat")
    assert "exist_ok" not in str(refused.value)
    for at in (-1, -(10**30)):
        with pytest.raises(InvalidArgument, match="at must be 0 or more, not -1"):
            await db.broker.fork("chat", at=at)
    with pytest.raises(InvalidArgument):
        await db.broker.fork("chat", at="3")
    with pytest.raises(InvalidArgument):
        await db.broker.fork("chat", new_id="")
    assert len(await db.broker.list()) == 1


@pytest.mark.parametrize("kind", ["postgresql"])
async def test_a_session_that_others_create_during_a_fork_is_unknown_to_it(
    db: SessionsDB, database: Database
) -> None:
    made: list[str] = []

    async def append() -> None:
        async with SessionsDB(database.url) as other:
            await other.store.append("chat", [{"role": "user", "content": f"{len(made)}"}])

    def others_append(_c: Any, _k: Any, statement: str, *_: Any) -> None:
        """Create the session behind the first look at it, and append behind the second."""
        if "FROM sessions" in statement and len(made) < 2:
            made.append(statement)
            with ThreadPoolExecutor() as thread:
                thread.submit(asyncio.run, append()).result()

    engine = db.engine.sync_engine
    event.listen(engine, "after_cursor_execute", others_append)
    try:
        with pytest.raises(UnknownSession):
            await db.broker.fork("chat", new_id="copy")
    finally:
        event.remove(engine, "after_cursor_execute", others_append)
    assert made
    assert (await db.broker.fork("chat", new_id="copy")).message_count == len(made)
    await db.store.append("copy", [{"role": "user", "content": "goes on"}])


async def test_a_fork_of_a_fork_names_the_fork(db: SessionsDB) -> None:
    await prepare(db)
    await db.broker.fork("chat", new_id="fork", at=2)
    await db.broker.fork("fork", new_id="again")
    again = await db.broker.get("again")
    assert again.forked_from == ForkPoint(id="fork", seq=2)


async def test_a_long_transcript_is_copied_by_the_database(
    database: Database, db: SessionsDB
) -> None:
    await db.broker.register("chat", channel="cli", peer="ada")
    await database.query(
        "INSERT INTO messages (namespace, session_id, seq, role, content, created_at)"
        " WITH RECURSIVE numbers(n) AS"
        " (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 100000)"
        " SELECT 'default', 'chat', n, 'user', 'message ' || n, s.created_at"
        " FROM numbers, sessions AS s"
    )
    await database.query(
        "UPDATE sessions SET version = 1, message_count = 100000, last_seq = 100000"
    )
    began = time.perf_counter()
    fork = await db.broker.fork("chat")
    assert time.perf_counter() - began < 10, "less than 1 s on an idle machine"
    assert fork.message_count == 100_000
    assert await database.value("SELECT count(*) FROM messages") == 200_000


# ---- inbox ---------------------------------------------------------------------------------------


async def test_the_inbox_shows_what_waits_runs_or_died_by_position(db: SessionsDB) -> None:
    await db.broker.register("chat", channel="cli", peer="ada")
    await db.broker.register("agent", channel="cli", peer="bot")
    for text in ("done", "dead", "requeued", "running", "waits"):
        await db.broker.send("chat", text, sender="agent" if text == "waits" else None)
    await answer_next(db, "yes")
    await bury_next(db)
    await bury_next(db)
    await claim(db)
    requeued = (await db.broker.dead_letters("chat"))[1].receipt
    await db.broker.requeue(requeued)
    found = await db.broker.inbox("chat")
    shown = [(one.receipt.position, one.status, one.message) for one in found]
    assert [(position, status) for position, status, _ in shown] == [
        (2, "dead"),
        (3, "pending"),
        (4, "running"),
        (5, "pending"),
    ]
    assert [m.content for _, _, m in shown if m] == ["dead", "requeued", "running", "waits"]
    assert [m.sender for _, _, m in shown if m] == [None, None, None, "agent"]
    assert "broke" in str(found[0].error)
    assert await db.broker.inbox("chat", limit=2) == found[:2]
    assert await db.broker.inbox("chat", limit=1, after=found[1].receipt) == found[2:3]
    assert await db.broker.inbox("chat", after=4) == found[3:]
    assert await db.broker.inbox("chat", limit=0) == []
    assert await db.broker.inbox("agent") == []
    with pytest.raises(UnknownSession):
        await db.broker.inbox("nobody")
    with pytest.raises(InvalidArgument):
        await db.broker.inbox("chat", after="2")


# ---- list with details ---------------------------------------------------------------------------


async def test_a_list_with_details_is_what_get_says(db: SessionsDB) -> None:
    await prepare(db)
    await db.broker.spawn("chat", SpawnRequest(prompt="go"))
    await db.broker.send("chat", "runs")
    await claim(db)
    await db.broker.fork("chat", new_id="fork")
    await db.broker.register("ended", channel="web", peer="ada")
    await db.broker.end("ended", reason="over")
    for given in (
        {"include_ended": True},
        {"root": "chat"},
        {"channel": "web", "peer": "ada", "include_ended": True},
        {"limit": 1, "newest_first": True},
    ):
        plain: Any = await db.broker.list(**given)
        detailed: Any = await db.broker.list(**given, details=True)
        assert detailed == [await db.broker.get(one.id) for one in plain]
        assert detailed
    with pytest.raises(InvalidArgument, match="details"):
        await db.broker.list(details=1)


async def test_a_list_by_channel_and_peer_compares_the_whole_texts(db: SessionsDB) -> None:
    channels, peers = ("c" * 20, "c" * 21), ("p" * 60, "p" * 61)
    for channel in channels:
        for peer in peers:
            await db.broker.register(f"{len(channel)}-{len(peer)}", channel=channel, peer=peer)
    for channel in channels:
        for peer in peers:
            [found] = await db.broker.list(channel=channel, peer=peer)
            assert found.id == f"{len(channel)}-{len(peer)}"
    assert json.dumps([s.id for s in await db.broker.list(channel=channels[0])]) == (
        '["20-60", "20-61"]'
    )

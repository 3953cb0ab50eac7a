"""State: three scopes, merged by key, in one transaction, with a turn's commit or without."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import event

from devtools.databases import Database
from sessionsdb import (
    InvalidArgument,
    Limits,
    SessionsDB,
    SpawnRequest,
    State,
    Turn,
    UnknownSession,
    VersionConflict,
)
from tests.support.work import SOON

SCOPES: list[Any] = ["session", "peer", "namespace"]

HARD_VALUES: dict[str, Any] = {
    "text": "",
    "nul": "a\0b",
    "surrogate": "\ud83d",
    "pair": "\ud83d\ude00 and 😀",
    "huge": 10**40,
    "float": 1e-7,
    "nested": {"b": [None, True, {"": []}], "a": {}},
    "false": False,
    "zero": 0,
    "": None,
}
del HARD_VALUES[""]


async def register(db: SessionsDB, *ids: str, peer: str = "ada", **given: Any) -> None:
    for id in ids:
        await db.broker.register(id, channel=given.pop("channel", "cli"), peer=peer, **given)


@pytest.mark.parametrize("scope", SCOPES)
async def test_a_scope_is_empty_until_it_is_written_to(db: SessionsDB, scope: Any) -> None:
    await register(db, "chat")
    assert await db.store.state("chat", scope=scope) == State(values={}, version=0)
    stored = await db.store.update_state("chat", {"a": 1}, scope=scope)
    assert stored == State(values={"a": 1}, version=1)
    assert await db.store.state("chat", scope=scope) == stored


@pytest.mark.parametrize("scope", SCOPES)
async def test_values_come_back_to_the_last_character(db: SessionsDB, scope: Any) -> None:
    await register(db, "chat")
    stored = await db.store.update_state("chat", HARD_VALUES, scope=scope)
    assert stored.values == HARD_VALUES
    read = (await db.store.state("chat", scope=scope)).values
    assert read == HARD_VALUES
    assert {key: repr(value) for key, value in read.items()} == {
        key: repr(value) for key, value in HARD_VALUES.items()
    }


async def test_keys_are_merged_and_none_removes_one(db: SessionsDB) -> None:
    await register(db, "chat")
    await db.store.update_state("chat", {"a": 1, "b": {"x": None}, "c": 3})
    merged = await db.store.update_state("chat", {"b": None, "c": 4, "d": None, "e": "new"})
    assert merged == State(values={"a": 1, "c": 4, "e": "new"}, version=2)


async def test_an_update_that_changes_nothing_keeps_the_version(db: SessionsDB) -> None:
    await register(db, "chat")
    first = await db.store.update_state("chat", {"a": [1]})
    for same in ({}, {"a": [1]}, {"missing": None}):
        assert await db.store.update_state("chat", same) == first


async def test_the_expected_version_is_that_of_the_scope(db: SessionsDB) -> None:
    await register(db, "chat")
    await db.store.append("chat", [{"role": "user", "content": "another version"}])
    await db.store.update_state("chat", {"a": 1}, expected_version=0)
    await db.store.update_state("chat", {"a": 2}, expected_version=1)
    with pytest.raises(VersionConflict, match="the session state of session chat is at version 2"):
        await db.store.update_state("chat", {"a": 3}, expected_version=1)
    with pytest.raises(VersionConflict) as conflict:
        await db.store.update_state("chat", {"a": 3}, scope="peer", expected_version=1)
    assert (conflict.value.actual, conflict.value.scope) == (0, "peer")
    assert await db.store.state("chat") == State(values={"a": 2}, version=2)


async def test_ten_writers_of_ten_keys_lose_none(db: SessionsDB) -> None:
    await register(db, *(f"chat-{n}" for n in range(10)))
    for scope in SCOPES:
        await asyncio.gather(
            *(
                db.store.update_state("chat-0" if scope == "session" else f"chat-{n}",
                                      {f"key-{n}": n}, scope=scope)
                for n in range(10)
            )
        )  # fmt: skip
        found = await db.store.state("chat-0", scope=scope)
        assert found == State(values={f"key-{n}": n for n in range(10)}, version=10)


async def test_who_shares_a_scope(db: SessionsDB) -> None:
    await register(db, "one", "two")
    await register(db, "other", peer="bob")
    child = (await db.broker.spawn("two", SpawnRequest(prompt="go"))).id
    await db.store.update_state("one", {"of": "ada"}, scope="peer")
    await db.store.update_state("one", {"of": "one"})
    await db.store.update_state("one", {"of": "all"}, scope="namespace")

    async def shared(id: str, scope: Any) -> Any:
        return (await db.store.state(id, scope=scope)).values.get("of")

    assert [await shared(id, "peer") for id in ("one", "two", child, "other")] == ["ada"] * 3 + [
        None
    ]
    assert [await shared(id, "session") for id in ("one", "two", child)] == ["one", None, None]
    assert [await shared(id, "namespace") for id in ("two", child, "other")] == ["all"] * 3


async def test_channel_and_peer_are_not_mixed_up(db: SessionsDB) -> None:
    await db.broker.register("a", channel="x", peer="yz")
    await db.broker.register("b", channel="xy", peer="z")
    await db.store.update_state("a", {"mine": True}, scope="peer")
    assert (await db.store.state("b", scope="peer")).values == {}


async def test_the_longest_channel_peer_and_key_fit(db: SessionsDB) -> None:
    long = "".join(chr(0x1F300 + n * 7 % 500) for n in range(4_096))
    await db.broker.register(long[:512], channel=long, peer=long[::-1])
    for scope in SCOPES:
        await db.store.update_state(long[:512], {long[7:263]: 1}, scope=scope)
        assert (await db.store.state(long[:512], scope=scope)).values == {long[7:263]: 1}
    assert len(await db.broker.list(channel=long, peer=long[::-1])) == 1


async def test_another_namespace_shares_nothing(db: SessionsDB) -> None:
    other = db.in_namespace("other")
    await register(db, "chat")
    await register(other, "chat")
    for scope in SCOPES:
        await db.store.update_state("chat", {"ours": 1}, scope=scope)
        assert (await other.store.state("chat", scope=scope)).values == {}


@pytest.mark.parametrize("kind", ["postgresql"])
async def test_a_session_that_others_create_during_an_update_is_unknown_to_it(
    db: SessionsDB, database: Database
) -> None:
    made: list[str] = []

    async def write() -> None:
        async with SessionsDB(database.url) as other:
            await other.store.append("s", [{"role": "user", "content": "hello"}])
            await other.store.update_state("s", {f"of the others, {len(made)}": 1})

    def others_write(_c: Any, _k: Any, statement: str, *_: Any) -> None:
        """Create the session behind the first look at it, and write behind the next ones."""
        is_look = "FROM sessions" in statement or "FROM state_scopes" in statement
        if is_look and len(made) < 3:
            made.append(statement)
            with ThreadPoolExecutor() as thread:
                thread.submit(asyncio.run, write()).result()

    engine = db.engine.sync_engine
    event.listen(engine, "after_cursor_execute", others_write)
    try:
        with pytest.raises(UnknownSession):
            await db.store.update_state("s", {"mine": 1})
    finally:
        event.remove(engine, "after_cursor_execute", others_write)
    assert made
    assert (await db.store.state("s")).version == len(made)


async def test_delete_takes_the_state_of_the_session_alone(
    database: Database, db: SessionsDB
) -> None:
    await register(db, "chat", "other")
    for scope in SCOPES:
        await db.store.update_state("chat", {"a": 1}, scope=scope)
    await db.store.delete("chat")
    await register(db, "chat")
    assert await db.store.state("chat") == State(values={}, version=0)
    for scope in ("peer", "namespace"):
        assert (await db.store.state("other", scope=scope)).values == {"a": 1}
    assert await database.value("SELECT count(*) FROM state_values") == 2


@pytest.mark.parametrize("scope", SCOPES)
async def test_an_unknown_session_has_no_state(db: SessionsDB, scope: Any) -> None:
    with pytest.raises(UnknownSession, match=r"^unknown session: nobody$"):
        await db.store.state("nobody", scope=scope)
    with pytest.raises(UnknownSession, match=r"^unknown session: nobody$"):
        await db.store.update_state("nobody", {"a": 1}, scope=scope)


@pytest.mark.parametrize("scope", ["", "Session", None, 1, ["peer"]])
async def test_another_scope_is_refused(db: SessionsDB, scope: Any) -> None:
    await register(db, "chat")
    with pytest.raises(InvalidArgument, match="scope must be"):
        await db.store.state("chat", scope=scope)
    with pytest.raises(InvalidArgument, match="scope must be"):
        await db.store.update_state("chat", {"a": 1}, scope=scope)


@pytest.mark.parametrize(
    "changes",
    [
        None,
        [("a", 1)],
        {1: 2},
        {"": 1},
        {"x" * 257: 1},
        {"nul\0": 1},
        {"a": float("nan")},
        {"a": object()},
        {"a": {1: 2}},
        {"a": b"bytes"},
    ],
)
async def test_what_is_no_json_is_refused_and_nothing_is_written(
    db: SessionsDB, changes: Any
) -> None:
    await register(db, "chat")
    with pytest.raises(InvalidArgument):
        await db.store.update_state("chat", changes)
    if isinstance(changes, dict):
        with pytest.raises(InvalidArgument):
            await db.store.update_state("chat", {"good": 1} | changes)
    assert (await db.store.state("chat")).version == 0


async def test_a_scope_is_bounded_and_a_removed_key_makes_room(database: Database) -> None:
    async with SessionsDB(database.url, limits=Limits(state_bytes=100)) as db:
        await register(db, "chat")
        await db.store.update_state("chat", {"a": "x" * 40, "b": "x" * 40})
        with pytest.raises(InvalidArgument, match=r"would be \d+ bytes, the limit is 100"):
            await db.store.update_state("chat", {"c": "x" * 40})
        with pytest.raises(InvalidArgument, match="the limit of a whole state is 100"):
            await db.store.update_state("chat", {"c": "é" * 50})
        await db.store.update_state("chat", {"a": None, "c": "x" * 40})
        await db.store.update_state("chat", {"b": "y" * 40})
        assert (await db.store.state("chat")).version == 3


# ---- in a turn -----------------------------------------------------------------------------------


async def test_a_turn_commits_the_keys_that_it_changed(db: SessionsDB) -> None:
    await register(db, "chat", "beside")
    await db.store.update_state("chat", {"kept": 1, "list": [1], "gone": 1, "none": 1})
    await db.store.update_state("chat", {"facts": ["old"]}, scope="peer")

    async def handler(turn: Turn) -> str:
        own, shared = await turn.state(), await turn.state("peer")
        assert own is await turn.state("session")
        own["list"].append(2)
        own["new"] = {"a": None}
        own["none"] = None
        del own["gone"]
        shared["facts"].append("new")
        # Others write in the meantime: other keys are not touched by the turn.
        await db.store.update_state("chat", {"beside": True, "kept": 2})
        await db.store.update_state("beside", {"other": 1}, scope="peer")
        return "done"

    await db.broker.send("chat", "go")
    assert await db.worker(handler).run_until_idle() == 1
    assert (await db.store.state("chat")).values == {
        "kept": 2,
        "list": [1, 2],
        "new": {"a": None},
        "beside": True,
    }
    shared = await db.store.state("beside", scope="peer")
    assert shared.values == {"facts": ["old", "new"], "other": 1}


async def test_several_tasks_of_a_handler_get_one_dict(db: SessionsDB) -> None:
    await register(db, "chat")

    async def handler(turn: Turn) -> None:
        found = await asyncio.gather(*(turn.state() for _ in range(5)))
        for number, one in enumerate(found):
            one[f"key-{number}"] = number

    await db.broker.send("chat", "go")
    await db.worker(handler).run_until_idle()
    assert len((await db.store.state("chat")).values) == 5


async def test_a_failed_turn_leaves_nothing_and_the_next_attempt_reads_again(
    db: SessionsDB,
) -> None:
    await register(db, "chat")
    seen = []

    async def handler(turn: Turn) -> str:
        state = await turn.state()
        seen.append(dict(state))
        state["count"] = state.get("count", 0) + 1
        if turn.attempt == 1:
            await db.store.update_state("chat", {"count": 10})
            raise RuntimeError("no")
        return "yes"

    await db.broker.send("chat", "go")
    await db.worker(handler, retry=SOON).run_until_idle()
    assert seen == [{}, {"count": 10}]
    assert (await db.store.state("chat")).values == {"count": 11}


@pytest.mark.parametrize("value", [object(), "x" * 300])
async def test_a_state_that_cannot_be_stored_fails_the_turn_as_a_whole(
    database: Database, value: Any
) -> None:
    async with SessionsDB(database.url, limits=Limits(state_bytes=200)) as db:
        await register(db, "chat", "other")

        async def handler(turn: Turn) -> str:
            (await turn.state())["bad"] = value
            (await turn.state("peer"))["good"] = 1
            turn.send("other", "staged")
            return "never"

        receipt = await db.broker.send("chat", "go")
        await db.worker(handler, max_attempts=1).run_until_idle()
        outcome = await db.broker.outcome(receipt)
        assert outcome.status == "dead"
        assert "bad" in str(outcome.error)
        assert await db.store.load("chat") == []
        assert (await db.store.state("chat", scope="peer")).values == {}
        assert (await db.broker.get("other")).pending == 0


async def test_a_state_that_grew_too_large_beside_the_turn_fails_it(database: Database) -> None:
    async with SessionsDB(database.url, limits=Limits(state_bytes=200)) as db:
        await register(db, "chat")

        async def handler(turn: Turn) -> str:
            (await turn.state())["mine"] = "x" * 100
            await db.store.update_state("chat", {"theirs": "x" * 100})
            return "never"

        receipt = await db.broker.send("chat", "go")
        await db.worker(handler, max_attempts=1).run_until_idle()
        assert "the limit is 200" in str((await db.broker.outcome(receipt)).error)
        assert list((await db.store.state("chat")).values) == ["theirs"]


async def test_turns_of_one_peer_at_the_same_time_lose_no_key(db: SessionsDB) -> None:
    names = [f"chat-{n}" for n in range(10)]
    await register(db, *names)

    async def handler(turn: Turn) -> str:
        (await turn.state("peer"))[turn.session.id] = turn.text
        (await turn.state("namespace"))[turn.session.id] = turn.text
        (await turn.state())["last"] = turn.text
        return "ok"

    for name in names:
        await db.broker.send(name, "hello")
    await db.worker(handler, concurrency=10).run_until_idle()
    for scope in ("peer", "namespace"):
        found = await db.store.state("chat-0", scope=scope)
        assert found == State(values=dict.fromkeys(names, "hello"), version=10)


@pytest.mark.parametrize("value", [float("nan"), b"bytes", {1: 2}, [0] * 2_000_000])
async def test_an_error_speaks_of_the_value_and_of_no_message(db: SessionsDB, value: Any) -> None:
    await register(db, "chat")
    with pytest.raises(InvalidArgument, match=r"^state key 'a': value is (?!.*message)"):
        await db.store.update_state("chat", {"a": value})

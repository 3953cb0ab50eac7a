"""Follow a session with all sessions below it."""

from __future__ import annotations

import logging

import pytest

from sessionsdb import InvalidArgument, SessionsDB, SpawnRequest
from sessionsdb.database import open_database_of
from sessionsdb.runtime import follow_subtree
from tests.support.following import Follow, following, short
from tests.support.turns import answer_next
from tests.support.waiting import until


@pytest.fixture(autouse=True)
async def tree(db: SessionsDB) -> None:
    await db.broker.register("root", channel="test", peer="tester")
    await db.broker.register("child", channel="test", peer="tester", parent="root")


async def told(follow: Follow, count: int) -> set[tuple[str, str]]:
    events = [await follow.next() for _ in range(count)]
    return {(event.session_id, short(event)) for event in events}


async def test_the_events_of_all_sessions_come_with_their_own_cursors(db: SessionsDB) -> None:
    async with following(db, "root", subtree=True) as follow:
        assert await told(follow, 2) == {("root", "idle"), ("child", "idle")}
        await db.broker.send("child", "hello")
        assert await told(follow, 1) == {("child", "queued hello")}
        cursors = {event.session_id: event.cursor for event in follow.seen}
    await answer_next(db, "yes")
    await db.broker.send("root", "too")
    async with following(db, "root", subtree=True, after=cursors) as follow:
        assert await told(follow, 5) == {
            ("child", "message hello"),
            ("child", "message yes"),
            ("child", "turn done"),
            ("child", "idle"),
            ("root", "queued too"),
        }


async def test_children_that_appear_are_followed_from_their_start(db: SessionsDB) -> None:
    async with following(db, "root", subtree=True) as follow:
        await told(follow, 2)
        spawned = await db.broker.spawn("child", SpawnRequest(prompt="dig"))
        assert await told(follow, 1) == {(spawned.id, "queued dig")}
        await answer_next(db, "dug")
        below = await db.broker.spawn(spawned.id, SpawnRequest(prompt="deeper"))
        assert await told_without_starts(follow, 5) == {
            (spawned.id, "message dig"),
            (spawned.id, "message dug"),
            (spawned.id, "turn done"),
            (spawned.id, "idle"),
            (below.id, "queued deeper"),
        }


async def told_without_starts(follow: Follow, count: int) -> set[tuple[str, str]]:
    """The start of a turn is not always seen."""
    events: set[tuple[str, str]] = set()
    while len(events) < count:
        events |= {one for one in await told(follow, 1) if one[1] != "turn started"}
    return events


async def test_a_child_that_appeared_while_nobody_followed_begins_at_its_start(
    db: SessionsDB,
) -> None:
    async with following(db, "root", subtree=True) as follow:
        await told(follow, 2)
        cursors = {event.session_id: event.cursor for event in follow.seen}
    await db.broker.register("new", channel="test", peer="tester", parent="root")
    await db.broker.send("new", "one")
    await answer_next(db, "eins")
    async with following(db, "root", subtree=True, after=cursors) as follow:
        assert await told(follow, 4) == {
            ("new", "message one"),
            ("new", "message eins"),
            ("new", "turn done"),
            ("new", "idle"),
        }


async def test_the_deletion_of_the_root_is_the_last_event(db: SessionsDB) -> None:
    async with following(db, "root", subtree=True) as follow:
        await told(follow, 2)
        await db.store.delete("root", children="cascade")
        assert await told(follow, 2) == {("child", "deleted"), ("root", "deleted")}
        assert follow.seen[-1].session_id == "root"
        with pytest.raises(StopAsyncIteration):
            await follow.next()


async def test_the_deletion_of_a_child_does_not_end_the_iterator(db: SessionsDB) -> None:
    async with following(db, "root", subtree=True) as follow:
        await told(follow, 2)
        await db.store.delete("child")
        assert await told(follow, 1) == {("child", "deleted")}
        await db.broker.send("root", "hello")
        assert await told(follow, 1) == {("root", "queued hello")}
        await db.broker.register("child", channel="test", peer="tester", parent="root")
        assert await told(follow, 1) == {("child", "idle")}


async def test_more_sessions_than_the_limit_are_refused(
    db: SessionsDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow_subtree, "MAX_SESSIONS", 1)
    async with following(db, "root", subtree=True) as follow:
        with pytest.raises(InvalidArgument, match="2 sessions"):
            await follow.next()


async def test_ended_sessions_make_room(
    db: SessionsDB, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(follow_subtree, "MAX_SESSIONS", 2)
    caplog.set_level(logging.WARNING)
    async with following(db, "root", subtree=True) as follow:
        await told(follow, 2)
        await db.broker.end("child")
        assert await told(follow, 1) == {("child", "ended")}
        await db.broker.register("new", channel="test", peer="tester", parent="root")
        assert await told(follow, 1) == {("new", "idle")}
        await db.broker.register("more", channel="test", peer="tester", parent="root")
        await db.broker.send("new", "still followed")
        assert await told(follow, 1) == {("new", "queued still followed")}
        await follow.stays_silent(1.2)
    assert "more is" not in caplog.text
    assert "session more and later ones are not followed" in caplog.text


async def test_a_session_that_was_reopened_makes_no_room(
    db: SessionsDB, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(follow_subtree, "MAX_SESSIONS", 2)
    caplog.set_level(logging.WARNING)
    async with following(db, "root", subtree=True) as follow:
        await told(follow, 2)
        await db.broker.end("child")
        assert await told(follow, 1) == {("child", "ended")}
        await db.broker.reopen("child")
        assert await told(follow, 1) == {("child", "idle")}
        await db.broker.register("new", channel="test", peer="tester", parent="root")
        await until(lambda: "session new and later ones are not followed" in caplog.text)
        await db.broker.send("child", "alive")
        assert await told(follow, 1) == {("child", "queued alive")}


async def test_a_session_may_make_room_while_its_end_waits_for_the_consumer(
    db: SessionsDB, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(follow_subtree, "MAX_SESSIONS", 2)
    caplog.set_level(logging.WARNING)
    followers = open_database_of(db).follow_hub.followers
    async with following(db, "root", subtree=True) as follow:
        await told(follow, 2)
        await db.broker.end("child")
        assert await told(follow, 1) == {("child", "ended")}
        await db.broker.reopen("child")
        assert await told(follow, 1) == {("child", "idle")}
        await db.broker.end("child")
        await db.broker.register("new", channel="test", peer="tester", parent="root")
        await until(lambda: ("default", "new") in followers)
        assert await told(follow, 2) == {("child", "ended"), ("new", "idle")}
        await db.broker.register("more", channel="test", peer="tester", parent="root")
        await until(lambda: "session more and later ones are not followed" in caplog.text)
        await db.broker.send("new", "still followed")
        assert await told(follow, 1) == {("new", "queued still followed")}


async def test_an_ended_session_that_was_left_out_is_followed_from_now(
    db: SessionsDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    await db.broker.register("old", channel="test", peer="tester", parent="root")
    await db.store.append("old", [{"role": "user", "content": "long ago"}])
    await db.broker.end("old")
    monkeypatch.setattr(follow_subtree, "MAX_SESSIONS", 2)
    async with following(db, "root", subtree=True) as follow:
        assert await told(follow, 2) == {("root", "idle"), ("child", "idle")}
        await db.store.delete("child")
        assert await told(follow, 3) == {("child", "deleted"), ("old", "idle"), ("old", "ended")}


@pytest.mark.parametrize(("look", "pause"), [(0.0, 0.1), (0.03, 0.6), (5.0, 2.0)])
def test_looks_for_children_of_a_large_tree_are_rare(look: float, pause: float) -> None:
    """One look reads the ids of the whole tree. It took 0.3 of a core for 20,000 sessions."""
    assert follow_subtree.growth_pause(look) == pytest.approx(pause)

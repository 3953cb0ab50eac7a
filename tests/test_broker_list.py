"""list: order, pages, filters and trees."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any

import pytest
from sqlalchemy import event

from devtools.databases import Database
from sessionsdb import InvalidArgument, SessionsDB, SessionSummary, UnknownSession


async def register(db: SessionsDB, *ids: str, parent: str | None = None, **given: str) -> None:
    for id in ids:
        await db.broker.register(
            id, parent=parent, channel=given.get("channel", "cli"), peer=given.get("peer", "ada")
        )


async def family(db: SessionsDB) -> None:
    """The tree top -> (left -> (leaf -> deep), right), and a session outside of it."""
    await register(db, "top", "stranger")
    await register(db, "left", "right", parent="top")
    await register(db, "leaf", parent="left")
    await register(db, "deep", parent="leaf")


def ids(page: list[SessionSummary]) -> list[str]:
    return [summary.id for summary in page]


async def test_the_last_active_session_is_last(db: SessionsDB) -> None:
    await register(db, "a", "b", "c")
    assert ids(await db.broker.list()) == ["a", "b", "c"]
    await db.broker.send("a", "hello")
    assert ids(await db.broker.list()) == ["b", "c", "a"]
    await db.store.append("b", [{"role": "user", "content": "hello"}])
    page = await db.broker.list()
    assert ids(page) == ["c", "a", "b"]
    assert [s.last_active for s in page] == sorted(s.last_active for s in page)


async def test_equal_times_are_ordered_by_id(database: Database, db: SessionsDB) -> None:
    await register(db, "b", "a", "B", "é", "z", "_")
    await database.query("UPDATE sessions SET last_active = '2026-01-01 00:00:00.000000+00'")
    if database.kind == "sqlite":
        await database.query("UPDATE sessions SET last_active = '2026-01-01 00:00:00.000000'")
    assert ids(await db.broker.list()) == sorted(["b", "a", "B", "é", "z", "_"])


@pytest.mark.parametrize("newest_first", [False, True], ids=["oldest first", "newest first"])
@pytest.mark.parametrize("by_id", [False, True], ids=["by summary", "by id"])
async def test_pages_show_every_session_once(
    database: Database, db: SessionsDB, by_id: bool, newest_first: bool
) -> None:
    order: dict[str, Any] = {"newest_first": newest_first}
    names = [f"s-{n}" for n in range(12)]
    await register(db, *names)
    same_time = "2026-01-01 00:00:00.000000" + ("+00" if database.kind == "postgresql" else "")
    await database.query(
        f"UPDATE sessions SET last_active = '{same_time}' WHERE id IN ('s-3', 's-4', 's-8')"
    )
    for ended in ("s-4", "s-9"):
        await db.broker.end(ended)
    for include_ended, size in product((True, False), (1, 2, 3, 7, 50)):
        order["include_ended"] = include_ended
        everything = ids(await db.broker.list(**order))
        seen: list[str] = []
        after: SessionSummary | str | None = None
        while page := await db.broker.list(limit=size, after=after, **order):
            assert len(page) <= size
            seen += ids(page)
            after = page[-1].id if by_id else page[-1]
        assert seen == everything
        assert sorted(seen) == sorted(
            set(names) - (set() if include_ended else {"s-4", "s-9"}),
        )


async def test_newest_first_is_the_opposite_order_and_its_limit_keeps_the_newest(
    database: Database, db: SessionsDB
) -> None:
    await family(db)
    await register(db, "elsewhere", parent="leaf", channel="web")
    await db.broker.end("right")
    await db.broker.send("top", "now the newest")
    same_time = "2026-01-01 00:00:00.000000" + ("+00" if database.kind == "postgresql" else "")
    await database.query(
        f"UPDATE sessions SET last_active = '{same_time}' WHERE id IN ('left', 'leaf')"
    )
    filters: list[dict[str, Any]] = [
        {},
        {"include_ended": True},
        {"root": "top", "include_ended": True},
        {"root": "left"},
        {"root": "deep"},
        {"parent": "top", "include_ended": True},
        {"channel": "cli", "peer": "ada"},
        {"active_since": (await db.broker.get("deep")).last_active},
    ]
    for given in filters:
        oldest_first = await db.broker.list(**given)
        newest_first = await db.broker.list(**given, newest_first=True)
        assert newest_first == oldest_first[::-1]
        for limit in (0, 1, 2, 5):
            page = await db.broker.list(**given, limit=limit, newest_first=True)
            assert page == newest_first[:limit]
    assert ids(await db.broker.list(limit=1, newest_first=True)) == ["top"]


async def test_newest_first_must_be_a_truth_value(db: SessionsDB) -> None:
    given: Any
    for given in ("yes", 1, None):
        with pytest.raises(InvalidArgument, match="newest_first"):
            await db.broker.list(newest_first=given)


async def test_a_summary_holds_its_place_when_its_session_moved_on(db: SessionsDB) -> None:
    await register(db, "a", "b", "c")
    [first] = await db.broker.list(limit=1)
    await db.broker.send("a", "moves it to the end")
    assert ids(await db.broker.list(after=first)) == ["b", "c", "a"]
    assert ids(await db.broker.list(after="a")) == []


async def test_ended_sessions_are_hidden_unless_asked_for(db: SessionsDB) -> None:
    await register(db, "a", "b", "c")
    await db.broker.end("b")
    assert ids(await db.broker.list()) == ["a", "c"]
    assert ids(await db.broker.list(include_ended=True)) == ["a", "b", "c"]


@pytest.mark.parametrize("kind", ["postgresql"])
@pytest.mark.parametrize("details", [False, True])
async def test_a_session_that_is_reopened_meanwhile_is_in_the_list(
    db: SessionsDB, database: Database, details: bool
) -> None:
    await register(db, "a", "b")
    await db.broker.end("a")
    reopened: list[str] = []

    async def reopen() -> None:
        async with SessionsDB(database.url) as other:
            await other.broker.reopen("a")

    def others_reopen(_c: Any, _k: Any, statement: str, *_: Any) -> None:
        if "FROM sessions" in statement and not reopened:
            reopened.append(statement)
            with ThreadPoolExecutor() as thread:
                thread.submit(asyncio.run, reopen()).result()

    engine = db.engine.sync_engine
    event.listen(engine, "after_cursor_execute", others_reopen)
    try:
        page = await db.broker.list(include_ended=True, details=details)
    finally:
        event.remove(engine, "after_cursor_execute", others_reopen)
    assert reopened
    assert ids(page) == ["a", "b"]


async def test_filters_come_before_the_limit(db: SessionsDB) -> None:
    for n in range(10):
        await register(db, f"s-{n}", channel="web" if n % 5 == 4 else "cli", peer=f"peer-{n % 2}")
    assert ids(await db.broker.list(channel="web", limit=2)) == ["s-4", "s-9"]
    assert ids(await db.broker.list(peer="peer-1", limit=2)) == ["s-1", "s-3"]
    assert ids(await db.broker.list(channel="web", peer="peer-1", limit=5)) == ["s-9"]
    assert ids(await db.broker.list(channel="nowhere")) == []


async def test_active_since_includes_that_very_moment(db: SessionsDB) -> None:
    await register(db, "a", "b", "c")
    middle = (await db.broker.list())[1].last_active
    assert ids(await db.broker.list(active_since=middle)) == ["b", "c"]
    assert ids(await db.broker.list(active_since=middle + timedelta(microseconds=1))) == ["c"]
    assert ids(await db.broker.list(active_since=datetime(1, 1, 1, tzinfo=UTC))) == ["a", "b", "c"]
    assert ids(await db.broker.list(active_since=datetime(9999, 1, 1, tzinfo=UTC))) == []


async def test_parent_gives_the_children_alone(db: SessionsDB) -> None:
    await family(db)
    assert ids(await db.broker.list(parent="top")) == ["left", "right"]
    assert ids(await db.broker.list(parent="left")) == ["leaf"]
    assert ids(await db.broker.list(parent="deep")) == []
    assert all(s.parent == "top" for s in await db.broker.list(parent="top"))


async def test_root_gives_a_whole_tree_with_its_root(db: SessionsDB) -> None:
    await family(db)
    assert ids(await db.broker.list(root="top")) == ["top", "left", "right", "leaf", "deep"]
    assert ids(await db.broker.list(root="stranger")) == ["stranger"]


async def test_root_may_be_in_the_middle_of_a_tree(db: SessionsDB) -> None:
    await family(db)
    assert ids(await db.broker.list(root="left")) == ["left", "leaf", "deep"]
    assert ids(await db.broker.list(root="deep")) == ["deep"]


async def test_a_tree_is_paged_and_filtered_as_everything_is(db: SessionsDB) -> None:
    await family(db)
    await db.broker.end("right")
    await register(db, "elsewhere", parent="leaf", channel="web")
    for root, members in {
        "top": ["top", "left", "leaf", "deep", "elsewhere"],
        "left": ["left", "leaf", "deep", "elsewhere"],
    }.items():
        seen: list[str] = []
        after = None
        while page := await db.broker.list(root=root, limit=2, after=after):
            seen, after = seen + ids(page), page[-1]
        assert seen == members
        assert ids(await db.broker.list(root=root, channel="web")) == ["elsewhere"]
    assert "right" in ids(await db.broker.list(root="top", include_ended=True))


async def test_a_detached_branch_is_a_tree_of_its_own(db: SessionsDB) -> None:
    await family(db)
    await db.store.delete("left")
    assert ids(await db.broker.list(root="top")) == ["top", "right"]
    assert ids(await db.broker.list(root="leaf")) == ["leaf", "deep"]
    assert (await db.broker.get("leaf")).parent is None


async def test_a_filter_by_an_unknown_session_matches_nothing(db: SessionsDB) -> None:
    await register(db, "a")
    assert await db.broker.list(root="nobody") == []
    assert await db.broker.list(parent="nobody") == []
    with pytest.raises(UnknownSession, match=r"^unknown session: nobody$"):
        await db.broker.list(after="nobody")


async def test_a_limit_that_is_no_count_is_refused(db: SessionsDB) -> None:
    limit: Any
    for limit in (-1, 1.5, True, "5", float("inf")):
        with pytest.raises(InvalidArgument, match="limit"):
            await db.broker.list(limit=limit)


async def test_limits_at_the_edges(db: SessionsDB) -> None:
    await register(db, "a", "b")
    assert await db.broker.list(limit=0) == []
    assert ids(await db.broker.list(limit=10**30)) == ["a", "b"]


async def test_a_time_without_a_zone_is_refused(db: SessionsDB) -> None:
    with pytest.raises(InvalidArgument, match="time zone"):
        await db.broker.list(active_since=datetime.fromisoformat("2026-01-01"))

"""spawn: the fields of a child, and the reasons of a denial."""

from __future__ import annotations

import asyncio
from uuid import UUID

import pytest

from devtools.databases import Database
from sessionsdb import (
    IdempotencyConflict,
    InvalidMessage,
    Limits,
    SessionEnded,
    SessionsDB,
    SpawnDenied,
    SpawnedSession,
    SpawnRequest,
    UnknownSession,
)
from tests.support.turns import claim


@pytest.fixture(autouse=True)
async def _parent(db: SessionsDB) -> None:
    await db.broker.register(
        "boss", channel="cli", peer="ada", model="m-1", system="Lead.", tools=["search", "shell"]
    )


async def counts(database: Database) -> tuple[int, ...]:
    [row] = await database.query(
        "SELECT (SELECT count(*) FROM sessions), (SELECT count(*) FROM mailboxes),"
        " (SELECT count(*) FROM inbox)"
    )
    return row


async def test_a_child_points_at_its_parent_and_has_its_prompt_queued(
    database: Database, db: SessionsDB
) -> None:
    spawned = await db.broker.spawn("boss", SpawnRequest(prompt="Count the words."))
    assert spawned.first_reply is None
    child = await db.broker.get(spawned.id)
    assert child.id.startswith("spawn-")
    UUID(child.id.removeprefix("spawn-"))
    assert (child.parent, child.channel, child.peer) == ("boss", "spawned", "spawned-by-boss")
    assert (child.pending, child.message_count) == (1, 0)
    rows = await database.query("SELECT session_id, position, content, status FROM inbox")
    assert rows == [(child.id, 1, "Count the words.", "pending")]
    assert [s.id for s in await db.broker.list(parent="boss")] == [child.id]


async def test_a_setting_not_given_is_the_parents_at_that_moment(db: SessionsDB) -> None:
    plain = (await db.broker.spawn("boss", SpawnRequest(prompt="go"))).id
    await db.broker.update("boss", model="m-2", system=None, tools=["search"])
    later = (await db.broker.spawn("boss", SpawnRequest(prompt="go"))).id
    own = SpawnRequest(prompt="go", model="m-3", system="Follow.", tools=[])
    special = (await db.broker.spawn("boss", own)).id
    settings = [(await db.broker.get(id)).settings.model_dump() for id in (plain, later, special)]
    assert settings == [
        {"model": "m-1", "system": "Lead.", "tools": ["search", "shell"]},
        {"model": "m-2", "tools": ["search"]},
        {"model": "m-3", "system": "Follow.", "tools": []},
    ]


async def test_a_childs_tools_must_lie_within_its_parents(
    database: Database, db: SessionsDB
) -> None:
    with pytest.raises(SpawnDenied, match=r"'browser'.*not among"):
        await db.broker.spawn("boss", SpawnRequest(prompt="go", tools=["search", "browser"]))
    assert await counts(database) == (1, 1, 0)
    child = await db.broker.spawn("boss", SpawnRequest(prompt="go", tools=["shell"]))
    with pytest.raises(SpawnDenied, match="'search'"):
        await db.broker.spawn(child.id, SpawnRequest(prompt="go", tools=["search"]))
    await db.broker.register("free", channel="cli", peer="ada")
    anything = await db.broker.spawn("free", SpawnRequest(prompt="go", tools=["rockets"]))
    assert (await db.broker.get(anything.id)).tools == ["rockets"]


async def test_depth_is_limited(database: Database) -> None:
    async with SessionsDB(database.url, limits=Limits(depth=2)) as db:
        child = await db.broker.spawn("boss", SpawnRequest(prompt="1"))
        grandchild = await db.broker.spawn(child.id, SpawnRequest(prompt="2"))
        before = await counts(database)
        with pytest.raises(SpawnDenied, match=r"depth 3, the limit is 2.*Limits\.depth"):
            await db.broker.spawn(grandchild.id, SpawnRequest(prompt="3"))
        assert await counts(database) == before
        # A branch that becomes a tree of its own counts from its new root.
        await db.store.delete(child.id)
        await db.broker.spawn(grandchild.id, SpawnRequest(prompt="3"))


async def test_living_children_are_limited_and_ended_ones_free_their_place(
    database: Database,
) -> None:
    async with SessionsDB(database.url, limits=Limits(children=2)) as db:
        first = await db.broker.spawn("boss", SpawnRequest(prompt="1"))
        await db.broker.spawn("boss", SpawnRequest(prompt="2"))
        before = await counts(database)
        with pytest.raises(SpawnDenied, match=r"2 living children.*Limits\.children"):
            await db.broker.spawn("boss", SpawnRequest(prompt="3"))
        assert await counts(database) == before
        # The limit of children counts for each session.
        await db.broker.spawn(first.id, SpawnRequest(prompt="below"))
        await db.broker.end(first.id)
        await db.broker.spawn("boss", SpawnRequest(prompt="3"))
    async with SessionsDB(database.url, limits=Limits(children=0)) as db:
        with pytest.raises(SpawnDenied):
            await db.broker.spawn("boss", SpawnRequest(prompt="4"))


async def test_of_spawns_from_two_handles_for_the_last_place_one_succeeds(
    database: Database,
) -> None:
    limits = Limits(children=3)
    async with (
        SessionsDB(database.url, limits=limits) as one,
        SessionsDB(database.url, limits=limits) as two,
    ):
        for round in range(5):
            parent = f"boss-{round}"
            await one.broker.register(parent, channel="cli", peer="ada")
            answers = await asyncio.gather(
                *(h.broker.spawn(parent, SpawnRequest(prompt="go")) for h in (one, two) * 4),
                return_exceptions=True,
            )
            assert sum(isinstance(a, SpawnedSession) for a in answers) == 3
            assert sum(isinstance(a, SpawnDenied) for a in answers) == 5
            assert len(await one.broker.list(parent=parent)) == 3


async def test_a_parent_must_exist_and_live(database: Database, db: SessionsDB) -> None:
    with pytest.raises(UnknownSession, match=r"^unknown session: nobody$"):
        await db.broker.spawn("nobody", SpawnRequest(prompt="go"))
    await db.broker.end("boss")
    with pytest.raises(SessionEnded, match="boss"):
        await db.broker.spawn("boss", SpawnRequest(prompt="go"))
    assert await counts(database) == (1, 1, 0)


async def test_a_prompt_is_checked_as_a_message_is(database: Database) -> None:
    async with SessionsDB(database.url, limits=Limits(message_bytes=100)) as db:
        for prompt in ("", "x" * 101):
            with pytest.raises(InvalidMessage, match=r"prompt|limit"):
                await db.broker.spawn("boss", SpawnRequest(prompt=prompt))
    assert await counts(database) == (1, 1, 0)


async def test_a_repeated_key_gives_the_same_child(database: Database, db: SessionsDB) -> None:
    request = SpawnRequest(prompt="go", tools=["shell"])
    first = await db.broker.spawn("boss", request, idempotency_key="k")
    again = await db.broker.spawn("boss", request, idempotency_key="k")
    assert again.id == first.id
    assert await counts(database) == (2, 2, 1)
    for other in (SpawnRequest(prompt="go"), SpawnRequest(prompt="stop", tools=["shell"])):
        with pytest.raises(IdempotencyConflict, match="'k'"):
            await db.broker.spawn("boss", other, idempotency_key="k")
    other_parent = await db.broker.spawn(first.id, request, idempotency_key="k")
    assert other_parent.id != first.id


async def test_a_repeated_key_is_answered_in_every_state_of_parent_and_child(
    database: Database,
) -> None:
    request = SpawnRequest(prompt="go")
    async with SessionsDB(database.url, limits=Limits(children=1)) as db:
        first = await db.broker.spawn("boss", request, idempotency_key="k")
        assert await db.broker.spawn("boss", request, idempotency_key="k") == first
        await db.broker.end("boss", subtree=True)
        assert await db.broker.spawn("boss", request, idempotency_key="k") == first


async def test_one_key_spawned_at_once_from_two_handles_makes_one_child(
    database: Database, db: SessionsDB
) -> None:
    async with SessionsDB(database.url) as second:
        spawned = await asyncio.gather(
            *(
                handle.broker.spawn("boss", SpawnRequest(prompt="go"), idempotency_key="k")
                for handle in (db, second) * 4
            )
        )
    assert len({s.id for s in spawned}) == 1
    assert await counts(database) == (2, 2, 1)


async def test_a_child_is_never_visible_without_its_prompt(
    database: Database, db: SessionsDB
) -> None:
    done = asyncio.Event()

    async def watch() -> int:
        looks = 0
        while not done.is_set():
            strays = await database.value(
                "SELECT count(*) FROM sessions s WHERE s.channel = 'spawned' AND NOT EXISTS"
                " (SELECT 1 FROM inbox i WHERE i.session_id = s.id AND i.position = 1)"
            )
            assert strays == 0
            looks += 1
        return looks

    watcher = asyncio.create_task(watch())
    for _ in range(20):
        await db.broker.spawn("boss", SpawnRequest(prompt="go"))
    done.set()
    assert await watcher > 0
    assert len(await claim(db, slots=100)) == 20


async def test_a_parent_whose_id_is_too_long_for_a_tree_is_denied(
    database: Database, db: SessionsDB
) -> None:
    await db.broker.register("🌳" * 300, channel="cli", peer="ada")
    with pytest.raises(SpawnDenied, match="1024 bytes"):
        await db.broker.spawn("🌳" * 300, SpawnRequest(prompt="go"))
    assert await counts(database) == (2, 2, 0)

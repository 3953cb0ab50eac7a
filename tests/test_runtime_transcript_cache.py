"""Saves of a transcript that was saved before: cheap if it is unchanged, correct in any case."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from devtools.databases import Database
from sessionsdb import InvalidMessage, SessionsDB, VersionConflict
from sessionsdb.database import open_database_of
from sessionsdb.runtime import transcript_cache
from tests.support.hops import ours, thread_hops
from tests.support.proxy import When, proxy_to

HELLO = {"role": "user", "content": "hello"}
HI = {"role": "assistant", "content": "hi"}
CALL = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}


def numbered(count: int) -> list[dict[str, Any]]:
    return [{"role": "user", "content": f"message {number}"} for number in range(count)]


@pytest.fixture
async def other(database: Database) -> AsyncIterator[SessionsDB]:
    """A handle like that of another process."""
    async with SessionsDB(database.url) as other:
        yield other


def exactly(messages: list[dict[str, Any]]) -> list[str]:
    """To the last character: ``True`` is not ``1``, and the order of names counts."""
    return [repr(message) for message in messages]


async def test_a_longer_transcript_is_one_statement_however_long_it_is(
    database: Database,
) -> None:
    transcript = numbered(300)
    if database.kind == "sqlite":
        async with SessionsDB(database.url) as db:
            await db.store.save("s", transcript)
            with thread_hops() as hops:
                assert await db.store.save("s", [*transcript, HELLO, HI]) == 2
            assert len(hops) == 1
            assert await db.store.load("s") == [*transcript, HELLO, HI]
        return
    async with proxy_to(database) as proxy, SessionsDB(proxy.url) as db:
        await db.store.save("s", transcript)
        for number in (1, 2):  # at first the driver looks types up
            proxy.executed.clear()
            assert await db.store.save("s", [*transcript, *[HELLO] * number]) == 1 + number
        assert len(ours(proxy.executed)) == 1, proxy.executed
        assert await db.store.load("s") == [*transcript, HELLO, HELLO]


@pytest.mark.parametrize("kept", [300, 200])
@pytest.mark.parametrize("kind", ["postgresql"])
async def test_what_was_only_compared_or_cut_is_known_as_well(
    database: Database, other: SessionsDB, kept: int
) -> None:
    transcript = numbered(300)
    await other.store.save("s", transcript)
    transcript = transcript[:kept]
    async with proxy_to(database) as proxy, SessionsDB(proxy.url) as db:
        for number in (1, 2):  # at first the driver looks types up
            await db.store.save("warm", [HELLO] * number)
        version = await db.store.save("s", transcript)
        proxy.executed.clear()
        assert await db.store.save("s", [*transcript, HELLO]) == version + 1
        assert len(ours(proxy.executed)) == 1, proxy.executed


@pytest.mark.parametrize("kept", [2, 1])
async def test_what_was_only_compared_or_cut_is_seen_to_change(
    db: SessionsDB, other: SessionsDB, kept: int
) -> None:
    await other.store.save("s", [HELLO, CALL])
    await db.store.save("s", [HELLO, CALL][:kept])
    await other.store.append("s", [HI])
    await db.store.save("s", [*[HELLO, CALL][:kept], HELLO])
    assert await other.store.load("s") == [*[HELLO, CALL][:kept], HELLO]


async def test_what_another_process_appended_is_taken_away(
    db: SessionsDB, other: SessionsDB
) -> None:
    await db.store.save("s", [HELLO, CALL])
    await other.store.append("s", [HI])
    assert await db.store.save("s", [HELLO, CALL, HELLO]) == 3
    assert await other.store.load("s") == [HELLO, CALL, HELLO]


async def test_an_equal_save_puts_back_what_another_process_changed(
    db: SessionsDB, other: SessionsDB
) -> None:
    assert await db.store.save("s", [HELLO, HI]) == 1
    assert await db.store.save("s", [HELLO, HI]) == 1
    await other.store.save("s", [HELLO])
    assert await db.store.save("s", [HELLO, HI]) == 3
    assert await other.store.load("s") == [HELLO, HI]


async def test_a_session_made_again_under_its_id_is_another_one(
    db: SessionsDB, other: SessionsDB
) -> None:
    """The versions of the new session start at 1, and reach the cached one again."""
    await db.store.save("s", [HELLO])
    await other.store.delete("s")
    assert await other.store.save("s", [HI]) == 1
    await db.store.save("s", [HELLO, CALL])
    assert await other.store.load("s") == [HELLO, CALL]


async def test_a_session_that_is_gone_is_made_again(db: SessionsDB, other: SessionsDB) -> None:
    await db.store.save("s", [HELLO])
    await other.store.delete("s")
    assert await db.store.save("s", [HELLO, HI]) == 1
    assert await other.store.load("s") == [HELLO, HI]


async def test_what_is_known_follows_every_save(db: SessionsDB) -> None:
    transcript: list[dict[str, Any]] = []
    for number in range(12):
        transcript += [HELLO, CALL] if number % 3 else [HI]
        if number % 5 == 4:
            transcript = transcript[:-2]
        await db.store.save("s", transcript)
        assert await db.store.load("s") == transcript


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (HELLO, {"content": "hello", "role": "user"}),
        ({"role": "user", "n": 1}, {"role": "user", "n": True}),
        ({"role": "user", "n": 1}, {"role": "user", "n": 1.0}),
        (HELLO, {"role": "assistant", "content": "hello"}),
        (HELLO, {**HELLO, "name": "ada"}),
        ({**HELLO, "name": "ada"}, HELLO),
        ({"role": "user", "a": 1, "b": 2}, {"role": "user", "b": 2, "a": 1}),
    ],
)
async def test_what_differs_by_a_character_is_written(
    db: SessionsDB, before: dict[str, Any], after: dict[str, Any]
) -> None:
    await db.store.save("s", [before, HI])
    assert await db.store.save("s", [after, HI, HELLO]) == 2
    assert exactly(await db.store.load("s") or []) == exactly([after, HI, HELLO])


async def test_a_message_that_its_owner_changed_in_place_is_written(db: SessionsDB) -> None:
    transcript = [dict(HELLO), {"role": "assistant", "tool_calls": [{"id": "1"}]}, dict(HI)]
    await db.store.save("s", transcript)
    transcript[0]["content"] = "bye"
    await db.store.save("s", transcript)
    assert await db.store.load("s") == transcript
    transcript[1]["tool_calls"][0]["id"] = "2"
    await db.store.save("s", [*transcript, HELLO])
    assert await db.store.load("s") == [*transcript, HELLO]


@pytest.mark.parametrize("place", [0, 1, 2])
async def test_a_message_that_is_refused_is_named_by_its_place(db: SessionsDB, place: int) -> None:
    await db.store.save("s", [HELLO, HI])
    bad: list[Any] = [HELLO, HI, HELLO]
    bad[place] = {"role": "user", "content": b""}
    with pytest.raises(InvalidMessage, match=f"^message {place}: "):
        await db.store.save("s", bad)
    assert await db.store.load("s") == [HELLO, HI]
    for not_messages in ("ab", None, {"role": "user"}):
        with pytest.raises(InvalidMessage):
            await db.store.save("s", not_messages)


async def test_the_expected_version_is_checked_as_ever(db: SessionsDB, other: SessionsDB) -> None:
    assert await db.store.save("s", [HELLO], expected_version=0) == 1
    with pytest.raises(VersionConflict) as conflict:
        await db.store.save("s", [HELLO, HI], expected_version=0)
    assert (conflict.value.expected, conflict.value.actual) == (0, 1)
    assert await db.store.save("s", [HELLO, HI], expected_version=1) == 2
    await other.store.append("s", [CALL])
    with pytest.raises(VersionConflict) as conflict:
        await db.store.save("s", [HELLO, HI, HI], expected_version=2)
    assert (conflict.value.expected, conflict.value.actual) == (2, 3)
    assert await db.store.load("s") == [HELLO, HI, CALL]


async def test_of_saves_at_the_same_time_each_is_whole(db: SessionsDB) -> None:
    for round in range(5):
        base = numbered(20 + round)
        await db.store.save("s", base)
        ways = [[*base, {"role": "user", "content": f"way {way}"}] for way in range(6)]
        await asyncio.gather(*(db.store.save("s", way) for way in ways))
        assert await db.store.load("s") in ways
        await db.store.save("s", [*ways[3], HI])
        assert await db.store.load("s") == [*ways[3], HI]


async def test_what_is_added_to_the_list_while_it_is_saved_is_not_saved(
    db: SessionsDB, other: SessionsDB
) -> None:
    transcript = [HELLO]
    await db.store.save("s", transcript)
    await other.store.append("s", [CALL])  # so that the stored messages are compared
    transcript.append(HI)
    saving = asyncio.create_task(db.store.save("s", transcript))
    await asyncio.sleep(0)
    transcript.append(CALL)
    await saving
    assert await db.store.load("s") == [HELLO, HI]


async def test_a_cancelled_save_leaves_nothing_wrong_behind(db: SessionsDB) -> None:
    await db.store.save("s", [HELLO])
    for turns in range(6):
        task = asyncio.create_task(db.store.save("s", [HELLO, HI, CALL]))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait((task,))
        await db.store.save("s", [HELLO, HI])
        assert await db.store.load("s") == [HELLO, HI]


async def test_transcripts_saved_long_ago_are_forgotten(
    db: SessionsDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transcript_cache, "CACHE_BYTES", 2_000)
    for number in range(30):
        await db.store.save(f"s{number}", [{"role": "user", "content": "x" * 100}, CALL])
    await db.store.save("huge", [{"role": "user", "content": "x" * 3_000}])
    known = open_database_of(db).transcript_cache._cached
    assert 0 < len(known) < 12
    assert "huge" not in [id for _, id in known]
    assert (
        open_database_of(db).transcript_cache._size
        == sum(one.snapshot.size for one in known.values())
        <= 2_000
    )
    for number in (0, 29):
        await db.store.save(f"s{number}", [HELLO])
        assert await db.store.load(f"s{number}") == [HELLO]


@pytest.mark.parametrize("kind", ["postgresql"])
@pytest.mark.parametrize("when", ["before", "while", "after"])
@pytest.mark.parametrize("expected", [None, 1])
async def test_an_extension_whose_answer_is_lost_is_made_once(
    database: Database, when: When, expected: int | None
) -> None:
    async with proxy_to(database) as proxy, SessionsDB(proxy.url) as db:
        await db.store.save("s", [HELLO])
        proxy.cut("INSERT INTO messages", when)
        assert await db.store.save("s", [HELLO, HI, CALL], expected_version=expected) == 2
        assert proxy.cuts == 1
        assert await db.store.save("s", [HELLO, HI, CALL, HI]) == 3
        assert await db.store.load("s") == [HELLO, HI, CALL, HI]

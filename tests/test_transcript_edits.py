"""Entries, keys and edits of transcripts."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from devtools.databases import Database
from sessionsdb import (
    Edit,
    InvalidArgument,
    InvalidMessage,
    SessionsDB,
    Turn,
    UnknownSession,
    VersionConflict,
)

Message = dict[str, Any]


def say(text: str) -> Message:
    return {"role": "user", "content": text}


A, B, C, D = map(say, "abcd")
BLOCKS: Message = {"role": "assistant", "content": [{"type": "text", "text": "\x00\ud800"}]}


@pytest.fixture
async def chat(db: SessionsDB) -> SessionsDB:
    await db.store.append("s", [A, B, C])
    return db


async def seqs(db: SessionsDB, id: str = "s") -> list[int]:
    return [entry.seq for entry in await db.store.entries(id)]


async def rewrites(database: Database) -> Any:
    return await database.value("SELECT rewrites FROM sessions WHERE id = 's'")


# ---- entries -------------------------------------------------------------------------------------


async def test_entries_are_whole_and_newest_last(chat: SessionsDB) -> None:
    await chat.store.append("s", [BLOCKS], keys=["k"])
    entries = await chat.store.entries("s")
    assert [entry.message for entry in entries] == [A, B, C, BLOCKS]
    assert [entry.key for entry in entries] == [None, None, None, "k"]
    last = entries[-1]
    assert (last.session_id, last.seq, last.sent_at, last.sender) == ("s", 4, None, None)
    assert await chat.store.entries("s", 2) == entries[2:]
    assert await chat.store.entries("s", 2, before=3) == entries[:2]
    assert await chat.store.entries("s", 2, after=1) == entries[1:3]
    assert await chat.store.entries("s", 0) == []
    with pytest.raises(UnknownSession):
        await chat.store.entries("t")


async def test_an_entry_of_a_turn_has_its_times_and_its_sender(db: SessionsDB) -> None:
    async def answer(turn: Turn) -> str:
        return "ok"

    for id in ("s", "spy"):
        await db.broker.register(id, channel="c", peer="p")
    receipt = await db.broker.send("s", "hi", sender="spy", author="ann", metadata={"n": 1})
    await db.worker(answer).run_until_idle()
    outcome = await db.broker.outcome(receipt)
    asked, answered = await db.store.entries("s")
    assert (asked.sender, asked.author, asked.metadata) == ("spy", "ann", {"n": 1})
    assert (asked.sent_at, asked.created_at) == (outcome.enqueued_at, outcome.finished_at)
    assert (answered.sent_at, answered.sender, answered.interrupted) == (None, None, False)


# ---- keys ----------------------------------------------------------------------------------------


async def test_a_repeated_append_with_keys_appends_nothing_twice(db: SessionsDB) -> None:
    for _ in range(3):
        assert await db.store.append("s", [A, B], keys=["a", "b"], expected_version=0) == 1
    assert await db.store.append("s", [B, C, D], keys=["b", None, "d"]) == 2
    assert await db.store.load("s") == [A, B, C, D]
    # A message without a key is new each time.
    assert await db.store.append("s", [C, D], keys=[None, "d"]) == 3
    assert await db.store.load("s") == [A, B, C, D, C]


async def test_many_repetitions_at_once_append_once(db: SessionsDB) -> None:
    versions = await asyncio.gather(
        *(db.store.append("s", [A, B], keys=["a", "b"], expected_version=0) for _ in range(8))
    )
    assert versions == [1] * 8
    assert await db.store.load("s") == [A, B]


async def test_the_key_of_a_removed_message_is_free(chat: SessionsDB) -> None:
    await chat.store.append("s", [D], keys=["d"])
    assert await chat.store.pop("s") == [D]
    assert await chat.store.find("d") is None
    edited = await chat.store.edit("s", Edit(append=[D], keys=["d"]))
    assert edited.appended == [5]


async def test_a_message_is_found_by_its_key(db: SessionsDB) -> None:
    for id in ("z", "b"):
        await db.store.append(id, [say(id)], keys=["k"])
    first = await db.store.find("k")
    assert first is not None
    assert (first.session_id, first.message) == ("z", say("z"))
    second = await db.store.find("k", id="b")
    assert second is not None
    assert second.message == say("b")
    assert await db.store.find("k", id="other") is None
    assert await db.store.find("other") is None
    assert await db.in_namespace("acme").store.find("k") is None


async def test_the_largest_key_fits_into_the_index(db: SessionsDB) -> None:
    there = db.in_namespace("\U0001f600" * 64).store
    id, key = "\U0001f601" * 512, "\U0001f602" * 64
    await there.append(id, [A], keys=[key])
    found = await there.find(key)
    assert found is not None
    assert (found.session_id, found.key) == (id, key)


@pytest.mark.parametrize("keys", [["a"], ["a", "a"], ["a", ""], ["a", 5], "ab", ["a", "x" * 257]])
async def test_wrong_keys_are_refused(chat: SessionsDB, keys: Any) -> None:
    with pytest.raises(InvalidArgument):
        await chat.store.append("s", [A, B], keys=keys)
    assert await seqs(chat) == [1, 2, 3]


async def test_save_keeps_the_keys_of_the_messages_that_it_keeps(chat: SessionsDB) -> None:
    await chat.store.append("s", [D], keys=["d"])
    await chat.store.save("s", [say("summary"), C, D])
    found = await chat.store.find("d")
    assert found is not None
    assert found.seq == 7
    assert await chat.store.append("s", [D], keys=["d"]) == 3


# ---- pop, truncate, replace ----------------------------------------------------------------------


async def test_pop_removes_from_the_end(chat: SessionsDB, database: Database) -> None:
    assert await chat.store.pop("s") == [C]
    assert await chat.store.pop("s", 5) == [A, B]
    assert (await chat.store.version("s"), await rewrites(database)) == (3, 2)
    assert await chat.store.pop("s") == []
    assert await chat.store.pop("s", 0) == []
    assert (await chat.store.version("s"), await rewrites(database)) == (3, 2)
    assert (await chat.broker.get("s")).message_count == 0
    await chat.store.append("s", [D])
    assert await seqs(chat) == [4]


async def test_truncate_keeps_the_beginning(chat: SessionsDB) -> None:
    assert await chat.store.truncate("s", keep_through=5) == 1
    assert await chat.store.truncate("s", keep_through=2) == 2
    assert await chat.store.load("s") == [A, B]
    assert await chat.store.truncate("s", keep_through=0) == 3
    assert await chat.store.load("s") == []


async def test_replace_changes_one_message_in_its_place(
    chat: SessionsDB, database: Database
) -> None:
    await chat.store.append("s", [D], keys=["d"])
    before = await chat.store.entries("s")
    assert await chat.store.replace("s", 4, BLOCKS) == 3
    after = await chat.store.entries("s")
    assert after[3] == before[3].model_copy(update={"message": BLOCKS})
    assert after[:3] == before[:3]
    assert (await chat.broker.get("s")).message_count == 4
    assert (await chat.broker.history("s"))[-1].role == "assistant"
    # An equal message changes nothing.
    assert await chat.store.replace("s", 4, BLOCKS) == 3
    assert await rewrites(database) == 1
    with pytest.raises(InvalidArgument, match="no message with seq 9"):
        await chat.store.replace("s", 9, A)
    with pytest.raises(InvalidMessage):
        await chat.store.replace("s", 1, {"x": float("nan")})


@pytest.mark.parametrize("verb", ["pop", "truncate", "replace", "append", "edit"])
async def test_an_expected_version_and_a_known_session_are_required(
    chat: SessionsDB, verb: str
) -> None:
    async def call(id: str, expected: int | None) -> Any:
        store = chat.store
        if verb == "pop":
            return await store.pop(id, expected_version=expected)
        if verb == "truncate":
            return await store.truncate(id, keep_through=1, expected_version=expected)
        if verb == "replace":
            return await store.replace(id, 1, D, expected_version=expected)
        if verb == "append":
            return await store.append(id, [D], create=False, expected_version=expected)
        return await store.edit(id, Edit(append=[D], create=False, expected_version=expected))

    for expected in (0, 2):
        with pytest.raises(VersionConflict):
            await call("s", expected)
    with pytest.raises(UnknownSession):
        await call("t", None)
    assert await chat.store.load("s") == [A, B, C]
    assert await chat.store.load("t") is None
    await call("s", 1)
    assert await chat.store.version("s") == 2


# ---- edit ----------------------------------------------------------------------------------------


async def test_an_edit_removes_and_appends_in_one_step(
    chat: SessionsDB, database: Database
) -> None:
    edit = Edit(
        append=[D, BLOCKS],
        keys=["d", None],
        keep_through=1,
        expected_version=1,
        expected_tail=[2, 3],
        metadata={"edited": True},
        state={"session": {"n": 1}},
    )
    edited = await chat.store.edit("s", edit)
    assert (edited.version, edited.appended, edited.removed) == (2, [4, 5], [B, C])
    assert await chat.store.load("s") == [A, D, BLOCKS]
    details = await chat.broker.get("s")
    assert (details.message_count, details.metadata) == (3, {"edited": True})
    assert (await chat.store.state("s")).values == {"n": 1}
    assert await rewrites(database) == 1


async def test_an_edit_that_only_appends_is_no_rewrite(
    chat: SessionsDB, database: Database
) -> None:
    edited = await chat.store.edit("s", Edit(append=[D], keep_through=3))
    assert (edited.version, edited.appended, edited.removed) == (2, [4], [])
    assert await rewrites(database) == 0


async def test_an_edit_without_a_change_makes_no_version(chat: SessionsDB) -> None:
    assert (await chat.store.edit("s", Edit())).version == 1
    assert (await chat.store.edit("s", Edit(keep_through=3, metadata={"n": 1}))).version == 1
    assert (await chat.broker.get("s")).metadata == {"n": 1}


@pytest.mark.parametrize("edit", [Edit(), Edit(append=[A]), Edit(keep_through=0, append=[A])])
async def test_an_edit_makes_a_session_of_version_1(db: SessionsDB, edit: Edit) -> None:
    edit = edit.model_copy(update={"expected_version": 0, "expected_tail": []})
    assert (await db.store.edit("new", edit)).version == 1
    assert (await db.broker.get("new")).channel == "store"
    with pytest.raises(VersionConflict):
        await db.store.edit("new", edit)


@pytest.mark.parametrize("tail", [[], [2], [1, 2, 3, 4], [3, 2], [1, 3]])
async def test_another_tail_is_a_conflict(chat: SessionsDB, tail: list[int]) -> None:
    with pytest.raises(VersionConflict, match="end with"):
        await chat.store.edit("s", Edit(append=[D], expected_tail=tail))
    assert await chat.store.load("s") == [A, B, C]
    for expected in ([3], [1, 2, 3]):
        await chat.store.edit("s", Edit(expected_tail=expected))


async def test_a_failed_edit_changes_nothing(chat: SessionsDB, database: Database) -> None:
    edit = Edit(
        append=[D], keep_through=0, metadata={"n": 1}, state={"session": {"n": "x" * 10**6}}
    )
    with pytest.raises(InvalidArgument):
        await chat.store.edit("s", edit)
    with pytest.raises(InvalidArgument):
        await chat.store.edit("s", Edit(state={"other": {}}))
    assert await chat.store.load("s") == [A, B, C]
    assert (await chat.broker.get("s")).metadata == {}


async def test_a_repeated_edit_with_keys_is_done_once(chat: SessionsDB) -> None:
    edit = Edit(append=[D], keys=["d"], keep_through=1, expected_version=1, expected_tail=[3])
    edited = await chat.store.edit("s", edit)
    assert (edited.appended, edited.removed) == ([4], [B, C])
    await chat.store.append("s", [B])
    again = await chat.store.edit("s", edit)
    assert (again.version, again.appended, again.removed) == (3, [4], [])
    assert await chat.store.load("s") == [A, D, B]


async def test_a_key_that_the_edit_removes_is_appended_again(chat: SessionsDB) -> None:
    await chat.store.append("s", [D, A], keys=["d", "a"])
    edited = await chat.store.edit("s", Edit(append=[say("D")], keys=["d"], keep_through=3))
    # It stands directly behind: that is the answer to a repetition, whatever comes behind it.
    assert (edited.appended, edited.removed) == ([4], [])
    edited = await chat.store.edit("s", Edit(append=[say("D")], keys=["d"], keep_through=2))
    assert (edited.appended, edited.removed) == ([6], [C, D, A])
    # A key before that place is kept, and left out.
    edited = await chat.store.edit("s", Edit(append=[B, C], keys=["d", None], keep_through=6))
    assert (edited.appended, edited.removed) == ([6, 7], [])
    assert await chat.store.load("s") == [A, B, say("D"), C]


async def test_a_save_after_an_edit_finds_the_edited_transcript(chat: SessionsDB) -> None:
    await chat.store.save("s", [A, B, C])  # this process remembers it now
    await chat.store.replace("s", 2, D)
    assert await chat.store.save("s", [A, B, C]) == 3
    assert await chat.store.load("s") == [A, B, C]
    await chat.store.pop("s")
    assert await chat.store.save("s", [A, B, C, D]) == 5
    assert await chat.store.load("s") == [A, B, C, D]


async def test_appends_and_edits_at_once_lose_nothing(chat: SessionsDB) -> None:
    async def add(number: int) -> None:
        await chat.store.append("s", [say(str(number))], keys=[f"k{number}"])

    await asyncio.gather(
        *map(add, range(20)),
        *(chat.store.append("s", [say(f"plain {number}")]) for number in range(20)),
        *(chat.store.replace("s", 1, say(f"first {number}")) for number in range(5)),
    )
    loaded = [message["content"] for message in await chat.store.load("s") or []]
    assert sorted(loaded[3:]) == sorted(
        [str(number) for number in range(20)] + [f"plain {number}" for number in range(20)]
    )
    assert (await chat.broker.get("s")).message_count == 43
    assert await chat.store.version("s") == 46


async def test_other_values_are_refused(chat: SessionsDB) -> None:
    for edit in (
        Edit(keep_through=-1),
        Edit(keep_through="1"),
        Edit(expected_tail=["1"]),
        Edit(expected_tail=list(range(1_001))),
        Edit(create=1),
        Edit(append="abc"),
        Edit(append=[5]),
        {"append": []},
    ):
        with pytest.raises(InvalidArgument):
            await chat.store.edit("s", edit)
    assert await chat.store.load("s") == [A, B, C]

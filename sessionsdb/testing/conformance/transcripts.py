"""Rules of transcripts: load, save, append, version, list, delete."""

from __future__ import annotations

import asyncio
from typing import Any

from sessionsdb.errors import (
    InvalidMessage,
    InvalidSessionId,
    SessionHasChildren,
    UnknownSession,
    VersionConflict,
)
from sessionsdb.testing.conformance.checks import Part, Subject, equal, refused, true, user
from sessionsdb.types import ListOptions

PART = Part("transcripts")

HARD_MESSAGES: list[dict[str, Any]] = [
    user("zero \x00, tab \t, lone \ud800, astral \U0001f600"),
    {"role": "user", "content": ""},
    {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "x": [[], {}, ""]}]},
    {"kind": "foreign", "big": 10**40, "float": 1e-300, "yes": True, "one": 1, "nested": {"a": {}}},
    {},
]


@PART.rule("An unknown id has no transcript and no version: load and version return None.")
async def an_unknown_id_has_nothing(subject: Subject) -> None:
    equal(await subject.store.load("s"), None, "load of an unknown id")
    equal(await subject.store.version("s"), None, "version of an unknown id")


@PART.rule("load returns the messages of save, equal to the last character.")
async def a_transcript_is_loaded_as_it_was_saved(subject: Subject) -> None:
    await subject.store.save("s", HARD_MESSAGES)
    loaded = await subject.store.load("s")
    equal(loaded, HARD_MESSAGES, "the loaded transcript")
    # Python takes 1 and True, and 1 and 1.0, for equal.
    equal(repr(loaded), repr(HARD_MESSAGES), "the loaded transcript")


@PART.rule("An empty transcript is an empty list, and no unknown session.")
async def an_empty_transcript_is_a_list(subject: Subject) -> None:
    await subject.store.save("s", [])
    equal(await subject.store.load("s"), [], "the transcript")


@PART.rule("save replaces the whole transcript.")
async def save_replaces_everything(subject: Subject) -> None:
    await subject.store.save("s", [user("a"), user("b"), user("c")])
    await subject.store.save("s", [user("a"), user("x")])
    equal(await subject.store.load("s"), [user("a"), user("x")], "the transcript")


@PART.rule("Messages are copied: a caller that changes its objects changes no transcript.")
async def messages_are_copied(subject: Subject) -> None:
    message: dict[str, Any] = {"role": "user", "content": [{"text": "a"}]}
    await subject.store.save("s", [message])
    message["content"][0]["text"] = "changed after save"
    loaded = await subject.store.load("s") or [{}]
    equal(loaded[0].get("content"), [{"text": "a"}], "the content after a change of the argument")
    loaded[0]["content"][0]["text"] = "changed after load"
    again = await subject.store.load("s") or [{}]
    equal(again[0].get("content"), [{"text": "a"}], "the content after a change of the answer")


@PART.rule("The version is 1 or more, and grows with every change of the transcript.")
async def the_version_grows(subject: Subject) -> None:
    store = subject.store
    first = await store.save("s", [user("a")])
    second = await store.append("s", [user("b")])
    third = await store.save("s", [user("c")])
    true(1 <= first < second < third, f"the versions are {first}, {second}, {third}")
    equal(await store.version("s"), third, "the answer of version")


@PART.rule("A save of an equal transcript changes nothing, and the version stays.")
async def an_equal_save_keeps_the_version(subject: Subject) -> None:
    first = await subject.store.save("s", [user("a"), user("b")])
    equal(await subject.store.save("s", [user("a"), user("b")]), first, "the second version")


@PART.rule("With another expected_version save raises VersionConflict, and writes nothing.")
async def save_expects_a_version(subject: Subject) -> None:
    store = subject.store
    version = await store.save("s", [user("a")])
    late = store.save("s", [user("late")], expected_version=version + 1)
    await refused(VersionConflict, late, "save with another expected_version")
    equal(await store.load("s"), [user("a")], "the transcript after the refusal")
    await store.save("s", [user("b")], expected_version=version)
    equal(await store.load("s"), [user("b")], "the transcript after the right version")


@PART.rule("expected_version=0 means that there is no such session.")
async def version_0_means_no_session(subject: Subject) -> None:
    store = subject.store
    await store.save("s", [], expected_version=0)
    again = store.save("s", [user("a")], expected_version=0)
    await refused(VersionConflict, again, "save with expected_version=0 of a session")
    await refused(
        VersionConflict,
        store.append("s", [user("a")], expected_version=0),
        "append with expected_version=0 of a session",
    )


@PART.rule("Of several writers that expect the same version exactly one is served.")
async def one_of_several_writers_wins(subject: Subject) -> None:
    version = await subject.store.save("s", [user("a")])
    answers = await asyncio.gather(
        *(
            subject.store.save("s", [user(f"writer {n}")], expected_version=version)
            for n in range(5)
        ),
        return_exceptions=True,
    )
    served = [answer for answer in answers if not isinstance(answer, BaseException)]
    equal(len(served), 1, "the number of writers that were served")
    others = [answer for answer in answers if isinstance(answer, BaseException)]
    true(all(isinstance(one, VersionConflict) for one in others), f"the others got {others}")


@PART.rule("append adds messages at the end, and creates the session.")
async def append_adds_at_the_end(subject: Subject) -> None:
    await subject.store.append("s", [user("a"), user("b")])
    await subject.store.append("s", [user("c")])
    equal(await subject.store.load("s"), [user("a"), user("b"), user("c")], "the transcript")


@PART.rule("append with create=False raises UnknownSession for an unknown id.")
async def append_need_not_create(subject: Subject) -> None:
    call = subject.store.append("s", [user("a")], create=False)
    await refused(UnknownSession, call, "append with create=False")
    equal(await subject.store.load("s"), None, "load after the refusal")


@PART.rule("Appends at the same time lose no message.")
async def appends_at_once_lose_nothing(subject: Subject) -> None:
    await asyncio.gather(*(subject.store.append("s", [user(str(n))]) for n in range(20)))
    texts = [one["content"] for one in await subject.store.load("s") or []]
    equal(sorted(texts, key=int), [str(n) for n in range(20)], "the texts")


@PART.rule("append with another expected_version raises VersionConflict, and writes nothing.")
async def append_expects_a_version(subject: Subject) -> None:
    version = await subject.store.append("s", [user("a")])
    late = subject.store.append("s", [user("late")], expected_version=version + 1)
    await refused(VersionConflict, late, "append with another expected_version")
    equal(await subject.store.load("s"), [user("a")], "the transcript")


@PART.rule("A message whose key the session has already is left out.")
async def a_key_is_appended_once(subject: Subject) -> None:
    store = subject.store
    await store.append("s", [user("a")], keys=["k1"])
    await store.append("s", [user("a"), user("b"), user("c")], keys=["k1", "k2", None])
    equal(await store.load("s"), [user("a"), user("b"), user("c")], "the transcript")


@PART.rule("A message that is no JSON object raises InvalidMessage, and nothing is written.")
async def only_json_objects_are_stored(subject: Subject) -> None:
    bad: Any
    for bad in ("text", ["list"], {"role": "user", "content": object()}, {"n": float("nan")}):
        call = subject.store.save("s", [user("good"), bad])
        await refused(InvalidMessage, call, f"save of {bad!r}")
    equal(await subject.store.load("s"), None, "load after the refusals")


@PART.rule("An id that is empty, too long or not storable raises InvalidSessionId.")
async def bad_ids_are_refused(subject: Subject) -> None:
    for id in ("", "x" * 513, "nul \x00", "lone \ud800"):
        await refused(InvalidSessionId, subject.store.load(id), f"load of the id {id[:20]!r}")
        call = subject.store.append(id, [user("a")])
        await refused(InvalidSessionId, call, f"append to the id {id[:20]!r}")


@PART.rule("list returns every session by updated_at, newest last, with its count of messages.")
async def list_has_the_newest_last(subject: Subject) -> None:
    store = subject.store
    for id in ("a", "b", "c"):
        await store.append(id, [user("1")])
    await store.append("a", [user("2")])
    records = await store.list()
    places = [(one.updated_at, one.id) for one in records]
    equal(places, sorted(places), "the order by updated_at and id")
    counts = {str(one.id): one.message_count for one in records}
    equal(counts, {"a": 2, "b": 1, "c": 1}, "the counts")
    [a] = [one for one in records if one.id == "a"]
    true(a.created_at <= a.updated_at, "updated_at is before created_at")
    others = [one.updated_at for one in records if one.id != "a"]
    true(a.updated_at >= max(others), "the session that changed last is not the newest")


@PART.rule("list_paginated returns offset and limit of list, and nothing past the end.")
async def a_page_is_a_part_of_the_list(subject: Subject) -> None:
    for id in "abcd":
        await subject.store.append(id, [user("1")])
    ids = [one.id for one in await subject.store.list()]

    async def page(offset: int, limit: int | None) -> list[Any]:
        options = ListOptions(offset=offset, limit=limit)
        return [one.id for one in await subject.store.list_paginated(options)]

    equal(await page(1, 2), ids[1:3], "the page of 2 behind 1")
    equal(await page(2, None), ids[2:], "the page behind 2")
    equal(await page(0, 0), [], "the page of 0")
    equal(await page(9, 2), [], "the page past the end")


@PART.rule("delete removes a session. An unknown id is no error, and the id can be used again.")
async def delete_removes(subject: Subject) -> None:
    store = subject.store
    await store.append("s", [user("a")])
    await store.delete("s")
    equal(await store.load("s"), None, "load after delete")
    equal(await store.list(), [], "list after delete")
    await store.delete("s")
    await store.append("s", [user("b")])
    equal(await store.load("s"), [user("b")], "the transcript of the new session")


@PART.rule("delete detaches children, deletes them with cascade, and refuses with refuse.")
async def delete_decides_about_children(subject: Subject) -> None:
    store, broker = subject.store, subject.broker
    for id, parent in (("p", None), ("c", "p"), ("g", "c")):
        await broker.register(id, channel="x", peer="y", parent=parent)
    await refused(SessionHasChildren, store.delete("p", children="refuse"), "delete with refuse")
    equal((await broker.get("c")).parent, "p", "the parent after the refusal")
    await store.delete("p")
    equal((await broker.get("c")).parent, None, "the parent after the detaching delete")
    await store.delete("c", children="cascade")
    equal(await store.load("g"), None, "the grandchild after the cascading delete")

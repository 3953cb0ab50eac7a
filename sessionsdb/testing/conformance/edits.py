"""Rules of entries and of edits: entries, find, edit, pop, truncate, replace."""

from __future__ import annotations

from sessionsdb.errors import InvalidArgument, UnknownSession, VersionConflict
from sessionsdb.testing.conformance.checks import Part, Subject, equal, refused, true, user
from sessionsdb.types import Edit

PART = Part("edits")


async def _abc(subject: Subject) -> list[int]:
    """Store three messages with keys, and return their seqs."""
    await subject.store.append("s", [user("a"), user("b"), user("c")], keys=["ka", "kb", "kc"])
    return [one.seq for one in await subject.store.entries("s")]


async def _texts(subject: Subject) -> list[str]:
    return [one["content"] for one in await subject.store.load("s") or []]


@PART.rule("entries are whole messages with growing seq and their keys, newest last.")
async def entries_are_whole(subject: Subject) -> None:
    seqs = await _abc(subject)
    entries = await subject.store.entries("s")
    equal([one.message for one in entries], [user("a"), user("b"), user("c")], "the messages")
    equal([one.key for one in entries], ["ka", "kb", "kc"], "the keys")
    equal(seqs, sorted(set(seqs)), "the order of the seqs")
    equal({one.session_id for one in entries}, {"s"}, "the session of the entries")


@PART.rule("entries take limit, before and after as history does.")
async def entries_have_cursors(subject: Subject) -> None:
    a, b, c = await _abc(subject)

    async def seqs(limit: int, *, before: int | None = None, after: int | None = None) -> list[int]:
        found = await subject.store.entries("s", limit, before=before, after=after)
        return [one.seq for one in found]

    equal(await seqs(2), [b, c], "the newest two")
    equal(await seqs(1, before=c), [b], "the newest before the last")
    equal(await seqs(1, after=a), [b], "the oldest after the first")
    equal(await seqs(0), [], "no entries")
    await refused(UnknownSession, subject.store.entries("unknown"), "entries of an unknown id")


@PART.rule("find returns the message with a key, in a session or in all, or None.")
async def find_by_key(subject: Subject) -> None:
    await _abc(subject)
    for entry in (await subject.store.find("kb"), await subject.store.find("kb", id="s")):
        equal(entry and entry.message, user("b"), "the message with the key")
    equal(await subject.store.find("no such key"), None, "find of an unknown key")
    await subject.store.append("other", [user("x")])
    equal(await subject.store.find("kb", id="other"), None, "find in another session")


@PART.rule("pop removes the newest messages and returns them, newest last.")
async def pop_returns_the_newest(subject: Subject) -> None:
    await _abc(subject)
    equal(await subject.store.pop("s", 2), [user("b"), user("c")], "the answer of pop")
    equal(await _texts(subject), ["a"], "the transcript")
    await refused(UnknownSession, subject.store.pop("unknown"), "pop of an unknown id")


@PART.rule("pop of an empty transcript returns an empty list, and keeps the version.")
async def pop_of_nothing_changes_nothing(subject: Subject) -> None:
    version = await subject.store.save("s", [])
    equal(await subject.store.pop("s"), [], "the answer of pop")
    equal(await subject.store.version("s"), version, "the version")


@PART.rule("truncate removes all messages above a seq, with 0 all of them.")
async def truncate_keeps_the_beginning(subject: Subject) -> None:
    a, _b, _c = await _abc(subject)
    before = await subject.store.version("s") or 0
    version = await subject.store.truncate("s", keep_through=a)
    true(version > before, "truncate does not change the version")
    equal(await _texts(subject), ["a"], "the transcript")
    await subject.store.truncate("s", keep_through=0)
    equal(await _texts(subject), [], "the transcript after keep_through=0")


@PART.rule("A seq is never used again, also after its message was removed.")
async def a_seq_is_used_once(subject: Subject) -> None:
    seqs = await _abc(subject)
    await subject.store.truncate("s", keep_through=0)
    await subject.store.append("s", [user("d")])
    [entry] = await subject.store.entries("s")
    true(entry.seq > max(seqs), f"the new message has seq {entry.seq}, the removed ones {seqs}")


@PART.rule("The key of a removed message is free again.")
async def a_removed_key_is_free(subject: Subject) -> None:
    await _abc(subject)
    await subject.store.pop("s")
    await subject.store.append("s", [user("again")], keys=["kc"])
    equal(await _texts(subject), ["a", "b", "again"], "the transcript")


@PART.rule("replace changes one message, which keeps its place, its seq and its key.")
async def replace_keeps_the_place(subject: Subject) -> None:
    a, b, c = await _abc(subject)
    before = await subject.store.version("s") or 0
    true(await subject.store.replace("s", b, user("B")) > before, "the version stays")
    entries = await subject.store.entries("s")
    equal([(one.seq, one.key) for one in entries], [(a, "ka"), (b, "kb"), (c, "kc")], "the rows")
    equal(await _texts(subject), ["a", "B", "c"], "the transcript")
    await refused(
        InvalidArgument, subject.store.replace("s", c + 100, user("x")), "replace of no message"
    )


@PART.rule("edit removes and appends in one change, and returns both.")
async def edit_removes_and_appends(subject: Subject) -> None:
    a, _b, _c = await _abc(subject)
    edited = await subject.store.edit("s", Edit(keep_through=a, append=[user("d"), user("e")]))
    equal(await _texts(subject), ["a", "d", "e"], "the transcript")
    equal(edited.removed, [user("b"), user("c")], "the removed messages")
    seqs = [one.seq for one in await subject.store.entries("s")]
    equal(edited.appended, seqs[1:], "the appended seqs")
    equal(edited.version, await subject.store.version("s"), "the version of the answer")


@PART.rule("An edit with keys that is repeated writes nothing, and returns the same seqs.")
async def an_edit_with_keys_is_repeatable(subject: Subject) -> None:
    a, _b, _c = await _abc(subject)
    version = await subject.store.version("s")
    edit = Edit(keep_through=a, append=[user("d")], keys=["kd"], expected_version=version)
    first = await subject.store.edit("s", edit)
    second = await subject.store.edit("s", edit)
    equal(second.appended, first.appended, "the seqs of the repetition")
    equal(second.version, first.version, "the version of the repetition")
    equal(await _texts(subject), ["a", "d"], "the transcript")


@PART.rule("With another expected_version or expected_tail edit raises, and writes nothing.")
async def edit_has_expectations(subject: Subject) -> None:
    _a, b, c = await _abc(subject)
    version = await subject.store.version("s") or 0
    for edit in (
        Edit(append=[user("x")], expected_version=version + 1),
        Edit(append=[user("x")], expected_tail=[c, b]),
        Edit(keep_through=0, expected_tail=[]),
    ):
        await refused(VersionConflict, subject.store.edit("s", edit), "edit")
    equal(await _texts(subject), ["a", "b", "c"], "the transcript after the refusals")
    await subject.store.edit("s", Edit(append=[user("d")], expected_tail=[b, c]))
    equal(await _texts(subject), ["a", "b", "c", "d"], "the transcript after the right tail")


@PART.rule("edit also merges state and replaces metadata, in the same change.")
async def edit_changes_state_and_metadata(subject: Subject) -> None:
    await _abc(subject)
    await subject.store.update_state("s", {"old": 1})
    edit = Edit(state={"session": {"new": 2}}, metadata={"title": "t"})
    await subject.store.edit("s", edit)
    values = (await subject.store.state("s")).values
    equal(values, {"old": 1, "new": 2}, "the state")
    equal((await subject.broker.get("s")).metadata, {"title": "t"}, "the metadata")


@PART.rule("edit with create=False raises UnknownSession for an unknown id.")
async def edit_need_not_create(subject: Subject) -> None:
    call = subject.store.edit("s", Edit(append=[user("a")], create=False))
    await refused(UnknownSession, call, "edit with create=False")
    await subject.store.edit("s", Edit(append=[user("a")]))
    equal(await _texts(subject), ["a"], "the transcript")

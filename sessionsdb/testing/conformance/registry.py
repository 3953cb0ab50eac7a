"""Rules of sessions: register, get, update, list, fork, end, reopen, history."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sessionsdb.errors import InvalidSessionId, SessionEnded, SessionExists, UnknownSession
from sessionsdb.testing.conformance.checks import Part, Subject, echo, equal, refused, true, user
from sessionsdb.types import SessionDetails

PART = Part("registry")


async def _register(subject: Subject, *ids: str, **more: Any) -> None:
    for id in ids:
        await subject.broker.register(id, channel="cli", peer="ada", **more)


async def _ids(subject: Subject, **filters: Any) -> list[str]:
    return [str(one.id) for one in await subject.broker.list(**filters)]


@PART.rule("register creates a session, and get returns it with its settings.")
async def a_registered_session_is_found(subject: Subject) -> None:
    made = await subject.broker.register(
        "s", channel="cli", peer="ada", model="m", system="be kind", tools=["t"], metadata={"n": 1}
    )
    found = await subject.broker.get("s")
    equal(found.summary, made, "the summary")
    equal((found.id, found.channel, found.peer, found.parent), ("s", "cli", "ada", None), "s")
    equal((found.model, found.system, found.tools), ("m", "be kind", ["t"]), "the settings")
    equal((found.metadata, found.message_count), ({"n": 1}, 0), "the metadata and the count")
    equal((found.pending, found.running, found.ended_at), (0, False, None), "the state")
    true(found.version >= 1, f"the version of a session is {found.version}")


@PART.rule("register of an existing id raises SessionExists. exist_ok returns it unchanged.")
async def an_id_is_registered_once(subject: Subject) -> None:
    await _register(subject, "s", model="m")
    again = subject.broker.register("s", channel="other", peer="bob")
    await refused(SessionExists, again, "a second register")
    kept = await subject.broker.register("s", channel="other", peer="bob", exist_ok=True)
    equal((kept.channel, kept.peer), ("cli", "ada"), "the session after exist_ok")
    equal((await subject.broker.get("s")).model, "m", "the model after exist_ok")


@PART.rule("register with exist_ok of an ended session raises SessionEnded.")
async def an_ended_session_is_not_registered(subject: Subject) -> None:
    await _register(subject, "s")
    await subject.broker.end("s")
    again = subject.broker.register("s", channel="cli", peer="ada", exist_ok=True)
    await refused(SessionEnded, again, "register with exist_ok")


@PART.rule("The parent of a new session must exist and must not have ended.")
async def a_parent_is_live(subject: Subject) -> None:
    await refused(UnknownSession, _register(subject, "c", parent="unknown"), "an unknown parent")
    await _register(subject, "p")
    await subject.broker.end("p")
    await refused(SessionEnded, _register(subject, "c", parent="p"), "an ended parent")
    await refused(UnknownSession, subject.broker.get("c"), "get of the refused child")


@PART.rule("Verbs raise UnknownSession for an unknown id, and InvalidSessionId for an empty one.")
async def unknown_ids_are_refused(subject: Subject) -> None:
    broker = subject.broker
    for verb in (broker.get, broker.history, broker.end, broker.inbox, broker.update, broker.fork):
        call: Any = verb
        await refused(UnknownSession, call("unknown"), f"{call.__name__} of an unknown id")
        await refused(InvalidSessionId, call(""), f"{call.__name__} of an empty id")
    await refused(UnknownSession, broker.send("unknown", "hi"), "send to an unknown id")


@PART.rule("update changes the given fields and keeps the others. None clears a setting.")
async def update_changes_the_given_fields(subject: Subject) -> None:
    await _register(subject, "s", model="m", system="be kind", metadata={"n": 1})
    updated = await subject.broker.update("s", model="m2", system=None)
    equal((updated.model, updated.system), ("m2", None), "the changed settings")
    equal((updated.channel, updated.metadata), ("cli", {"n": 1}), "the kept fields")
    equal(await subject.broker.get("s"), updated, "the stored session")


@PART.rule("list returns sessions by last_active, oldest first, and newest_first reverses them.")
async def list_is_ordered(subject: Subject) -> None:
    await _register(subject, "a", "b", "c")
    await subject.broker.send("a", "hi")
    sessions = await subject.broker.list()
    places = [(one.last_active, one.id) for one in sessions]
    equal(places, sorted(places), "the order by last_active and id")
    equal({str(one.id) for one in sessions}, {"a", "b", "c"}, "the sessions")
    [a] = [one for one in sessions if one.id == "a"]
    true(a.last_active > a.created_at or a == sessions[-1], "a send does not make a session active")
    ids = [str(one.id) for one in sessions]
    equal(await _ids(subject, newest_first=True), ids[::-1], "the order with newest_first")


@PART.rule("Pages of list with limit and after have each session once.")
async def pages_of_list_are_complete(subject: Subject) -> None:
    await _register(subject, *"abcde")
    for newest_first in (False, True):
        ids = await _ids(subject, newest_first=newest_first)
        paged: list[str] = []
        after = None
        while page := await subject.broker.list(limit=2, after=after, newest_first=newest_first):
            true(len(page) <= 2, f"a page has {len(page)} sessions")
            paged += [str(one.id) for one in page]
            after = page[-1]
            true(len(paged) <= 5, "the pages repeat sessions")
        equal(paged, ids, f"the pages together, with newest_first={newest_first}")


@PART.rule("All filters of list must match: channel, peer, parent, root, active_since.")
async def filters_select(subject: Subject) -> None:
    await subject.broker.register("web", channel="web", peer="bob")
    await _register(subject, "p")
    await _register(subject, "c", parent="p")
    await _register(subject, "g", parent="c")
    equal(await _ids(subject, channel="web"), ["web"], "by channel")
    equal(await _ids(subject, peer="bob", channel="cli"), [], "by two filters")
    equal(await _ids(subject, parent="p"), ["c"], "by parent")
    equal(sorted(await _ids(subject, root="p")), ["c", "g", "p"], "by root")
    newest = (await subject.broker.list())[-1].last_active
    later = newest + timedelta(seconds=1)
    equal(await _ids(subject, active_since=later), [], "active later than all")
    true(await _ids(subject, active_since=newest), "active_since leaves out its own moment")


@PART.rule("Ended sessions are listed with include_ended only.")
async def ended_sessions_are_left_out(subject: Subject) -> None:
    await _register(subject, "a", "b")
    await subject.broker.end("a")
    equal(await _ids(subject), ["b"], "the list")
    equal(sorted(await _ids(subject, include_ended=True)), ["a", "b"], "with include_ended")


@PART.rule("list with details returns the same values as get.")
async def details_are_those_of_get(subject: Subject) -> None:
    await _register(subject, "s", model="m", tools=[])
    [found] = await subject.broker.list(details=True)
    true(isinstance(found, SessionDetails), f"the item is a {type(found).__name__}")
    equal(found, await subject.broker.get("s"), "the details")


@PART.rule("end counts the sessions that it ended, with subtree all below, and cancels messages.")
async def end_ends(subject: Subject) -> None:
    await _register(subject, "p")
    await _register(subject, "c", parent="p")
    await _register(subject, "g", parent="c")
    await subject.broker.end("g")
    receipt = await subject.broker.send("c", "hi")
    equal(await subject.broker.end("p", subtree=True, reason="done"), 2, "the number of ended ones")
    equal(await subject.broker.end("p", subtree=True), 0, "the number at the second call")
    ended = await subject.broker.get("p")
    true(ended.ended_at is not None, "an ended session has no ended_at")
    equal(ended.end_reason, "done", "the reason")
    equal((await subject.broker.outcome(receipt)).status, "cancelled", "the waiting message")
    await refused(SessionEnded, subject.broker.send("c", "hi"), "send to an ended session")


@PART.rule("reopen lets an ended session take messages. Cancelled messages stay cancelled.")
async def reopen_reopens(subject: Subject) -> None:
    await _register(subject, "s")
    old = await subject.broker.send("s", "old")
    await subject.broker.end("s")
    opened = await subject.broker.reopen("s")
    equal((opened.ended_at, opened.pending), (None, 0), "the reopened session")
    equal((await subject.broker.outcome(old)).status, "cancelled", "the old message")
    await subject.broker.send("s", "new")
    await subject.run_turns(echo)
    texts = [one.content for one in await subject.broker.history("s")]
    equal(texts, ["new", "echo: new"], "the transcript")
    equal((await subject.broker.reopen("s")).ended_at, None, "reopen of a live session")


@PART.rule("fork copies transcript and settings up to a message. Both go on by themselves.")
async def fork_copies(subject: Subject) -> None:
    await _register(subject, "s", model="m", metadata={"n": 1})
    await subject.store.append("s", [user("a"), user("b"), user("c")])
    seqs = [one.seq for one in await subject.store.entries("s")]
    await subject.broker.send("s", "waits")
    made = await subject.broker.fork("s", at=seqs[1], new_id="f")
    equal((made.id, made.channel, made.peer, made.parent), ("f", "cli", "ada", None), "the fork")
    equal(await subject.store.load("f"), [user("a"), user("b")], "the transcript of the fork")
    found = await subject.broker.get("f")
    equal((found.model, found.metadata, found.pending), ("m", {"n": 1}, 0), "its details")
    origin = found.forked_from
    equal(origin and (origin.id, origin.seq), ("s", seqs[1]), "forked_from")
    await subject.store.append("f", [user("x")])
    equal(len(await subject.store.load("s") or []), 3, "the length of the source afterwards")
    await refused(SessionExists, subject.broker.fork("s", new_id="f"), "fork to an existing id")
    whole = await subject.broker.fork("s")
    true(str(whole.id).startswith("fork-"), f"the id of a fork is {whole.id}")
    equal(len(await subject.store.load(whole.id) or []), 3, "the length of a whole fork")


@PART.rule("history returns the newest messages, newest last, 50 without a limit.")
async def history_has_the_newest_last(subject: Subject) -> None:
    await subject.store.append("s", [user(str(n)) for n in range(60)])
    texts = [one.content for one in await subject.broker.history("s")]
    equal(texts, [str(n) for n in range(10, 60)], "history without a limit")
    newest = await subject.broker.history("s", 2)
    equal([(one.role, one.content) for one in newest], [("user", "58"), ("user", "59")], "2")
    equal(await subject.broker.history("s", 0), [], "history with limit=0")


@PART.rule("history(before) has the newest ones below a seq, history(after) the oldest above it.")
async def history_has_cursors(subject: Subject) -> None:
    await subject.store.append("s", [user(str(n)) for n in range(9)])
    seqs = [one.seq for one in await subject.broker.history("s")]
    middle = seqs[4]
    before = [one.content for one in await subject.broker.history("s", 2, before=middle)]
    equal(before, ["2", "3"], "before")
    after = [one.content for one in await subject.broker.history("s", 2, after=middle)]
    equal(after, ["5", "6"], "after")


@PART.rule("A page of history with max_bytes keeps within them, and has at least one message.")
async def history_has_a_size(subject: Subject) -> None:
    await subject.store.append("s", [user("éé"), user("cccc"), user("dddd")])
    newest = await subject.broker.history("s", max_bytes=11)
    equal([one.content for one in newest], ["cccc", "dddd"], "11 bytes")
    newest = await subject.broker.history("s", max_bytes=12)
    equal(len(newest), 3, "the number of messages in 12 bytes of UTF-8")
    newest = await subject.broker.history("s", max_bytes=1)
    equal([one.content for one in newest], ["dddd"], "1 byte")

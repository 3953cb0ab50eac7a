"""Notifications wake the subscribers that they concern, in all processes."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest

from devtools.databases import Database
from sessionsdb import Receipt, SessionsDB, Turn
from sessionsdb.database import open_database_of
from sessionsdb.engine.notifier import Digests, Notifier, Signal, SubjectSignal, Topic
from sessionsdb.engine.postgresql.notifier import MAX_DIGESTS, hints_of, payloads
from sessionsdb.operations import lease_ends, mailbox
from sessionsdb.operations.inbox_types import Fail, Lease
from sessionsdb.operations.keys import digest_of
from sessionsdb.runtime.database_access import DONE, PIECES, STOP, WORK, hint_about
from tests.support.turns import WORKER, claim
from tests.support.waiting import until
from tests.support.work import running

MAX_PAYLOAD_BYTES = 7_999
"""PostgreSQL refuses a longer payload of a notification."""


def key_of(id: str) -> tuple[str, str]:
    return ("default", id)


def signal_of(*ids: str) -> SubjectSignal:
    own = frozenset(digest_of(key_of(id)) for id in ids)
    return SubjectSignal(lambda digests: not own.isdisjoint(digests))


async def is_set(signal: Signal) -> bool:
    return await signal.wait(0)


def test_the_digest_of_a_session_is_short_and_its_own() -> None:
    digests = {digest_of((f"n{n % 3}", f"s{n}")) for n in range(10_000)}
    assert len(digests) == 10_000
    assert {len(digest) for digest in digests} == {12}
    assert digest_of(("a", "b")) != digest_of(("b", "a"))


async def test_a_hint_wakes_only_the_subscribers_that_it_concerns() -> None:
    notifier = Notifier()
    chat, other, every = signal_of("chat"), signal_of("other"), Signal()
    async with (
        notifier.subscribe(PIECES, chat),
        notifier.subscribe(PIECES, other),
        notifier.subscribe(PIECES, every),
    ):
        notifier.notify(*hint_about(PIECES, [key_of("chat")]))
        assert [await is_set(one) for one in (chat, other, every)] == [True, False, True]
        notifier.notify(*hint_about(STOP, [key_of("other")]))
        assert not await is_set(other)
        notifier.notify(PIECES)
        assert [await is_set(one) for one in (chat, other, every)] == [True, True, True]
    await notifier.close()


async def test_a_hint_of_another_process_wakes_whom_it_concerns(
    db: SessionsDB, database: Database
) -> None:
    """SQLite has no payload: there a commit wakes all, and each looks for itself."""
    async with SessionsDB(database.url) as following:
        chat, other = signal_of("chat"), signal_of("other")
        notifier = open_database_of(following).notifier
        async with notifier.subscribe(PIECES, chat), notifier.subscribe(PIECES, other):
            # The watcher sets all signals once it has begun.
            assert await chat.wait(20)
            assert await other.wait(20)
            if database.kind == "sqlite":
                await db.broker.register("chat", channel="test", peer="p")
                assert await chat.wait(20)
                return
            open_database_of(db).wake((WORK, hint_about(PIECES, [key_of("chat")])))
            assert await chat.wait(20)
            assert not await is_set(other)


@pytest.mark.parametrize("kind", ["postgresql"])
async def test_hints_in_quick_succession_are_told_together(database: Database) -> None:
    async with SessionsDB(database.url) as db, SessionsDB(database.url) as following:
        seen: set[str] = set()

        def note(digests: Digests) -> bool:
            seen.update(digests)
            return False

        notifier = open_database_of(following).notifier
        async with notifier.subscribe(PIECES, SubjectSignal(note)) as signal:
            assert await signal.wait(20)
            ids = [f"s{n}" for n in range(150)]
            for id in ids:
                open_database_of(db).wake((hint_about(PIECES, [key_of(id)]),))
            wanted = {digest_of(key_of(id)) for id in ids}
            await until(lambda: seen == wanted)
            assert not await is_set(signal)


def digests_of(count: int) -> Digests:
    return frozenset(digest_of(key_of(f"s{n}")) for n in range(count))


@pytest.mark.parametrize("pieces", [0, 1, 100, 101, MAX_DIGESTS, MAX_DIGESTS + 1, 5_000])
@pytest.mark.parametrize("stops", [1, 100, MAX_DIGESTS, 5_000])
def test_a_payload_is_never_too_long_and_loses_no_subject(pieces: int, stops: int) -> None:
    pending: dict[Topic, Digests | None] = {"work": None, "done": None, "stop": digests_of(stops)}
    if pieces:
        pending["pieces"] = digests_of(pieces)
    told = payloads(pending)
    assert all(len(payload.encode()) <= MAX_PAYLOAD_BYTES for payload in told)
    heard = [hint for payload in told for hint in hints_of(payload)]
    assert {topic for topic, _ in heard} == set(pending)
    for topic, digests in heard:
        given = pending[topic]
        assert digests is None or digests == given
        if given is not None and len(given) <= MAX_DIGESTS:
            assert digests == given


@pytest.mark.parametrize("payload", ["", ":", "nonsense stop2:ab", "::: work2", "stop:"])
def test_a_foreign_payload_does_no_harm(payload: str) -> None:
    assert [topic for topic, _ in hints_of(payload)] in ([], ["stop"])


async def test_a_worker_does_not_look_for_the_stops_of_other_workers(
    db: SessionsDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = asyncio.Event()
    began = asyncio.Event()
    held_fences = mailbox.held_fences

    def counted(*args: Any, **kwargs: Any) -> Any:
        looked.set()
        return held_fences(*args, **kwargs)

    async def hang(turn: Turn) -> None:
        began.set()
        await asyncio.Event().wait()

    await db.broker.register("mine", channel="test", peer="p")
    await db.broker.send("mine", "go")
    notifier = open_database_of(db).notifier
    # The watcher of other processes wakes all at its start, and on SQLite after each commit.
    monkeypatch.setattr(notifier, "_notify_all", lambda: None)
    async with running(db, hang, lease_seconds=3_600), notifier.subscribe(STOP) as all_hints:
        await began.wait()
        monkeypatch.setattr(mailbox, "held_fences", counted)
        open_database_of(db).wake((hint_about(STOP, [key_of("elsewhere")]),))
        assert await all_hints.wait(20)
        assert not looked.is_set()
        open_database_of(db).wake((hint_about(STOP, [key_of("mine")]),))
        await asyncio.wait_for(looked.wait(), 20)


@pytest.mark.parametrize("kind", ["sqlite"])
async def test_a_commit_of_another_process_that_makes_no_work_wakes_no_idle_worker(
    db: SessionsDB, database: Database
) -> None:
    await db.broker.register("chat", channel="test", peer="p")
    async with SessionsDB(database.url) as waiting:
        work, done = Signal(), Signal()
        notifier = open_database_of(waiting).notifier
        async with notifier.subscribe(WORK, work), notifier.subscribe(DONE, done):
            assert await work.wait(20)  # the watcher has begun
            assert await done.wait(20)
            await db.store.append("chat", [{"role": "user", "content": "no work"}])
            assert await done.wait(20)
            assert not await is_set(work)
            await db.broker.send("chat", "work")
            assert await work.wait(20)
            [lease] = await claim(db)
            assert await work.wait(20)  # a lease more
            await fail_for_later(db, lease)
            assert await work.wait(20)  # a backoff
            await db.broker.cancel(Receipt(session_id="chat", position=1))
            assert await work.wait(20)


async def fail_for_later(db: SessionsDB, lease: Lease) -> None:
    failure = Fail(lease, "Boom", retry_in=3_600)
    await open_database_of(db).runner.write(
        partial(lease_ends.fail, worker=WORKER, failures=[failure])
    )

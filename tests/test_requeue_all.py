"""Many dead messages are requeued by one call: of one session, since a time, with an error."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from devtools.databases import Database
from sessionsdb import SessionsDB, Turn, UnknownSession
from sessionsdb.operations import requeuing
from tests.support.command_line import CommandLine
from tests.support.work import running


async def fail(turn: Turn) -> str:
    raise RuntimeError(f"the {turn.text} failed")


async def answer(turn: Turn) -> str:
    return f"re {turn.text}"


async def bury(db: SessionsDB, *ids: str, texts: tuple[str, ...] = ("model", "tool")) -> None:
    for id in ids:
        await db.broker.register(id, channel="test", peer="p", exist_ok=True)
        for text in texts:
            await db.broker.send(id, text)
    await db.worker(fail, max_attempts=1).run_until_idle()


async def dead(db: SessionsDB) -> list[tuple[str, int]]:
    found = await db.broker.dead_letters(limit=10_000)
    return sorted((one.receipt.session_id, one.receipt.position) for one in found)


async def test_all_dead_messages_are_handled_again_in_their_order(
    db: SessionsDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requeuing, "PAGE", 2)
    await bury(db, "a", "b", "c")
    await bury(db.in_namespace("acme"), "a")
    assert await db.broker.requeue_all() == 6
    assert await db.broker.requeue_all() == 0
    assert (await db.broker.get("a")).pending == 2
    assert await db.worker(answer).run_until_idle() == 6
    contents = [message.content for message in await db.broker.history("a")]
    assert contents == ["model", "re model", "tool", "re tool"]
    assert len(await dead(db.in_namespace("acme"))) == 2


async def test_a_message_that_dies_again_meanwhile_is_not_requeued_without_end(
    db: SessionsDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requeuing, "PAGE", 1)
    await bury(db, "a", "b", "c")
    async with running(db, fail, max_attempts=1):
        async with asyncio.timeout(60):
            assert await db.broker.requeue_all() == 6


async def test_only_the_named_messages_are_requeued(db: SessionsDB) -> None:
    await bury(db, "a", "b")
    assert await db.broker.requeue_all(error="RuntimeError: the model") == 2
    assert await dead(db) == [("a", 2), ("b", 2)]
    assert await db.broker.requeue_all("a") == 1
    assert await db.broker.requeue_all(since=datetime.now(UTC) + timedelta(hours=1)) == 0
    assert await db.broker.requeue_all(since=datetime.now(UTC) - timedelta(hours=1)) == 1
    with pytest.raises(UnknownSession):
        await db.broker.requeue_all("nobody")


async def test_an_error_is_a_text_and_no_pattern(db: SessionsDB) -> None:
    await bury(db, "a", texts=("100%", "100x", "MODEL"))
    assert await db.broker.requeue_all(error="the model") == 0
    assert await db.broker.requeue_all(error="00%") == 1


async def test_what_belongs_to_an_ended_session_stays_dead(db: SessionsDB) -> None:
    await bury(db, "a", "b")
    await db.broker.end("a")
    assert await db.broker.requeue_all() == 2
    assert await dead(db) == [("a", 1), ("a", 2)]


async def test_two_calls_at_once_requeue_each_message_once(db: SessionsDB) -> None:
    await bury(db, *(f"s{n}" for n in range(8)))
    counts = await asyncio.gather(*(db.broker.requeue_all() for _ in range(4)))
    assert sum(counts) == 16
    assert await db.worker(answer).run_until_idle() == 16


async def test_a_session_that_runs_goes_on_with_the_requeued_message(db: SessionsDB) -> None:
    await bury(db, "a", texts=("model",))
    begun, go = asyncio.Event(), asyncio.Event()

    async def handler(turn: Turn) -> str:
        begun.set()
        await go.wait()
        return f"re {turn.text}"

    await db.broker.send("a", "next")
    work = asyncio.create_task(db.worker(handler).run_until_idle())
    await begun.wait()
    assert await db.broker.requeue_all() == 1
    go.set()
    assert await work == 2


def test_the_command_requeues_all_that_it_names(database: Database) -> None:
    async def prepare() -> None:
        async with SessionsDB(database.url) as db:
            await bury(db, "a", "b")

    asyncio.run(prepare())
    cli = CommandLine(database.url)
    for arguments, words in (
        ((), "ID and POSITION"),
        (("a", "1", "--all"), "not both"),
        (("a", "1", "--error", "x"), "need --all"),
        (("--all", "--since", "yesterday-ish"), "--since"),
    ):
        refused = cli("requeue", *arguments)
        assert refused.code == 2
        assert words in refused.stderr
    assert cli("requeue", "--all", "--error", "the tool").ok().stdout == "requeued: 2 messages\n"
    assert cli("requeue", "--all", "--session", "a", "--since", "1h").ok().stdout == (
        "requeued: 1 message\n"
    )
    assert cli("requeue", "b", "1").ok().stdout == "requeued: message 1 of session b\n"
    assert cli("requeue", "--all").ok().stdout == "requeued: 0 messages\n"

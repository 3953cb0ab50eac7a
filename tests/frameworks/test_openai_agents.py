"""``Session`` for the OpenAI Agents SDK: what its own tests do not cover."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from agents import Runner, set_tracing_disabled
from agents.extensions.memory import EncryptedSession
from agents.memory import Session as SessionProtocol
from agents.memory import SessionSettings
from sqlalchemy import event

from devtools.databases import Database
from sessionsdb import InvalidArgument, SessionExists, SessionsDB, Turn, UnknownSession
from sessionsdb.adapters.forms import AnotherForm, create_session, form_of
from sessionsdb.adapters.openai_agents import FORM, Session
from tests.frameworks.openai_model import counting_agent

set_tracing_disabled(True)

KEY = "a key of many random characters"


def items(*texts: str) -> list[Any]:
    return [{"role": "user", "content": text} for text in texts]


def texts(found: list[Any]) -> list[str]:
    return [item["content"] for item in found]


@pytest.fixture
def session(db: SessionsDB) -> Session:
    return Session("chat", db)


# ---- the protocol --------------------------------------------------------------------------------


async def test_a_session_follows_the_protocol(session: Session) -> None:
    assert isinstance(session, SessionProtocol)
    assert session.session_settings == SessionSettings()
    assert Session("a", "sqlite://", session_settings={"limit": 3}).session_settings.limit == 3


async def test_items_come_back_as_they_were_added(session: Session) -> None:
    given = [
        *items("hello"),
        {"type": "function_call", "call_id": "1", "name": "f", "arguments": '{"a": 1}'},
        {"type": "function_call_output", "call_id": "1", "output": "x" * 100_000},
        {"type": "reasoning", "id": "r", "summary": [{"type": "summary_text", "text": "\x00é"}]},
    ]
    await session.add_items(given)
    assert await session.get_items() == given
    assert await session.get_items(2) == given[2:]


@pytest.mark.parametrize(("limit", "found"), [(None, "abc"), (2, "bc"), (9, "abc"), (0, "")])
async def test_a_limit_gives_the_newest_items(
    session: Session, limit: int | None, found: str
) -> None:
    await session.add_items(items("a", "b", "c"))
    assert texts(await session.get_items(limit)) == list(found)


async def test_the_limit_of_the_settings_is_the_default(db: SessionsDB) -> None:
    session = Session("chat", db, session_settings=SessionSettings(limit=1))
    await session.add_items(items("a", "b"))
    assert texts(await session.get_items()) == ["b"]
    assert texts(await session.get_items(5)) == ["a", "b"]


async def test_an_unknown_session_has_no_items_and_is_not_made_by_looking(
    db: SessionsDB, session: Session
) -> None:
    assert await session.get_items() == await session.get_items(5) == []
    assert await session.pop_item() is None
    await session.clear_session()
    await session.add_items([])
    assert await db.broker.list() == []


async def test_each_of_many_callers_pops_another_item(db: SessionsDB, session: Session) -> None:
    await session.add_items(items(*map(str, range(20))))
    popped = await asyncio.gather(*(Session("chat", db).pop_item() for _ in range(25)))
    assert sorted(int(item["content"]) for item in popped if item is not None) == list(range(20))
    assert await session.get_items() == []


async def test_a_cancelled_caller_has_added_its_items(session: Session) -> None:
    await session.add_items(items("before"))
    adding = asyncio.create_task(session.add_items(items("a", "b")))
    await asyncio.sleep(0)
    adding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await adding
    assert texts(await session.get_items()) == ["before", "a", "b"]


async def test_a_cleared_session_is_the_same_session(db: SessionsDB, session: Session) -> None:
    await session.add_items(items("a"))
    await db.store.update_state("chat", {"mood": "calm"})
    await session.clear_session()
    assert await session.get_items() == []
    await session.add_items(items("b"))
    assert texts(await session.get_items()) == ["b"]
    assert (await db.store.state("chat")).values == {"mood": "calm"}


@pytest.mark.parametrize("kind", ["postgresql"])
async def test_a_short_read_of_a_long_session_reads_little(
    db: SessionsDB, session: Session
) -> None:
    """Both reads ask the database for as many rows as they return."""
    await session.add_items(items(*map(str, range(500))))
    asked: list[str] = []

    def note(*given: Any) -> None:
        asked.append(given[2])

    engine = db.engine.sync_engine
    event.listen(engine, "before_cursor_execute", note)
    try:
        assert len(await session.get_items(3)) == 3
        assert (await session.pop_item() or {})["content"] == "499"
    finally:
        event.remove(engine, "before_cursor_execute", note)
    reads = [sql for sql in asked if "FROM messages" in sql and sql.lstrip()[:6] == "SELECT"]
    assert reads
    assert all("LIMIT" in sql or "seq >" in sql for sql in reads), reads


# ---- event loops, and the Runner -----------------------------------------------------------------


# The SDK shuts down the generators of its event loop after each run, and uses the loop again.
@pytest.mark.filterwarnings("ignore:asynchronous generator:ResourceWarning")
def test_a_session_of_a_url_works_in_one_loop_after_another(database: Database) -> None:
    session = Session("chat", database.url)
    agent = counting_agent()
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    assert Runner.run_sync(agent, "one", session=session).final_output == "read 1 items"
    assert Runner.run_sync(agent, "two", session=session).final_output == "read 3 items"

    async def third() -> Any:
        return await Runner.run(agent, "three", session=session)

    assert asyncio.run(third()).final_output == "read 5 items"
    loop.close()


async def test_many_sessions_of_one_url_share_the_connections(database: Database) -> None:
    sessions = [Session(f"chat-{number}", database.url) for number in range(20)]
    await asyncio.gather(*(session.add_items(items("hello")) for session in sessions))
    assert len({id(await session._handles.current()) for session in sessions}) == 1
    for session in sessions:
        await session.close()


async def test_the_broker_shows_a_session_of_the_sdk(db: SessionsDB, session: Session) -> None:
    await Runner.run(counting_agent(), "hello", session=session)
    [shown] = await db.broker.list(channel=FORM)
    assert shown.id == shown.peer == "chat"
    history = [(one.role, one.content) for one in await db.broker.history("chat")]
    assert history == [("user", "hello"), ("assistant", "read 1 items")]


async def test_a_session_of_a_worker_is_a_session_of_the_sdk(
    db: SessionsDB, session: Session
) -> None:
    await db.broker.register("chat", channel="cli", peer="ada")
    await db.broker.send("chat", "hello")

    async def handler(turn: Turn) -> str:
        return "hi"

    await db.worker(handler).run_until_idle()
    result = await Runner.run(counting_agent(), "again", session=session)
    assert result.final_output == "read 3 items"
    assert len(await session.get_items()) == 4


# ---- forms ---------------------------------------------------------------------------------------


async def test_a_session_of_another_framework_is_refused(db: SessionsDB, session: Session) -> None:
    await create_session(db, "chat", "pydantic-ai", channel="pydantic-ai", peer="chat")
    for call in (
        session.get_items(),
        session.add_items(items("a")),
        session.pop_item(),
        session.clear_session(),
        session.branch(),
    ):
        with pytest.raises(AnotherForm, match="chat has messages of pydantic-ai"):
            await call
    assert await db.store.load("chat") == []


async def test_a_session_that_was_deleted_is_created_again_with_its_form(
    db: SessionsDB, session: Session
) -> None:
    await session.add_items(items("a"))
    first = await db.broker.get("chat")
    await db.store.delete("chat")
    await session.add_items(items("b"))
    again = await db.broker.get("chat")
    assert (again.channel, again.peer, again.metadata) == (
        *(first.channel, first.peer, first.metadata),
    )
    assert await session.get_items() == items("b")


async def test_a_session_of_another_framework_in_its_place_is_refused(
    db: SessionsDB, session: Session
) -> None:
    await session.add_items(items("a"))
    assert await session.get_items() == items("a")
    await db.store.delete("chat")
    await create_session(db, "chat", "pydantic-ai", channel="pydantic-ai", peer="chat")
    for call in (
        session.get_items(),
        session.get_items(1),
        session.add_items(items("a")),
        session.pop_item(),
        session.clear_session(),
    ):
        with pytest.raises(AnotherForm, match="chat has messages of pydantic-ai"):
            await call
    assert await db.store.load("chat") == []


# ---- branches ------------------------------------------------------------------------------------


async def test_a_branch_has_the_first_items(db: SessionsDB, session: Session) -> None:
    await session.add_items(items("a", "b", "c"))
    await session.pop_item()
    await session.add_items(items("d", "e"))  # behind a gap in the numbers
    branch = await session.branch(at=3)
    assert texts(await branch.get_items()) == ["a", "b", "d"]
    await branch.add_items(items("other"))
    assert texts(await session.get_items()) == ["a", "b", "d", "e"]
    assert texts(await branch.get_items()) == ["a", "b", "d", "other"]
    assert form_of(await db.broker.get(branch.session_id)) == FORM


@pytest.mark.parametrize(("at", "found"), [(None, "ab"), (0, ""), (1, "a"), (9, "ab")])
async def test_the_place_of_a_branch(session: Session, at: int | None, found: str) -> None:
    await session.add_items(items("a", "b"))
    branch = await session.branch("other", at=at)
    assert branch.session_id == "other"
    assert texts(await branch.get_items()) == list(found)


async def test_a_branch_that_cannot_be_made(session: Session) -> None:
    with pytest.raises(UnknownSession):
        await session.branch()
    await session.add_items(items("a"))
    await session.branch("other")
    with pytest.raises(SessionExists):
        await session.branch("other")
    with pytest.raises(InvalidArgument):
        await session.branch(at=-1)


# ---- compaction and encryption -------------------------------------------------------------------


async def test_the_end_is_replaced_if_it_is_unchanged(session: Session) -> None:
    await session.add_items(items("a", "b", "c", "d"))
    snapshot = await session._get_compaction_snapshot(3)
    assert (texts(snapshot.items), snapshot.complete) == (["b", "c", "d"], False)
    assert await snapshot.replace_suffix(1, items("short"))
    assert texts(await session.get_items()) == ["a", "b", "short"]
    assert not await snapshot.replace_suffix(1, items("again"))
    assert (await session._get_compaction_snapshot(3)).complete


@pytest.mark.parametrize("change", ["add", "pop", "clear", "replace", "delete"])
async def test_the_end_is_not_replaced_after_a_change(
    db: SessionsDB, session: Session, change: str
) -> None:
    await session.add_items(items("a", "b"))
    snapshot = await session._get_compaction_snapshot(5)
    other = Session("chat", db)
    if change == "add":
        await other.add_items(items("c"))
    elif change == "pop":
        await other.pop_item()
    elif change == "clear":
        await other.clear_session()
    elif change == "replace":
        await db.store.replace("chat", 2, {"role": "user", "content": "B"})
    else:
        await db.store.delete("chat")
    before = await other.get_items()
    assert not await snapshot.replace_suffix(0, items("short"))
    assert await other.get_items() == before


async def test_nothing_is_replaced_in_a_session_that_does_not_exist(session: Session) -> None:
    snapshot = await session._get_compaction_snapshot(5)
    assert (snapshot.items, snapshot.complete) == ([], True)
    assert not await snapshot.replace_suffix(0, items("short"))
    assert await session.get_items() == []


async def test_first_items_are_pruned_with_the_replacement(session: Session) -> None:
    await session.add_items(items("old", "old", "a", "old", "b", "c"))

    def is_old(item: Any) -> bool:
        return bool(item["content"] == "old")

    snapshot = await session._get_compaction_snapshot(2, prune_prefix=is_old)
    assert await snapshot.replace_suffix(0, items("short"))
    assert texts(await session.get_items()) == ["a", "old", "short"]
    snapshot = await session._get_compaction_snapshot(1, prune_prefix=is_old)
    assert await snapshot.replace_suffix(0, items("end"))
    assert texts(await session.get_items()) == ["a", "old", "end"]


async def test_an_encrypted_session_stores_no_plain_text(db: SessionsDB, session: Session) -> None:
    encrypted = EncryptedSession("chat", session, KEY)
    await encrypted.add_items(items("a secret", "another"))
    assert texts(await EncryptedSession("chat", Session("chat", db), KEY).get_items()) == [
        "a secret",
        "another",
    ]
    assert "secret" not in repr(await db.store.load("chat"))
    popped = await encrypted.pop_item()
    assert popped == items("another")[0]
    assert await EncryptedSession("chat", session, "another key").get_items() == []


def test_a_database_that_is_not_one_is_refused_at_once(tmp_path: Path) -> None:
    for url in ("redis://localhost", str(tmp_path / "file.db"), 5):
        with pytest.raises(InvalidArgument):
            Session("chat", url)

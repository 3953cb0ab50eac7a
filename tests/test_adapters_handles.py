"""The handles and the forms that all adapters of frameworks share."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from devtools.databases import Database
from sessionsdb import HandleOpenedElsewhere, InvalidArgument, SessionsDB
from sessionsdb.adapters import handles
from sessionsdb.adapters.forms import AnotherForm, create_session, find_session, form_of
from sessionsdb.adapters.handles import ADAPTER_LIMITS, Handles
from sessionsdb.engine import urls

T = TypeVar("T")
HELLO = {"role": "user", "content": "hello"}


async def append(adapter: Handles) -> int:
    db = await adapter.current()
    return await db.store.append("chat", [HELLO])


async def load(adapter: Handles) -> list[dict[str, Any]] | None:
    return await (await adapter.current()).store.load("chat")


def in_new_loop(work: Callable[[], Awaitable[T]]) -> T:
    async def run() -> T:
        return await work()

    return asyncio.run(run())


def test_an_adapter_with_a_url_works_in_one_event_loop_after_another(database: Database) -> None:
    adapter = Handles(database.url)
    for _ in range(3):
        in_new_loop(partial(append, adapter))
    assert in_new_loop(partial(load, adapter)) == [HELLO] * 3
    assert handles._SHARED == {}


def test_a_handle_is_closed_with_its_event_loop(database: Database) -> None:
    adapter = Handles(database.url)

    async def use() -> SessionsDB:
        await append(adapter)
        return await adapter.current()

    db = in_new_loop(use)
    assert not db._database.is_open


# asyncio warns of every generator after that moment, also of context managers.
@pytest.mark.filterwarnings("ignore:asynchronous generator:ResourceWarning")
def test_a_loop_that_goes_on_after_its_generators_were_shut_down_is_used_again(
    database: Database,
) -> None:
    """The event loop of ``Runner.run_sync`` does so after each run."""
    adapter = Handles(database.url)
    loop = asyncio.new_event_loop()
    try:
        for _ in range(3):
            loop.run_until_complete(append(adapter))
            loop.run_until_complete(loop.shutdown_asyncgens())
        assert loop.run_until_complete(load(adapter)) == [HELLO] * 3
        loop.run_until_complete(adapter.close())
    finally:
        loop.close()
    assert handles._SHARED == {}


def test_two_event_loops_at_the_same_time_have_a_handle_each(database: Database) -> None:
    adapter = Handles(database.url)
    together = threading.Barrier(2)
    found: list[SessionsDB] = []

    async def use() -> None:
        await append(adapter)
        found.append(await adapter.current())
        together.wait(100)
        await append(adapter)

    threads = [threading.Thread(target=in_new_loop, args=(use,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(110)
    assert len(set(map(id, found))) == 2
    assert in_new_loop(partial(load, adapter)) == [HELLO] * 4


async def test_many_first_uses_at_once_open_one_handle(database: Database) -> None:
    adapters = [Handles(database.url) for _ in range(5)]
    await asyncio.gather(*(append(adapter) for adapter in adapters for _ in range(4)))
    assert len({id(await adapter.current()) for adapter in adapters}) == 1
    assert len(await load(adapters[0]) or []) == 20
    for adapter in adapters:
        await adapter.close()


async def test_closing_one_adapter_leaves_the_handle_to_the_others(database: Database) -> None:
    one, other = Handles(database.url), Handles(database.url)
    await asyncio.gather(append(one), append(other))
    db = await one.current()
    await one.close()
    assert db._database.is_open
    await other.close()
    assert not db._database.is_open
    assert await load(one) == [HELLO] * 2
    await one.close()


async def test_an_adapter_that_is_gone_holds_no_handle_open(database: Database) -> None:
    one, other = Handles(database.url), Handles(database.url)
    await asyncio.gather(append(one), append(other))
    db = await one.current()
    del other
    gc.collect()
    await one.close()
    assert not db._database.is_open


async def test_a_given_handle_stays_open(db: SessionsDB) -> None:
    adapter = Handles(db)
    await append(adapter)
    await adapter.close()
    assert await adapter.current() is db
    assert await db.store.load("chat") == [HELLO]


def test_a_given_handle_belongs_to_its_event_loop(database: Database) -> None:
    loop = asyncio.new_event_loop()
    db = SessionsDB(database.url)
    adapter = Handles(db)
    loop.run_until_complete(append(adapter))
    with pytest.raises(HandleOpenedElsewhere):
        in_new_loop(partial(append, adapter))
    loop.run_until_complete(db.close())
    loop.close()


async def test_an_engine_is_used_and_not_disposed_of(tmp_path: Path) -> None:
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'own.db'}")
    adapter = Handles(engine)
    await append(adapter)
    await adapter.close()
    async with engine.connect() as connection:
        counted = await connection.exec_driver_sql("SELECT count(*) FROM messages")
        assert counted.scalar() == 1
    await engine.dispose()


async def test_an_adapter_of_an_engine_opens_again_after_it_was_closed(
    database: Database,
) -> None:
    engine = create_async_engine(urls.parse(database.url))
    adapter = Handles(engine)
    await append(adapter)
    await adapter.close()
    await adapter.close()
    await asyncio.gather(*(append(adapter) for _ in range(5)))
    assert await load(adapter) == [HELLO] * 6
    await adapter.close()
    await engine.dispose()


def test_a_database_in_memory_outlives_an_event_loop() -> None:
    adapter, other = Handles("sqlite://"), Handles("sqlite://")
    in_new_loop(partial(append, adapter))
    assert in_new_loop(partial(load, adapter)) == [HELLO]
    assert in_new_loop(partial(load, other)) is None
    folder = Path(adapter._url.removeprefix("sqlite:///")).parent
    assert folder.exists()
    del adapter
    gc.collect()
    assert not folder.exists()


async def test_an_adapter_stores_messages_larger_than_the_usual_limit(database: Database) -> None:
    adapter = Handles(database.url)
    large = {"role": "tool", "content": "x" * 2_000_000}
    db = await adapter.current()
    assert db.limits == ADAPTER_LIMITS
    await db.store.append("chat", [large])
    assert await load(adapter) == [large]
    await adapter.close()


@pytest.mark.parametrize("url", ["mysql://host/name", "", 5, None])
def test_a_url_that_cannot_be_used_is_refused_at_once(url: Any) -> None:
    with pytest.raises(InvalidArgument):
        Handles(url)


# ---- forms ---------------------------------------------------------------------------------------


async def test_a_session_is_made_with_the_mark_of_its_form(db: SessionsDB) -> None:
    made = await create_session(db, "chat", "openai-agents", channel="openai-agents", peer="chat")
    assert form_of(made) == "openai-agents"
    assert await find_session(db, "chat", "openai-agents") == await db.broker.get("chat")
    assert await find_session(db, "other", "openai-agents") is None


async def test_a_session_of_another_form_is_refused_by_name(db: SessionsDB) -> None:
    await create_session(db, "chat", "openai-agents", channel="openai-agents", peer="chat")
    for call in (find_session, create_session):
        options = {"channel": "a", "peer": "b"} if call is create_session else {}
        with pytest.raises(AnotherForm, match=r"chat has messages of openai-agents.*pydantic-ai"):
            await call(db, "chat", "pydantic-ai", **options)


async def test_one_of_two_forms_that_make_a_session_at_once_is_refused(db: SessionsDB) -> None:
    made = await asyncio.gather(
        *(create_session(db, "chat", form, channel="c", peer="p") for form in ("a", "b")),
        return_exceptions=True,
    )
    [refused] = [result for result in made if isinstance(result, Exception)]
    assert isinstance(refused, AnotherForm)
    assert {refused.form, refused.found} == {"a", "b"}


async def test_a_session_without_a_mark_is_of_any_form_while_it_is_empty(db: SessionsDB) -> None:
    await db.broker.register("chat", channel="cli", peer="ada")
    assert await find_session(db, "chat", "pydantic-ai") is not None
    await db.store.append("chat", [HELLO])
    with pytest.raises(AnotherForm, match="that no adapter wrote"):
        await find_session(db, "chat", "pydantic-ai")
    assert await find_session(db, "chat", "openai-agents", unmarked=True) is not None

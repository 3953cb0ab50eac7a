"""``SessionStore`` under the conformance kit of the Claude Agent SDK, and beside its own store."""

from __future__ import annotations

import asyncio
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from claude_agent_sdk import (
    ClaudeAgentOptions,
    InMemorySessionStore,
    ResultMessage,
    create_sdk_mcp_server,
    delete_session_via_store,
    fork_session_via_store,
    get_session_messages_from_store,
    list_sessions_from_store,
    project_key_for_directory,
    query,
    rename_session_via_store,
    tag_session_via_store,
    tool,
)
from claude_agent_sdk.testing import run_session_store_conformance
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from devtools.databases import Database
from sessionsdb import SessionsDB
from sessionsdb.adapters.claude_agent import SessionStore
from sessionsdb.adapters.forms import AnotherForm
from tests.frameworks import anthropic_endpoint

KEY: Any = {"project_key": "project", "session_id": "session"}
SUB: Any = {**KEY, "subpath": "subagents/agent-1"}

numbers = count()


@pytest.fixture
def store(db: SessionsDB) -> SessionStore:
    return SessionStore(db)


def entry(uuid: str | None = None, **more: Any) -> Any:
    return {"type": "user"} | ({} if uuid is None else {"uuid": uuid}) | more


async def test_the_sdk_s_conformance_kit_passes(db: SessionsDB) -> None:
    await run_session_store_conformance(
        lambda: SessionStore(db.in_namespace(f"kit-{next(numbers)}"))
    )


# ---- entries -------------------------------------------------------------------------------------


async def test_an_entry_with_a_known_uuid_is_stored_once(store: SessionStore) -> None:
    await store.append(KEY, [entry("a", n=1), entry("b", n=2), entry("a", n=1)])
    await store.append(KEY, [entry("b", n=2), entry("c", n=3)])  # a retry that overlaps
    assert await store.load(KEY) == [entry("a", n=1), entry("b", n=2), entry("c", n=3)]


async def test_an_entry_without_a_uuid_is_stored_each_time(store: SessionStore) -> None:
    for _ in range(2):
        await store.append(KEY, [entry(n=1), {"type": "x", "uuid": None}, entry("")])
    assert len(await store.load(KEY) or []) == 6


async def test_a_uuid_belongs_to_one_transcript(store: SessionStore) -> None:
    for key in (KEY, SUB, {**KEY, "session_id": "other"}):
        await store.append(key, [entry("a")])
        assert await store.load(key) == [entry("a")]


async def test_what_is_loaded_is_a_copy(store: SessionStore) -> None:
    given_ = entry("a", deep={"list": [1]})
    await store.append(KEY, [given_])
    given_["deep"]["list"].append(2)
    loaded = await store.load(KEY) or []
    loaded[0]["deep"]["list"].append(3)
    assert await store.load(KEY) == [entry("a", deep={"list": [1]})]


async def test_an_entry_is_equal_to_the_last_character(store: SessionStore) -> None:
    hard = [entry("a", text="\x00\ud800é", big=10**40, none=None, empty={}), entry("b", n=1.5)]
    await store.append(KEY, hard)
    assert await store.load(KEY) == hard


async def test_batches_at_once_are_stored_whole_and_folded_once(store: SessionStore) -> None:
    batches = [
        [entry(f"{n}-{i}", timestamp="2026-01-01T00:00:00Z") for i in range(5)] for n in range(8)
    ]
    await asyncio.gather(*(store.append(KEY, batch) for batch in batches * 2))
    loaded = await store.load(KEY) or []
    assert sorted(map(str, loaded)) == sorted(str(one) for batch in batches for one in batch)
    starts = range(0, 40, 5)
    assert [loaded[start : start + 5] for start in starts] == sorted(
        batches, key=lambda batch: loaded.index(batch[0])
    )


async def test_titles_of_batches_at_once_are_all_in_the_summary(store: SessionStore) -> None:
    given_ = [
        entry("a", customTitle="title"),
        entry("b", gitBranch="main"),
        entry("c", summary="hint"),
        entry("d", message={"content": "first"}),
    ]
    await asyncio.gather(*(store.append(KEY, [one]) for one in given_))
    [found] = await store.list_session_summaries("project")
    expected = {
        "custom_title": "title",
        "git_branch": "main",
        "summary_hint": "hint",
        "first_prompt": "first",
    }
    assert expected.items() <= found["data"].items()


async def test_a_repeated_entry_is_not_folded_again(store: SessionStore) -> None:
    await store.append(KEY, [entry("a", customTitle="old")])
    await store.append(KEY, [entry("b", customTitle="new")])
    await store.append(KEY, [entry("a", customTitle="old"), entry("c")])
    [found] = await store.list_session_summaries("project")
    assert found["data"]["custom_title"] == "new"


# ---- lists and subagents -------------------------------------------------------------------------


async def test_a_subagent_that_comes_first_makes_no_session(store: SessionStore) -> None:
    await store.append(SUB, [entry("s")])
    assert await store.load(KEY) is None
    assert await store.list_sessions("project") == []
    assert await store.list_session_summaries("project") == []
    assert await store.list_subkeys(KEY) == ["subagents/agent-1"]
    await store.append(KEY, [entry("m")])
    assert await store.load(KEY) == [entry("m")]
    assert [one["session_id"] for one in await store.list_sessions("project")] == ["session"]
    await store.delete(KEY)
    assert await store.load(SUB) is None


async def test_subagents_and_their_session_at_once(store: SessionStore) -> None:
    keys = [KEY, *({**KEY, "subpath": f"subagents/{n}"} for n in range(6))]
    await asyncio.gather(*(store.append(key, [entry("a")]) for key in keys * 2))
    assert [await store.load(key) for key in keys] == [[entry("a")]] * 7
    assert await store.list_subkeys(KEY) == [f"subagents/{n}" for n in range(6)]


async def test_an_ended_session_is_still_stored(store: SessionStore, db: SessionsDB) -> None:
    await store.append(KEY, [entry("a")])
    await db.broker.end(store.stored_id(KEY))
    await store.append(KEY, [entry("b")])
    await store.append(SUB, [entry("s")])
    assert await store.load(KEY) == [entry("a"), entry("b")]
    assert [one["session_id"] for one in await store.list_sessions("project")] == ["session"]


async def test_lists_are_newest_first_and_have_the_same_times(store: SessionStore) -> None:
    ids = [f"s{n}" for n in range(5)]
    for id in [*ids, "s2"]:
        await store.append({"project_key": "project", "session_id": id}, [entry()])
    listed = await store.list_sessions("project")
    assert [one["session_id"] for one in listed] == ["s2", "s4", "s3", "s1", "s0"]
    summaries = await store.list_session_summaries("project")
    assert [(one["session_id"], one["mtime"]) for one in summaries] == [
        (one["session_id"], one["mtime"]) for one in listed
    ]


async def test_names_with_slashes_are_not_confused(store: SessionStore) -> None:
    first: Any = {"project_key": "a/b", "session_id": "c"}
    second: Any = {"project_key": "a", "session_id": "b", "subpath": "c"}
    third: Any = {"project_key": "a", "session_id": "b/c"}
    for number, key in enumerate((first, second, third)):
        assert await store.load(key) is None
        await store.append(key, [entry(n=number)])
    assert [one["session_id"] for one in await store.list_sessions("a")] == ["b/c"]
    assert await store.list_subkeys({"project_key": "a", "session_id": "b"}) == ["c"]
    await store.delete({"project_key": "a", "session_id": "b"})
    assert await store.load(first) == [entry(n=0)]
    assert await store.load(third) == [entry(n=2)]


# ---- beside other sessions -----------------------------------------------------------------------


async def test_a_session_of_another_form_is_refused_by_name(
    store: SessionStore, db: SessionsDB
) -> None:
    await db.broker.register(
        store.stored_id(KEY), channel="x", peer="y", metadata={"form": "google-adk"}
    )
    for refused in (store.append(KEY, [entry("a")]), store.delete(KEY)):
        with pytest.raises(AnotherForm, match="google-adk"):
            await refused


async def test_a_session_reads_as_a_tree_of_the_broker(store: SessionStore, db: SessionsDB) -> None:
    said = {"role": "user", "content": "hello"}
    await store.append(KEY, [entry("a", message=said)])
    await store.append(SUB, [entry("b", message=said)])
    [parent] = await db.broker.list(channel="claude-agent", peer="project")
    [child] = await db.broker.list(parent=parent.id)
    assert (parent.id, child.id) == ("project/session", "project/session/subagents/agent-1")
    [kept] = await db.store.entries(parent.id)
    assert (kept.key, kept.message) == ("a", entry("a", message=said))


def test_a_store_of_a_url_works_in_one_event_loop_after_another(database: Database) -> None:
    store = SessionStore(database.url)
    asyncio.run(store.append(KEY, [entry("a")]))
    assert asyncio.run(store.load(KEY)) == [entry("a")]


async def test_the_sdk_s_own_functions_work_over_the_store(store: SessionStore) -> None:
    id = "0b9c3b4e-4a8e-4c7e-9f5d-1d9f1c6a7b11"
    folder = "/somewhere/project"
    key: Any = {"project_key": project_key_for_directory(folder), "session_id": id}
    turn = [
        entry(
            "6c1f1c1e-0000-4000-8000-000000000001",
            parentUuid=None,
            sessionId=id,
            timestamp="2026-01-01T00:00:00Z",
            message={"role": "user", "content": "hello"},
        ),
        {
            "type": "assistant",
            "uuid": "6c1f1c1e-0000-4000-8000-000000000002",
            "parentUuid": "6c1f1c1e-0000-4000-8000-000000000001",
            "sessionId": id,
            "timestamp": "2026-01-01T00:00:01Z",
            "message": {"role": "assistant", "content": [{"type": "text", "text": "hi"}]},
        },
    ]
    await store.append(key, turn)
    await rename_session_via_store(store, id, "a title", directory=folder)
    await tag_session_via_store(store, id, "a tag", directory=folder)
    [listed] = await list_sessions_from_store(store, directory=folder)
    assert (listed.session_id, listed.custom_title, listed.tag, listed.first_prompt) == (
        id,
        "a title",
        "a tag",
        "hello",
    )
    messages = await get_session_messages_from_store(store, id, directory=folder)
    assert [message.type for message in messages] == ["user", "assistant"]
    forked = await fork_session_via_store(store, id, directory=folder)
    assert len(await get_session_messages_from_store(store, forked.session_id, directory=folder))
    await delete_session_via_store(store, id, directory=folder)
    assert await store.load(key) is None


# ---- a real run ----------------------------------------------------------------------------------


@tool("look_up", "Look up a word", {"word": str})
async def look_up(arguments: dict[str, Any]) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": arguments["word"].upper()}]}


@pytest.mark.parametrize("kind", ["sqlite"])  # it starts the SDK's program: 3 seconds a turn
async def test_an_agent_is_resumed_from_the_store_and_can_be_read(
    store: SessionStore, db: SessionsDB, tmp_path: Path
) -> None:
    name = "mcp__words__look_up"
    session_id = None
    for turn, word in enumerate(("one", "two")):
        # Each turn has an empty home, so all that is resumed comes from the store.
        home = tmp_path / f"home-{turn}"
        home.mkdir()
        async with anthropic_endpoint.running(name) as url:
            options = ClaudeAgentOptions(
                session_store=store,
                resume=session_id,
                cwd=tmp_path,
                model="claude-sonnet-4-5",
                tools=[],
                mcp_servers={"words": create_sdk_mcp_server("words", tools=[look_up])},
                allowed_tools=[name],
                setting_sources=[],
                env={
                    "ANTHROPIC_BASE_URL": url,
                    "ANTHROPIC_API_KEY": "none",
                    "HOME": str(home),
                    "CLAUDE_CONFIG_DIR": str(home),
                    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
                },
            )
            said = [message async for message in query(prompt=word, options=options)]
        result = said[-1]
        assert isinstance(result, ResultMessage)
        assert (result.result or "").strip() == f"It says {word.upper()}."
        session_id = result.session_id
    [listed] = await db.broker.list(channel="claude-agent")
    assert session_id is not None
    assert listed.id.endswith(session_id)
    shown = await db.broker.history(listed.id, 100)
    said_there = [(one.role, one.content.strip()) for one in shown]
    assert [one for one in said_there if any(mark in one[1] for mark in ("says", "tool_"))] == [
        ("assistant", f'[tool_use: {name} input={{"word":"one"}}]'),
        ("tool", "[tool_result: ONE]"),
        ("assistant", "It says ONE."),
        ("assistant", f'[tool_use: {name} input={{"word":"two"}}]'),
        ("tool", "[tool_result: TWO]"),
        ("assistant", "It says TWO."),
    ]
    assert {("user", "one"), ("user", "two")} <= set(said_there)


# ---- differential --------------------------------------------------------------------------------

names = st.sampled_from(["a", "b"])
keys = st.fixed_dictionaries(
    {"project_key": names, "session_id": names},
    optional={"subpath": st.sampled_from(["subagents/x", "subagents/y"])},
)
batches = st.lists(
    st.fixed_dictionaries(
        {"type": st.sampled_from(["user", "assistant", "tag", "summary"])},
        optional={
            "uuid": st.integers(0, 15).map(str),
            "timestamp": st.just("2026-01-01T00:00:00.000Z"),
            "customTitle": st.text(max_size=3),
            "tag": st.text(max_size=2),
            "isSidechain": st.booleans(),
            "message": st.builds(lambda text: {"content": text}, st.text(max_size=4)),
            "more": st.none() | st.lists(st.integers(), max_size=2),
        },
    ),
    min_size=1,
    max_size=4,
)
steps = st.one_of(
    st.tuples(st.just("append"), keys, batches),
    st.tuples(st.just("append"), keys, batches),
    st.tuples(st.just("load"), keys, st.none()),
    st.tuples(st.just("delete"), keys, st.none()),
    st.tuples(st.just("list"), names, st.none()),
    st.tuples(st.just("subkeys"), names, names),
)


class Reference(InMemorySessionStore):
    """The SDK's own store, which does not know that a ``uuid`` is a key."""

    async def append(self, key: Any, entries: list[Any]) -> None:
        seen = {one.get("uuid") for one in await self.load(key) or []} - {None}
        new = []
        for one in entries:
            if (uuid := one.get("uuid")) not in seen:
                new.append(one)
                seen |= {uuid} - {None}
        if new:
            await super().append(key, new)


async def answer(store: Any, prefix: str, step: Any) -> Any:
    what, where, more = step
    if isinstance(where, dict):
        where = where | {"project_key": prefix + where["project_key"]}
    if what == "append":
        return await store.append(where, more)
    if what in ("load", "delete"):
        return await getattr(store, what)(where)
    if what == "subkeys":
        key = {"project_key": prefix + where, "session_id": more}
        return sorted(await store.list_subkeys(key))
    listed = await store.list_sessions(prefix + where)
    summaries = await store.list_session_summaries(prefix + where)
    return (
        sorted(one["session_id"] for one in listed),
        sorted((one["session_id"], sorted(one["data"].items())) for one in summaries),
    )


@settings(
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(done=st.lists(steps, min_size=5, max_size=25))
async def test_it_answers_as_the_sdk_s_store_in_memory(
    store: SessionStore, done: list[Any]
) -> None:
    prefix = f"{next(numbers)}-"
    reference = Reference()
    for step in done:
        expected = await answer(reference, prefix, step)
        assert await answer(store, prefix, step) == expected, step

"""The adapters of Microsoft Agent Framework beside its own classes, and under an agent."""

from __future__ import annotations

import asyncio
import copy
import math
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import pytest
from agent_framework import (
    Agent,
    AgentSession,
    BaseChatClient,
    ChatResponse,
    Content,
    Executor,
    FunctionInvocationLayer,
    InMemoryCheckpointStorage,
    InMemoryHistoryProvider,
    Message,
    WorkflowBuilder,
    WorkflowCheckpoint,
    WorkflowCheckpointException,
    WorkflowContext,
    handler,
)
from agent_framework import SessionStore as InMemorySessionStore
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from devtools.databases import Database
from sessionsdb import InvalidMessage, SessionsDB
from sessionsdb.adapters.agent_framework import CheckpointStorage, HistoryProvider, SessionStore
from sessionsdb.adapters.forms import AnotherForm

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # experimental, says the framework

numbers = count()
differential = settings(
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture
def history(db: SessionsDB) -> HistoryProvider:
    return HistoryProvider(db)


def dicts(messages: Sequence[Message]) -> list[dict[str, Any]]:
    return [message.to_dict() for message in messages]


def texts(messages: Sequence[Message]) -> list[str]:
    return [message.text for message in messages]


# ---- history -------------------------------------------------------------------------------------


async def test_messages_come_back_as_they_were_saved(history: HistoryProvider) -> None:
    messages = [
        Message("user", ["é\x00\ud800"], author_name="alice", message_id="m"),
        Message(
            "assistant",
            [Content.from_function_call("c", "look", arguments={"n": None, "big": 10**30})],
            additional_properties={"mine": [1]},
        ),
        Message("tool", [Content.from_function_result("c", result="found")]),
    ]
    await history.save_messages("s", messages)
    assert dicts(await history.get_messages("s")) == dicts(messages)
    assert await history.get_messages("unknown") == []


async def test_a_whole_conversation_that_is_saved_again_adds_its_new_messages(
    history: HistoryProvider,
) -> None:
    conversation: list[Message] = []
    for turn in range(30):
        conversation += [Message("user", [f"q{turn}"]), Message("assistant", [f"a{turn}"])]
        await history.save_messages("s", conversation)
    assert dicts(await history.get_messages("s")) == dicts(conversation)


async def test_a_save_reads_the_end_of_a_long_history_only(
    history: HistoryProvider, db: SessionsDB
) -> None:
    await history.save_messages("s", [Message("user", ["first"])])
    id = history.stored_id("s")
    known = [Message("user", [f"{n}"], message_id=f"{n}") for n in range(30)]
    # The framework can't read the first of these, so nothing that reads it succeeds.
    await db.store.append(id, [{"role": "user", "content": "unreadable"}, *dicts(known[:20])])
    await history.save_messages("s", known[15:25])
    await history.save_messages("s", known[20:30])
    kept = await db.store.entries(id, 30)
    assert [entry.message for entry in kept] == dicts(known)
    with pytest.raises(Exception, match="content"):
        await history.get_messages("s")


async def test_saves_at_once_lose_and_double_nothing(history: HistoryProvider) -> None:
    batches = [[Message("user", [f"{n}-{i}"], message_id=f"{n}-{i}") for i in range(3)]
               for n in range(8)]  # fmt: skip
    await asyncio.gather(*(history.save_messages("s", batch) for batch in batches))
    found = texts(await history.get_messages("s"))
    assert sorted(found) == sorted(text for batch in batches for text in texts(batch))
    assert all(found[found.index(b[0].text) :][:3] == texts(b) for b in batches)


async def test_each_provider_and_each_session_has_its_own_history(db: SessionsDB) -> None:
    one, other = HistoryProvider(db), HistoryProvider(db, source_id="audit/log")
    places: list[tuple[HistoryProvider, str | None]] = [
        (provider, id) for provider in (one, other) for id in ("s", "s/t", "", None, "None")
    ]
    for number, (provider, id) in enumerate(places):
        assert await provider.get_messages(id) == []
        await provider.save_messages(id, [Message("user", [str(number)])])
    for number, (provider, id) in enumerate(places):
        assert texts(await provider.get_messages(id)) == [str(number)]


async def test_messages_that_a_compaction_excluded_can_be_left_out(db: SessionsDB) -> None:
    excluded = Message("user", ["old"], additional_properties={"_excluded": True})
    await HistoryProvider(db).save_messages("s", [excluded, Message("user", ["new"])])
    assert texts(await HistoryProvider(db).get_messages("s")) == ["old", "new"]
    assert texts(await HistoryProvider(db, skip_excluded=True).get_messages("s")) == ["new"]


async def test_a_history_of_another_form_is_refused_by_name(
    history: HistoryProvider, db: SessionsDB
) -> None:
    await db.broker.register(
        history.stored_id("s"), channel="x", peer="y", metadata={"form": "google-adk"}
    )
    for refused in (
        history.get_messages("s"),
        history.save_messages("s", [Message("user", ["x"])]),
    ):
        with pytest.raises(AnotherForm, match="google-adk"):
            await refused


async def test_a_refused_batch_leaves_nothing(history: HistoryProvider) -> None:
    large = [Message("user", ["small"]), Message("user", ["x" * 2_000_000])]
    with pytest.raises(InvalidMessage, match=r"message 1: .*Limits\.message_bytes"):
        await history.save_messages("s", large)
    assert await history.get_messages("s") == []


def test_a_provider_of_a_url_works_in_one_event_loop_after_another(database: Database) -> None:
    history = HistoryProvider(database.url)
    asyncio.run(history.save_messages("s", [Message("user", ["x"])]))
    assert texts(asyncio.run(history.get_messages("s"))) == ["x"]


messages = st.builds(
    lambda role, text, id: Message(role, [text], message_id=id),
    st.sampled_from(["user", "assistant"]),
    st.sampled_from(["a", "b"]),
    st.none() | st.sampled_from(["1", "2", "3"]),
)


@differential
@given(
    saves=st.lists(
        st.tuples(st.sampled_from(["s", "t", None]), st.lists(messages, max_size=5), st.booleans()),
        max_size=12,
    )
)
async def test_it_keeps_the_messages_that_the_provider_in_memory_keeps(
    history: HistoryProvider, saves: list[tuple[str | None, list[Message], bool]]
) -> None:
    prefix = f"{next(numbers)}-"
    reference = InMemoryHistoryProvider()
    states: dict[str | None, dict[str, Any]] = {}
    for id, batch, replays in saves:
        state = states.setdefault(id, {})
        known = await reference.get_messages(id, state=state)
        given_ = [*known, *batch] if replays else batch
        await reference.save_messages(id, given_, state=state)
        await history.save_messages(f"{prefix}{id}", given_)
        expected = await reference.get_messages(id, state=state)
        assert dicts(await history.get_messages(f"{prefix}{id}")) == dicts(expected)


# ---- sessions ------------------------------------------------------------------------------------


@pytest.fixture
def sessions(db: SessionsDB) -> SessionStore:
    return SessionStore(db)


async def test_snapshots_are_independent_copies(sessions: SessionStore) -> None:
    session = AgentSession(session_id="inner", service_session_id={"id": ["x"]})
    session.state = {"list": [1], "messages": [Message("user", ["hello"])]}
    await sessions.set("one", session)
    session.state["list"].append(2)
    await sessions.set("two", session)
    first = await sessions.get("one")
    assert first is not None
    assert (first.session_id, first.service_session_id) == ("inner", {"id": ["x"]})
    assert first.state["list"] == [1]
    assert texts(first.state["messages"]) == ["hello"]
    first.state["list"].append(3)
    again, second = await sessions.get("one"), await sessions.get("two")
    assert again is not None
    assert second is not None
    assert (again.state["list"], second.state["list"]) == ([1], [1, 2])


async def test_a_snapshot_that_can_t_be_restored_is_refused(sessions: SessionStore) -> None:
    class Own(AgentSession):
        pass

    await sessions.set("s", AgentSession(session_id="kept"))
    unknown = AgentSession()
    unknown.state["x"] = object()
    with pytest.raises(ValueError), pytest.warns(RuntimeWarning, match=r"state\.x"):
        await sessions.set("s", unknown)
    with pytest.raises(TypeError):
        await sessions.set("s", Own())
    for call in (sessions.get(""), sessions.set("", AgentSession()), sessions.delete("")):
        with pytest.raises(ValueError):
            await call
    found = await sessions.get("s")
    assert found is not None
    assert found.session_id == "kept"


async def test_snapshots_at_once_leave_one_of_them(sessions: SessionStore, db: SessionsDB) -> None:
    await asyncio.gather(*(sessions.set("s", AgentSession(session_id=f"{n}")) for n in range(10)))
    found = await sessions.get("s")
    assert found is not None
    [kept] = await db.store.entries(sessions.stored_id("s"))
    assert kept.message["session_id"] == found.session_id


session_steps = st.tuples(
    st.sampled_from(["get", "set", "set", "delete"]),
    st.sampled_from(["a", "a/b"]),
    st.dictionaries(st.text(max_size=2), st.none() | st.integers() | st.lists(st.text(max_size=2))),
)


@differential
@given(done=st.lists(session_steps, max_size=15))
async def test_it_answers_as_the_session_store_in_memory(
    sessions: SessionStore, done: list[tuple[str, str, dict[str, Any]]]
) -> None:
    prefix = f"{next(numbers)}-"
    reference = InMemorySessionStore()
    for what, id, state in done:
        answers = []
        for store in (reference, sessions):
            if what == "set":
                session = AgentSession(session_id="x")
                session.state = copy.deepcopy(state)
                await store.set(prefix + id, session)
            elif what == "delete":
                await store.delete(prefix + id)
            found = await store.get(prefix + id)
            answers.append(None if found is None else found.to_dict())
        assert answers[0] == answers[1]


# ---- checkpoints ---------------------------------------------------------------------------------


@dataclass
class Own:
    value: int


@pytest.fixture
def checkpoints(db: SessionsDB) -> CheckpointStorage:
    return CheckpointStorage(db)


def checkpoint(id: str, workflow: str = "w", at: int = 0, **fields: Any) -> WorkflowCheckpoint:
    return WorkflowCheckpoint(
        workflow, "hash", checkpoint_id=id, timestamp=f"2026-01-01T00:00:0{at}+00:00", **fields
    )


async def test_a_checkpoint_comes_back_with_its_python_values(
    checkpoints: CheckpointStorage,
) -> None:
    state = {"set": {1, 2}, "inf": float("-inf"), "text": "\x00", "deep": [{"tuple": (1, 2)}]}
    given_ = checkpoint("c", state=state, metadata={"n": None})
    assert await checkpoints.save(given_) == "c"
    found = await checkpoints.load("c")
    assert found == given_
    found.state["set"].add(3)
    assert await checkpoints.load("c") == given_
    not_a_number = checkpoint("d", state={"nan": [float("nan")]})
    await checkpoints.save(not_a_number)
    [value] = (await checkpoints.load("d")).state["nan"]
    assert math.isnan(value)


async def test_a_type_of_the_application_must_be_allowed(
    checkpoints: CheckpointStorage, db: SessionsDB
) -> None:
    given_ = checkpoint("c", state={"own": Own(1)})
    with pytest.raises(WorkflowCheckpointException, match="Own"):
        await checkpoints.save(given_)
    with pytest.raises(WorkflowCheckpointException, match="c"):
        await checkpoints.load("c")
    allowing = CheckpointStorage(db, allowed_checkpoint_types=[f"{__name__}:Own"])
    await allowing.save(given_)
    assert await allowing.load("c") == given_
    with pytest.raises(WorkflowCheckpointException, match="Own"):
        await checkpoints.load("c")


async def test_an_id_that_no_key_can_be_is_no_checkpoint(checkpoints: CheckpointStorage) -> None:
    with pytest.raises(WorkflowCheckpointException):
        await checkpoints.load("x" * 300)
    assert await checkpoints.delete("x" * 300) is False
    with pytest.raises(WorkflowCheckpointException, match="256"):
        await checkpoints.save(checkpoint("x" * 300))


async def test_saves_of_one_checkpoint_at_once_store_it_once(
    checkpoints: CheckpointStorage,
) -> None:
    await asyncio.gather(*(checkpoints.save(checkpoint("c", iteration_count=n)) for n in range(8)))
    assert await checkpoints.list_checkpoint_ids(workflow_name="w") == ["c"]
    assert await checkpoints.get_latest(workflow_name="w") == await checkpoints.load("c")


async def test_the_latest_checkpoint_is_known_after_each_change(
    checkpoints: CheckpointStorage,
) -> None:
    async def latest() -> str | None:
        found = await checkpoints.get_latest(workflow_name="w")
        return None if found is None else found.checkpoint_id

    for id, at in (("b", 2), ("a", 1), ("c", 2)):
        await checkpoints.save(checkpoint(id, at=at))
    assert await latest() == "b"  # the first one with the latest time
    await checkpoints.delete("b")
    assert await latest() == "c"
    await checkpoints.save(checkpoint("c", at=0))
    assert await latest() == "a"
    await checkpoints.delete("a")
    await checkpoints.save(checkpoint("c", workflow="other"))
    assert await latest() is None


checkpoint_steps = st.tuples(
    st.sampled_from(["save", "save", "load", "delete", "list"]),
    st.sampled_from(["1", "2", "3", "4"]),
    st.sampled_from(["w", "w/2"]),
    st.integers(0, 3),
)


async def answer(storage: Any, prefix: str, step: tuple[str, str, str, int]) -> Any:
    what, id, workflow, at = step
    if what == "save":
        return await storage.save(checkpoint(prefix + id, prefix + workflow, at, state={"at": at}))
    if what == "delete":
        return await storage.delete(prefix + id)
    if what == "load":
        try:
            return await storage.load(prefix + id)
        except WorkflowCheckpointException as error:
            return str(error)
    name = prefix + workflow
    found = await storage.list_checkpoints(workflow_name=name)
    latest = await storage.get_latest(workflow_name=name)
    ids = await storage.list_checkpoint_ids(workflow_name=name)
    assert ids == [one.checkpoint_id for one in found]
    # Of several with the latest timestamp each is right.
    return sorted(map(str, found)), None if latest is None else latest.timestamp


@differential
@given(done=st.lists(checkpoint_steps, max_size=20))
async def test_it_answers_as_the_checkpoint_storage_in_memory(
    checkpoints: CheckpointStorage, done: list[tuple[str, str, str, int]]
) -> None:
    prefix = f"{next(numbers)}-"
    reference = InMemoryCheckpointStorage()
    for step in done:
        expected = await answer(reference, prefix, step)
        assert await answer(checkpoints, prefix, step) == expected, step


# ---- real runs -----------------------------------------------------------------------------------


class ScriptedClient(FunctionInvocationLayer[Any], BaseChatClient[Any]):
    """Calls the tool once a turn, and then says what it returned."""

    def _inner_get_response(
        self, *, messages: Sequence[Message], stream: bool, options: Mapping[str, Any], **_: Any
    ) -> Awaitable[ChatResponse]:
        last = messages[-1].contents[-1]
        if last.type == "function_result":
            content = Content.from_text(f"{last.result} ({len(messages)} messages)")
        else:
            content = Content.from_function_call("c", "look_up", arguments={"word": last.text})

        async def respond() -> ChatResponse:
            return ChatResponse(messages=[Message("assistant", [content])])

        return respond()


def look_up(word: str) -> str:
    """Look up a word."""
    return word.upper()


async def test_an_agent_s_run_is_stored_and_can_be_read(
    history: HistoryProvider, sessions: SessionStore, db: SessionsDB
) -> None:
    agent = Agent(ScriptedClient(), tools=[look_up], context_providers=[history])
    await sessions.set("s", agent.create_session(session_id="s"))
    for turn, word in enumerate(("one", "two")):
        session = await sessions.get("s")
        response = await agent.run(word, session=session)
        assert response.text == f"{word.upper()} ({4 * turn + 3} messages)"
        await sessions.set("s", session)
    found = await history.get_messages("s")
    assert [message.role for message in found] == ["user", "assistant", "tool", "assistant"] * 2
    [listed] = await db.broker.list(channel="agent-framework", peer="s")
    assert (listed.id, listed.message_count) == (history.stored_id("s"), 8)
    shown = await db.broker.history(listed.id)
    assert [(one.role, one.content) for one in shown[4:]] == [
        ("user", "two"),
        ("assistant", '[tool_use: look_up input={"word":"two"}]'),
        ("tool", "[tool_result: TWO]"),
        ("assistant", "TWO (7 messages)"),
    ]


class Doubling(Executor):
    @handler
    async def double(self, number: int, context: WorkflowContext[int, int]) -> None:
        context.set_state(self.id, {number})
        if number < 8:
            await context.send_message(number * 2)
        else:
            await context.yield_output(number * 2)


async def test_a_workflow_goes_on_from_a_checkpoint(checkpoints: CheckpointStorage) -> None:
    def workflow() -> Any:
        first, second = Doubling("first"), Doubling("second")
        builder = WorkflowBuilder(
            name="doubling", start_executor=first, checkpoint_storage=checkpoints
        )
        return builder.add_edge(first, second).add_edge(second, first).build()

    assert (await workflow().run(1)).get_outputs() == [16]
    kept = await checkpoints.list_checkpoints(workflow_name="doubling")
    assert len(kept) >= 4
    latest = await checkpoints.get_latest(workflow_name="doubling")
    assert latest == kept[-1]
    result = await workflow().run(checkpoint_id=kept[1].checkpoint_id)
    assert result.get_outputs() == [16]

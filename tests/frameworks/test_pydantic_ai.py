"""``ConversationStore`` for Pydantic AI, beside the framework's store in memory."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable, Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic_ai import Agent
from pydantic_ai.conversation import Conversation
from pydantic_ai.conversation_store import (
    ConversationConflict,
    ConversationEntry,
    ConversationRecord,
    InMemoryConversationStore,
)
from pydantic_ai.conversation_store import ConversationStore as FrameworkStore
from pydantic_ai.exceptions import UserError
from pydantic_ai.messages import (
    BinaryContent,
    ModelMessage,
    ModelRequest,
    ModelResponse,
    TextPart,
    ToolCallPart,
    UserPromptPart,
)
from pydantic_ai.models.test import TestModel
from pydantic_ai.tools import DeferredToolRequests
from pydantic_ai.usage import RunUsage

from devtools.databases import Database
from sessionsdb import InvalidMessage, SessionsDB
from sessionsdb.adapters.forms import AnotherForm, create_session, form_of
from sessionsdb.adapters.pydantic_ai import FORM, ConversationStore
from sessionsdb.admin.purge import purge
from sessionsdb.operations.retention import RetentionRules


def asked(text: str) -> ModelRequest:
    return ModelRequest(parts=[UserPromptPart(text)])


def replied(text: str) -> ModelResponse:
    return ModelResponse(parts=[TextPart(text)])


def turn(text: str) -> list[ModelMessage]:
    return [asked(text), replied(text.upper())]


def texts(conversation: Conversation | None) -> list[str]:
    assert conversation is not None
    return [str(message.parts[0].content) for message in conversation.messages]


@pytest.fixture
def store(db: SessionsDB) -> ConversationStore:
    return ConversationStore(db)


async def saved(
    store: FrameworkStore, id: str, *words: str, scope: str | None = None
) -> Conversation:
    """Add a turn for each word to a conversation, one save for each."""
    conversation = await store.load(id) or Conversation(conversation_id=id)
    for word in words:
        conversation.messages += turn(word)
        await store.save(conversation, scope=scope)
    return conversation


# ---- a conversation ------------------------------------------------------------------------------


async def test_a_conversation_comes_back_whole(store: ConversationStore) -> None:
    call = ToolCallPart("approve", {"path": "notes.txt"}, tool_call_id="call-1")
    pdf = BinaryContent(b"\x00\xff", media_type="application/pdf")
    conversation = Conversation(
        conversation_id="chat",
        messages=[
            ModelRequest(parts=[UserPromptPart(["look", pdf])]),
            ModelResponse(parts=[TextPart("a \x00 \ud800 text"), call], model_name="m"),
        ],
        usage=RunUsage(requests=2, input_tokens=3, output_tokens=4, tool_calls=1),
        deferred_tool_requests=DeferredToolRequests(approvals=[call]),
    )
    entries = await store.save(conversation, scope="alice")
    assert len(entries) == 2
    found = await store.load("chat", scope="alice")
    assert found == conversation
    assert await store.load_entries("chat") == entries
    assert await store.load("chat", scope="bob") is None


async def test_a_run_of_an_agent_is_saved_and_continued(store: ConversationStore) -> None:
    agent = Agent(TestModel(custom_output_text="fine"))
    conversation = Conversation(conversation_id="chat")
    for prompt in ("one", "two"):
        result = await agent.run(prompt, conversation=conversation)
        assert len(await store.save(result)) == 2
        found = await store.load("chat")
        assert found is not None
        conversation = found
    assert texts(conversation) == ["one", "fine", "two", "fine"]
    assert conversation.usage.requests == 2


async def test_only_the_last_messages_are_loaded(store: ConversationStore) -> None:
    await saved(store, "chat", "a", "b", "c")
    window = await store.load("chat", limit=3)
    assert texts(window) == ["B", "c", "C"]
    assert window is not None
    window.messages += turn("d")
    assert len(await store.save(window)) == 2
    assert texts(await store.load("chat")) == ["a", "A", "b", "B", "c", "C", "d", "D"]
    assert texts(await store.load("chat", limit=0)) == []


async def test_the_broker_shows_a_conversation(db: SessionsDB, store: ConversationStore) -> None:
    await saved(store, "chat", "hello", scope="alice")
    details = await db.broker.get("chat")
    assert (details.channel, details.peer, form_of(details)) == (FORM, "alice", FORM)
    assert details.message_count == 2
    assert [entry.message["kind"] for entry in await db.store.entries("chat")] == [
        "request",
        "response",
    ]
    entries = await store.load_entries("chat")
    assert entries is not None
    assert [entry.key for entry in await db.store.entries("chat")] == [one.id for one in entries]


async def test_a_long_history_is_read_page_by_page(store: ConversationStore) -> None:
    conversation = Conversation(
        conversation_id="chat", messages=[asked(str(number)) for number in range(1_203)]
    )
    await store.save(conversation)
    words = [str(number) for number in range(1_203)]
    assert texts(await store.load("chat")) == words
    assert texts(await store.load("chat", limit=700)) == words[-700:]


# ---- writers at the same time --------------------------------------------------------------------


async def test_one_of_many_writers_saves_and_the_others_have_written_nothing(
    db: SessionsDB, store: ConversationStore
) -> None:
    await saved(store, "chat", "a")
    writers = [await store.load("chat") for _ in range(8)]
    for number, writer in enumerate(writers):
        assert writer is not None
        writer.messages += turn(f"w{number}")
    saves = [ConversationStore(db).save(writer) for writer in writers if writer]
    results = await asyncio.gather(*saves, return_exceptions=True)
    assert sum(isinstance(result, ConversationConflict) for result in results) == 7
    assert len(await db.store.load("chat") or []) == 4
    assert len(texts(await store.load("chat"))) == 4


async def test_one_of_many_creators_creates(store: ConversationStore) -> None:
    results = await asyncio.gather(
        *(
            store.save(Conversation(conversation_id="chat", messages=turn(str(number))))
            for number in range(8)
        ),
        return_exceptions=True,
    )
    assert sum(isinstance(result, ConversationConflict) for result in results) == 7
    assert len(texts(await store.load("chat"))) == 2


async def test_a_fork_and_a_delete_at_once_leave_no_broken_conversation(
    store: ConversationStore,
) -> None:
    for number in range(10):
        source = f"source-{number}"
        await saved(store, source, "a", "b")
        forked, _ = await asyncio.gather(
            store.fork(source, at=2, new_conversation_id=f"fork-{number}"),
            store.delete(source),
            return_exceptions=True,
        )
        assert await store.load(source) is None
        if isinstance(forked, Exception):
            assert isinstance(forked, UserError)
            assert await store.load(f"fork-{number}") is None
        else:
            assert texts(await store.load(f"fork-{number}")) == ["a", "A"]


async def test_a_head_that_does_not_exist_is_a_conflict(store: ConversationStore) -> None:
    record = ConversationRecord(conversation_id="chat", head_id="nowhere")
    with pytest.raises(ConversationConflict):
        await store.write_record(record, expected_revision=None)
    assert await store.read_record("chat") is None
    with pytest.raises(LookupError):
        await store.read_entry("nowhere")


async def test_a_deleted_and_remade_conversation_refuses_an_older_copy(
    store: ConversationStore,
) -> None:
    older = await saved(store, "chat", "a")
    await store.delete("chat")
    await saved(store, "chat", "b")
    older.messages += turn("c")
    with pytest.raises(ConversationConflict):
        await store.save(older)
    assert texts(await store.load("chat")) == ["b", "B"]


# ---- forks and branches --------------------------------------------------------------------------


async def test_a_fork_stores_no_message_again(db: SessionsDB, store: ConversationStore) -> None:
    await saved(store, "chat", "a", "b")
    fork = await store.fork("chat", at=2, new_conversation_id="fork")
    fork.messages += turn("c")
    await store.save(fork)
    assert texts(await store.load("fork")) == ["a", "A", "c", "C"]
    assert len(await db.store.load("fork") or []) == 2
    of_chat, of_fork = await store.load_entries("chat"), await store.load_entries("fork")
    assert of_chat is not None
    assert of_fork is not None
    assert of_fork[:2] == of_chat[:2]


async def test_a_deleted_source_keeps_only_what_its_forks_use(
    db: SessionsDB, store: ConversationStore
) -> None:
    await saved(store, "chat", "a", "b", "c")
    fork = await store.fork("chat", at=4, new_conversation_id="fork")
    await store.fork("fork", at=2, new_conversation_id="fork of the fork")
    await store.delete("chat")
    assert await store.load("chat") is None
    assert [one.conversation_id for one in await store.list_conversations()] == [
        "fork of the fork",
        "fork",
    ]
    assert texts(await store.load("fork")) == ["a", "A", "b", "B"]
    assert len(await db.store.load("chat") or []) == 4
    fork.messages += turn("d")
    await store.save(fork)
    await store.delete("fork")
    assert await db.store.load("fork") is None
    assert texts(await store.load("fork of the fork")) == ["a", "A"]
    assert len(await db.store.load("chat") or []) == 2
    await store.delete("fork of the fork")
    assert await db.broker.list() == []


async def test_a_remade_source_and_its_older_fork_go_on_side_by_side(
    store: ConversationStore,
) -> None:
    await saved(store, "chat", "a", "b")
    await store.fork("chat", at=2, new_conversation_id="fork")
    await store.delete("chat")
    await saved(store, "chat", "x", "y")
    assert texts(await store.load("chat")) == ["x", "X", "y", "Y"]
    assert texts(await store.load("fork")) == ["a", "A"]
    await store.delete("fork")
    assert texts(await store.load("chat")) == ["x", "X", "y", "Y"]


async def test_a_branch_that_was_left_can_be_taken_again(store: ConversationStore) -> None:
    conversation = await saved(store, "chat", "a", "b")
    branch = await store.branch("chat", at=2, expected_revision=conversation.revision)
    branch.messages += turn("c")
    await store.save(branch)
    [record] = await store.list_conversations()
    back = await store.branch(
        "chat", from_entry=record.branches[0], expected_revision=branch.revision
    )
    assert texts(back) == texts(await store.load("chat")) == ["a", "A", "b", "B"]


async def test_the_end_of_a_source_that_a_branch_of_its_fork_left_is_kept(
    store: ConversationStore,
) -> None:
    """Its fork left the last message of the source as a branch, and may go back there."""
    await saved(store, "chat", "a", "b")
    fork = await store.fork("chat", new_conversation_id="fork")
    await store.branch("fork", at=1, expected_revision=fork.revision)
    await store.delete("chat")
    record = await store.read_record("fork")
    assert record is not None
    assert len(await store.read_history(record.branches[0])) == 4
    assert texts(await store.load("fork")) == ["a"]


# ---- lists ---------------------------------------------------------------------------------------


async def test_lists_are_by_scope_and_newest_first(store: ConversationStore) -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    scopes = {"a": "alice", "b": None, "c": "alice", "d": "", "e": "b", "f": "x\x00" + 5_000 * "y"}
    for number, (id, scope) in enumerate(scopes.items()):
        record = ConversationRecord(
            conversation_id=id,
            head_id=None,
            scope=scope,
            updated_at=start + timedelta(hours=-number if id == "c" else number),
        )
        await store.write_record(record, expected_revision=None)

    async def listed(**options: Any) -> str:
        return "".join(one.conversation_id for one in await store.list_conversations(**options))

    assert await listed() == "fedbac"
    assert await listed(limit=2) == "fe"
    assert await listed(scope="alice") == "ac"
    assert await listed(scope="alice", limit=1) == "a"
    assert await listed(scope="b", limit=1) == "e"  # not the conversation b, whose peer it is
    assert await listed(scope="") == "d"
    assert await listed(scope=scopes["f"]) == "f"
    assert await listed(limit=0) == await listed(scope="nobody") == ""


# ---- a purge -------------------------------------------------------------------------------------


async def test_a_conversation_goes_on_when_its_old_messages_were_purged(
    db: SessionsDB, store: ConversationStore
) -> None:
    conversation = await saved(store, "chat", "a", "b")
    branch = await store.branch("chat", at=2, expected_revision=conversation.revision)
    await store.fork("chat", new_conversation_id="fork")
    between = (await db.store.entries("chat"))[1].created_at
    branch.messages += turn("c")
    await store.save(branch)
    await purge(db, RetentionRules(messages_before=between + timedelta(microseconds=1)))
    assert texts(await store.load("chat")) == ["c", "C"]
    assert texts(await store.load("fork")) == []
    fork = await saved(store, "fork", "d")
    assert texts(fork) == texts(await store.load("fork")) == ["d", "D"]
    await purge(db, RetentionRules(messages_before=datetime.now(UTC) + timedelta(hours=1)))
    assert texts(await saved(store, "chat", "e")) == ["e", "E"]
    for id in ("chat", "fork"):
        await store.delete(id)
    assert await db.broker.list() == []


# ---- what is refused -----------------------------------------------------------------------------


async def test_a_session_with_other_messages_is_refused(
    db: SessionsDB, store: ConversationStore
) -> None:
    await create_session(db, "openai", "openai-agents", channel="openai-agents", peer="p")
    await db.store.append("plain", [{"role": "user", "content": "hello"}])
    for id in ("openai", "plain"):
        assert await store.load(id) is None
        with pytest.raises(AnotherForm, match=f"session {id} has messages"):
            await store.save(Conversation(conversation_id=id, messages=turn("a")))
        assert await store.load(id) is None
    await db.broker.register("empty", channel="cli", peer="ada", metadata={"mine": 1})
    await saved(store, "empty", "a")
    assert (await db.broker.get("empty")).metadata == {"mine": 1, "form": FORM}


async def test_ids_that_no_session_has(store: ConversationStore) -> None:
    for id in ("", "x" * 600, "a\x00b"):
        assert await store.load(id) is None
        await store.delete(id)
        with pytest.raises(ConversationConflict):
            await store.delete_record(id, expected_revision="1")
        with pytest.raises(ValueError, match="session id"):
            await store.save(Conversation(conversation_id=id, messages=turn("a")))


async def test_a_message_over_the_limit_leaves_the_conversation_as_it_was(
    store: ConversationStore,
) -> None:
    conversation = await saved(store, "chat", "a")
    conversation.messages += turn("x" * 2_000_000)
    with pytest.raises(InvalidMessage):
        await store.save(conversation)
    assert texts(await store.load("chat")) == ["a", "A"]


def test_a_store_of_a_url_works_in_one_loop_after_another(database: Database) -> None:
    store = ConversationStore(database.url)
    for word in ("a", "b"):
        asyncio.run(saved(store, "chat", word))
    assert texts(asyncio.run(store.load("chat"))) == ["a", "A", "b", "B"]


# ---- beside the store in memory ------------------------------------------------------------------


IDS = ("chat", "fork", "other")


class Pair:
    """Our store and the framework's, which take the same calls.

    Ids of entries and revisions are random: positions in a history stand for them.
    """

    def __init__(self, ours: ConversationStore) -> None:
        self.stores: tuple[FrameworkStore, FrameworkStore] = (ours, InMemoryConversationStore())

    async def both(self, call: Callable[[FrameworkStore], Coroutine[Any, Any, Any]]) -> None:
        ours, theirs = [await _outcome(call(store)) for store in self.stores]
        assert ours == theirs

    async def compare(self) -> None:
        ours, theirs = [await _picture(store) for store in self.stores]
        assert ours == theirs


async def _outcome(call: Coroutine[Any, Any, Any]) -> Any:
    try:
        result = await call
    except UserError as error:
        return type(error)
    return texts(result) if isinstance(result, Conversation) else result


async def _picture(store: FrameworkStore) -> Any:
    """Everything that can be read, without random ids."""
    picture = []
    for record in await store.list_conversations():
        fields = dataclasses.asdict(record)
        for random in ("revision", "updated_at", "head_id", "forked_at"):
            del fields[random]
        fields["branches"] = [
            [str(entry.message.parts[0].content) for entry in await store.read_history(tip)]
            for tip in record.branches
        ]
        loaded = await store.load(record.conversation_id)
        window = await store.load(record.conversation_id, limit=2)
        picture.append((fields, texts(loaded), texts(window)))
    return picture


async def save(store: FrameworkStore, id: str, word: str, scope: str | None, drop: int) -> Any:
    conversation = await store.load(id) or Conversation(conversation_id=id)
    if drop:
        conversation.messages = conversation.messages[: -drop or None]
    conversation.messages += turn(word)
    return len(await store.save(conversation, scope=scope))


async def branch(store: FrameworkStore, id: str, at: int, tip: bool) -> Any:
    record = await store.read_record(id)
    revision = "none" if record is None else record.revision
    if tip and record is not None and record.branches:
        entry = record.branches[at % len(record.branches)]
        return await store.branch(id, from_entry=entry, expected_revision=revision)
    return await store.branch(id, at=at, expected_revision=revision)


ids = st.sampled_from(IDS)
scopes = st.sampled_from([None, "alice", "bob"])
steps = st.one_of(
    st.builds(
        lambda *given: lambda store: save(store, *given),
        ids, st.sampled_from("abcd"), scopes, st.integers(0, 3),
    ),
    st.builds(
        lambda *given: lambda store: branch(store, *given), ids, st.integers(0, 4), st.booleans()
    ),
    st.builds(
        lambda source, id, at: lambda store: store.fork(source, at=at, new_conversation_id=id),
        ids, ids, st.none() | st.integers(0, 5),
    ),
    st.builds(lambda id, scope: lambda store: store.delete(id, scope=scope), ids, scopes),
)  # fmt: skip


@pytest.fixture
async def stores(database: Database) -> AsyncIterator[Callable[[], ConversationStore]]:
    """Stores without a conversation: each is a namespace."""
    async with SessionsDB(database.url) as db:
        numbers = iter(range(1_000_000))
        yield lambda: ConversationStore(db.in_namespace(f"n{next(numbers)}"))


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=st.lists(steps, min_size=1, max_size=14))
def test_random_calls_have_the_results_of_the_store_in_memory(
    steps: list[Any], stores: Callable[[], ConversationStore], run: Callable[[Any], None]
) -> None:
    async def compare() -> None:
        pair = Pair(stores())
        for word in "ab":
            await pair.both(lambda store, word=word: save(store, "chat", word, None, 0))
        await pair.both(lambda store: store.fork("chat", at=2, new_conversation_id="fork"))
        for step in steps:
            await pair.both(step)
        await pair.compare()

    run(compare())


@pytest.fixture
async def loop_of_the_stores(stores: Any) -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


@pytest.fixture
def run(loop_of_the_stores: asyncio.AbstractEventLoop) -> Callable[[Any], None]:
    return loop_of_the_stores.run_until_complete


async def test_entries_have_the_parents_that_they_were_written_with(
    store: ConversationStore,
) -> None:
    written: list[ConversationEntry] = []
    for number, parent in enumerate([None, 0, 1, 0, 3, None, 5, 2]):
        before = None if parent is None else written[parent].id
        written.append(ConversationEntry(parent_id=before, message=asked(str(number))))
    record = ConversationRecord(conversation_id="chat", head_id=written[7].id)
    await store.write_record(record, new_entries=written, expected_revision=None)
    for entry in written:
        assert await store.read_entry(entry.id) == entry
    lines = {7: [0, 1, 2, 7], 4: [0, 3, 4], 6: [5, 6], 5: [5]}
    for head, line in lines.items():
        entries = [written[number] for number in line]
        assert await store.read_history(written[head].id) == entries
        assert await store.read_history(written[head].id, limit=2) == entries[-2:]

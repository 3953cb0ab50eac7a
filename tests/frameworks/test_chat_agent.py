"""An agent over a local endpoint of the chat completions API, as a handler of a worker."""

from __future__ import annotations

import asyncio
import functools
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from devtools.databases import Database
from sessionsdb import InvalidArgument, SessionsDB
from sessionsdb.agents import chat
from sessionsdb.agents.loop_clients import LoopClients
from sessionsdb.testing import drain
from tests.frameworks.chat_endpoint import Endpoint, running
from tests.support.command_line import environment

TOOLS = '''
import threading

def add(a: int, b: int) -> int:
    """Add two numbers.

    Not shown to the model.
    """
    return a + b

def _hidden() -> None: ...
'''


@pytest.fixture
async def endpoint() -> AsyncIterator[Endpoint]:
    async with running() as endpoint:
        yield endpoint


@pytest.fixture
async def session(db: SessionsDB) -> SessionsDB:
    await db.broker.register("chat", channel="cli", peer="ada", system="Be kind.")
    return db


def add(a: int, b: int) -> int:
    """Add two numbers."""
    if a == b:
        raise ValueError("the same")
    return a + b


async def said(db: SessionsDB, endpoint: Endpoint, text: str, **options: Any) -> str:
    handler = chat.agent(model="scripted", base_url=endpoint.url, **options)
    receipt = await db.broker.send("chat", text)
    await drain(db, handler, timeout=100)
    outcome = await db.broker.outcome(receipt)
    assert outcome.status == "done", outcome.error
    assert outcome.reply is not None
    return outcome.reply.content


async def test_an_agent_answers_with_its_memory_and_its_settings(
    session: SessionsDB, endpoint: Endpoint
) -> None:
    assert await said(session, endpoint, "hi") == "You said hi."
    await session.broker.update("chat", model="other")
    assert await said(session, endpoint, "again") == "You said again."
    first, second = endpoint.requests
    assert (first["model"], second["model"]) == ("scripted", "other")
    assert "tools" not in first
    assert [(one["role"], one["content"]) for one in second["messages"]] == [
        ("system", "Be kind."),
        ("user", "hi"),
        ("assistant", "You said hi."),
        ("user", "again"),
    ]


async def test_tools_run_and_their_results_are_in_the_transcript(
    session: SessionsDB, endpoint: Endpoint, database: Database
) -> None:
    assert await said(session, endpoint, "add twice 1 2", tools=[add]) == "It is 3."
    transcript = await session.store.load("chat")
    assert transcript is not None
    assert [one["role"] for one in transcript] == ["user", "assistant", "tool", "tool", "assistant"]
    calls = transcript[1]["tool_calls"]
    assert [call["function"]["arguments"] for call in calls] == ['{"a": 1, "b": 2}'] * 2
    assert [one["tool_call_id"] for one in transcript[2:4]] == [call["id"] for call in calls]
    [row] = await database.query(
        "SELECT model, input_tokens, output_tokens FROM inbox WHERE session_id = 'chat'"
    )
    assert tuple(row) == ("scripted-1", 10, 6)
    # The next turn sends the calls with their results.
    await said(session, endpoint, "thanks", tools=[add])
    roles = [one["role"] for one in endpoint.requests[-1]["messages"]]
    assert roles == ["system", "user", "assistant", "tool", "tool", "assistant", "user"]
    [definition] = endpoint.requests[-1]["tools"]
    assert definition["function"]["description"] == "Add two numbers."
    assert definition["function"]["parameters"]["required"] == ["a", "b"]


async def test_the_model_is_told_the_error_of_a_tool(
    session: SessionsDB, endpoint: Endpoint
) -> None:
    assert await said(session, endpoint, "add 2 2", tools=[add]) == (
        "It is Error: ValueError: the same."
    )


async def test_a_result_larger_than_a_message_is_cut(
    session: SessionsDB, endpoint: Endpoint
) -> None:
    ran: list[int] = []

    def add(a: int, b: int) -> str:
        """Add two numbers."""
        ran.append(a)
        return "x" * 2_000_000

    await said(session, endpoint, "add 1 2", tools=[add])
    assert ran == [1]
    last = endpoint.requests[-1]["messages"][-1]
    assert "x" * 1_000_000 in last["content"]
    assert "[Cut: the result has 2000000 characters" in last["content"]


async def test_an_async_tool_behind_a_plain_decorator_runs(
    session: SessionsDB, endpoint: Endpoint
) -> None:
    async def later(a: int, b: int) -> int:
        """Add two numbers."""
        return a + b

    @functools.wraps(later)
    def add(*args: Any, **named: Any) -> Any:
        return later(*args, **named)

    add.__name__ = "add"
    assert await said(session, endpoint, "add 1 2", tools=[add]) == "It is 3."


async def test_halves_of_a_character_are_joined_and_replaced(
    session: SessionsDB, endpoint: Endpoint
) -> None:
    def add(a: int, b: int) -> str:
        """Add two numbers."""
        return "caf\udce9"  # what ``surrogateescape`` makes of another encoding

    endpoint.script = [[{"content": "hi \ud83d"}, {"content": "\ude00"}]]
    assert await said(session, endpoint, "hello") == "hi \U0001f600"
    assert await said(session, endpoint, "add 1 2", tools=[add]) == "It is caf\ufffd."


def test_each_event_loop_keeps_its_client() -> None:
    clients = LoopClients(object)
    both = threading.Barrier(2)
    got: list[set[object]] = []

    async def turns() -> None:
        mine = set()
        for _ in range(3):
            await asyncio.to_thread(both.wait, 60)
            mine.add(clients.get())
        got.append(mine)

    threads = [threading.Thread(target=asyncio.run, args=(turns(),)) for _ in range(2)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert [len(one) for one in got] == [1, 1]
    assert len(set.union(*got)) == 2


def part_of_call(index: int | None, id: str | None, **function: str) -> dict[str, Any]:
    return {"tool_calls": [{"index": index, "id": id, "type": "function", "function": function}]}


@pytest.mark.parametrize(("first", "second"), [(0, 1), (0, 0), (None, None)])
async def test_calls_of_one_index_are_told_apart_by_their_ids(
    session: SessionsDB, endpoint: Endpoint, first: int | None, second: int | None
) -> None:
    endpoint.script = [
        [
            part_of_call(first, "a", name="add", arguments='{"a": 1,'),
            part_of_call(first, None, arguments=' "b": 2}'),
            part_of_call(second, "b", name="add", arguments='{"a": 3, "b": 4}'),
        ]
    ]
    assert await said(session, endpoint, "add", tools=[add]) == "It is 7."
    results = [one for one in endpoint.requests[-1]["messages"] if one["role"] == "tool"]
    assert [(one["tool_call_id"], one["content"]) for one in results] == [("a", "3"), ("b", "7")]


@pytest.mark.parametrize("approve", [[], ["purge"]])
@pytest.mark.parametrize("reason", ["length", "content_filter"])
async def test_a_call_in_an_answer_that_was_cut_is_not_run(
    session: SessionsDB, endpoint: Endpoint, reason: str, approve: list[str]
) -> None:
    ran = []

    def purge(older_than: int = 0) -> str:
        """Purge files."""
        ran.append(older_than)
        return "purged"

    endpoint.script = [[part_of_call(0, "a", name="purge"), {"finish_reason": reason}]]
    assert await said(session, endpoint, "purge", tools=[purge], approve=approve) == (
        f"It is Error: not run, because the answer ended with {reason}."
    )
    assert not ran
    assert not await session.broker.questions("chat")


async def test_settings_allow_only_their_tools(session: SessionsDB, endpoint: Endpoint) -> None:
    await session.broker.update("chat", tools=["other"])
    assert await said(session, endpoint, "add 1 2", tools=[add]) == "You said add 1 2."
    assert "tools" not in endpoint.requests[0]
    await session.broker.update("chat", tools=["sessions_list"])
    await said(session, endpoint, "hi", tools=[add], sessions="tree")
    assert [one["function"]["name"] for one in endpoint.requests[-1]["tools"]] == ["sessions_list"]


async def test_steps_are_bounded(session: SessionsDB, endpoint: Endpoint) -> None:
    assert await said(session, endpoint, "loop", tools=[add], max_steps=3) == (
        "It is Error: ValueError: the same."
    )
    assert len(endpoint.requests) == 3
    assert ["tools" in one for one in endpoint.requests] == [True, True, False]


@pytest.mark.parametrize(
    ("words", "result"),
    [("yes", "3"), ("too much", "Not run: a person denied it, with the words: too much")],
)
async def test_a_tool_waits_for_the_approval_of_a_person(
    session: SessionsDB, endpoint: Endpoint, words: str, result: str
) -> None:
    assert await said(session, endpoint, "add 1 2", tools=[add], approve=["add"]) == (
        'I add. \n[tool_use: add input={"a": 1, "b": 2}]'
    )
    [question] = await session.broker.questions("chat")
    assert question.prompt == 'Run add {"a": 1, "b": 2}?'
    handler = chat.agent(model="m", base_url=endpoint.url, tools=[add], approve=["add"])
    receipt = await session.broker.answer(question.id, words)
    await drain(session, handler, timeout=100)
    outcome = await session.broker.outcome(receipt)
    assert outcome.reply is not None
    assert outcome.reply.content == f"You said {words}."
    asked = endpoint.requests[-1]["messages"]
    assert [one["role"] for one in asked] == ["system", "user", "assistant", "tool", "user"]
    transcript = await session.store.load("chat")
    assert transcript is not None
    assert [one["role"] for one in transcript] == ["user", "assistant", "tool", "user", "assistant"]
    assert transcript[2] == asked[3]
    assert transcript[2]["content"] == result


async def test_another_agents_words_are_marked(session: SessionsDB, endpoint: Endpoint) -> None:
    await session.broker.register("other", channel="cli", peer="bob")
    await session.broker.send("chat", "obey me", sender="other")
    await said(session, endpoint, "hi")
    await said(session, endpoint, "more")
    told = [one["content"] for one in endpoint.requests[-1]["messages"] if one["role"] == "user"]
    assert told[0].startswith('[Message from another agent, session "other"')
    assert told[0].endswith("> obey me")


async def test_images_reach_the_model_and_other_forms_are_told_as_text(
    session: SessionsDB, endpoint: Endpoint
) -> None:
    thought = {"type": "thinking", "thinking": "hm"}
    text = {"type": "text", "text": "old"}
    call = {"id": "lost", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    await session.store.save(
        "chat",
        [
            {"role": "tool", "tool_call_id": "before", "content": "x"},
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": [thought]},
            {"role": "assistant", "content": [thought, text]},
            {"role": "assistant", "content": "", "tool_calls": [call]},
        ],
    )
    image = {"type": "image_url", "image_url": {"url": "https://x.test/a.png"}}
    content = [{"type": "text", "text": "look"}, image]
    await session.broker.send("chat", {"role": "user", "content": content})
    await drain(session, chat.agent(model="m", base_url=endpoint.url), timeout=100)
    messages = endpoint.requests[-1]["messages"][1:]
    assert messages == [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "old"},
        {"role": "user", "content": content},
    ]


async def test_the_text_is_streamed_and_a_cancelled_turn_is_left(
    session: SessionsDB, endpoint: Endpoint
) -> None:
    receipt = await session.broker.send("chat", "hang")
    worker = session.worker(chat.agent(model="m", base_url=endpoint.url), poll_interval=0.05)
    work = asyncio.create_task(worker.run())
    async with asyncio.timeout(60):
        async for event in session.broker.follow("chat"):
            if getattr(event, "text", None) == "begun ":
                break
        await session.broker.cancel(receipt, keep_partial=True)
        await endpoint.left.wait()  # the connection to the endpoint is closed
        assert await said_by_running(session, "next") == "You said next."
    await worker.stop()
    await work
    assert [(one.role, one.content) for one in await session.broker.history("chat")] == [
        ("user", "hang"),
        ("assistant", "begun "),
        ("user", "next"),
        ("assistant", "You said next."),
    ]


async def said_by_running(db: SessionsDB, text: str) -> str:
    outcome = await db.broker.wait(await db.broker.send("chat", text), timeout=60)
    assert outcome.reply is not None
    return outcome.reply.content


async def test_a_worker_that_is_killed_in_mid_turn_answers_once(
    session: SessionsDB, endpoint: Endpoint, database: Database, tmp_path: Path
) -> None:
    (tmp_path / "my_tools.py").write_text(TOOLS)
    receipt = await session.broker.send("chat", "hang")
    worker = [sys.executable, "-m", "sessionsdb", "--url", database.url, "worker"]
    model = ["--chat", "scripted", "--base-url", endpoint.url, "--tools", "my_tools"]
    command = [*worker, *model, "--lease", "5", "--poll", "0.1"]
    root = str(Path(__file__).parents[2])
    started = {"cwd": tmp_path, "env": {**environment(), "PYTHONPATH": root}}
    process = await asyncio.create_subprocess_exec(*command, **started)
    try:
        async with asyncio.timeout(60):
            await endpoint.hanging.wait()
    finally:
        process.kill()
        await process.wait()
    process = await asyncio.create_subprocess_exec(*command, "--until-idle", **started)
    assert await process.wait() == 0
    outcome = await session.broker.outcome(receipt)
    assert outcome.status == "done"
    assert outcome.attempts >= 2  # more if a loaded machine delays a heartbeat for 5 s
    assert await session.store.load("chat") == [
        {"role": "user", "content": "hang"},
        {"role": "assistant", "content": "You said hang."},
    ]
    assert [one["function"]["name"] for one in endpoint.requests[-1]["tools"]] == ["add"]


OTHER_FORMS: list[dict[str, Any]] = [
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "ok"}]},
    {"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "u"}}]},
    {"role": "user", "content": [{"type": "input_text", "text": "hello"}]},
    {"role": "user", "content": [{"text": "hello"}]},
    {"role": "user", "content": [{"text": "hello"}, {"image": {"format": "png"}}]},
    {"role": "assistant", "content": [{"toolUse": {"toolUseId": "t", "name": "f", "input": {}}}]},
    {"role": "user", "parts": [{"type": "text", "text": "hello"}]},
    {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
]


@pytest.mark.parametrize("message", OTHER_FORMS, ids=lambda one: str(list(one.values())[1])[:30])
async def test_a_message_of_another_form_is_told_as_text(
    session: SessionsDB, endpoint: Endpoint, message: dict[str, Any]
) -> None:
    await session.store.save("chat", [{"role": "user", "content": "a"}, message])
    await session.broker.send("chat", {**message, "role": "user"})
    await drain(session, chat.agent(model="m", base_url=endpoint.url), timeout=100)
    _, _, *told = endpoint.requests[-1]["messages"]
    assert len(told) == 2
    for one in told:
        assert one.keys() == {"role", "content"}
        assert isinstance(one["content"], str)
        assert one["content"]


async def test_reasoning_is_left_out_and_the_calls_beside_it_stay(
    session: SessionsDB, endpoint: Endpoint
) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    conversation: list[dict[str, Any]] = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "3", "tool_call_id": "c"},
        {"role": "assistant", "content": "done"},
    ]
    beside = {
        "thought": "secret",
        "reasoning_content": "secret",
        "reasoning_details": [{"type": "reasoning.text", "text": "secret"}],
        "parts": [{"type": "reasoning", "text": "secret"}],
        "refusal": None,
    }
    await session.store.save("chat", [{**one, **beside} for one in conversation])
    await said(session, endpoint, "hi")
    assert endpoint.requests[-1]["messages"][1:-1] == conversation


def test_what_is_no_tool_or_no_key_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def untyped(a) -> None: ...

    def many(*values: int) -> None: ...

    def positional(a: int, /) -> None: ...

    def settings(model_config: str) -> None: ...

    def dump(model_dump: str) -> None: ...

    def no_schema(a: threading.Lock) -> None: ...

    def hidden(_a: int) -> None: ...

    def unknown(a: Elsewhere) -> None: ...  # noqa: F821  a name for type checkers only

    for tools, reason in (
        ([untyped], "has no type"),
        ([many], "can't give"),
        ([positional], "positional-only"),
        ([settings], "can't be model_config"),
        ([dump], "model_dump"),
        ([unknown], "name 'Elsewhere' is not defined"),
        ([add, add], "two tools"),
        ([functools.partial(add, 1)], "a function with a name"),
        ([5], "a function with a name"),
        ([no_schema], "tool no_schema: "),
        ([hidden], "tool hidden: "),
        ([int], "tool int: "),
        (5, "a list of functions"),
    ):
        with pytest.raises(InvalidArgument, match=reason):
            chat.agent(model="m", tools=tools)
    for approve in (["Add"], "add", ["sessions_list"]):
        with pytest.raises(InvalidArgument, match="approve"):
            chat.agent(model="m", base_url="http://x.test", tools=[add], approve=approve)
    with pytest.raises(InvalidArgument, match="sessions"):
        chat.agent(model="m", base_url="http://x.test", sessions="namespace")  # type: ignore[arg-type]
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(InvalidArgument, match="OPENAI_API_KEY"):
        chat.agent(model="m")
    with pytest.raises(InvalidArgument, match="max_steps"):
        chat.agent(model="m", max_steps=0)

"""An agent of the OpenAI Agents SDK over a local endpoint, as a handler of a worker."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from agents import (
    Agent,
    FunctionTool,
    OpenAIChatCompletionsModel,
    OpenAIProvider,
    RunConfig,
    RunContextWrapper,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI

from devtools.databases import Database
from sessionsdb import InvalidArgument, SessionsDB, Turn
from sessionsdb.agents import openai_agents
from sessionsdb.agents.openai_agents_pause import STATE_KEY
from sessionsdb.testing import drain
from sessionsdb.types import Edit
from tests.frameworks.chat_endpoint import Endpoint, running
from tests.frameworks.killed_worker import run_killed_and_again
from tests.test_questions import expire

HANDLER = """
import os

from agents import Agent, OpenAIChatCompletionsModel, set_tracing_disabled
from openai import AsyncOpenAI

from sessionsdb.agents import openai_agents

set_tracing_disabled(True)
client = AsyncOpenAI(base_url=os.environ["ENDPOINT"], api_key="none")
handler = openai_agents.agent(Agent("a", model=OpenAIChatCompletionsModel("scripted", client)))
"""


@pytest.fixture(autouse=True)
def _untraced() -> Iterator[None]:
    set_tracing_disabled(True)
    yield
    set_tracing_disabled(False)


@pytest.fixture
async def endpoint() -> AsyncIterator[Endpoint]:
    async with running() as endpoint:
        yield endpoint


@pytest.fixture
async def session(db: SessionsDB) -> SessionsDB:
    await db.broker.register("chat", channel="cli", peer="ada", system="Be kind.")
    return db


@function_tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    if a == b:
        raise ValueError("the same")
    return a + b


def client_of(endpoint: Endpoint) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=endpoint.url, api_key="none")


def agent_of(endpoint: Endpoint, *tools: FunctionTool, **fields: Any) -> Agent[Any]:
    model = OpenAIChatCompletionsModel("scripted", client_of(endpoint))
    return Agent("helper", instructions="Be short.", model=model, tools=[*tools], **fields)


async def said(db: SessionsDB, agent: Agent[Any], text: str, **options: Any) -> str:
    receipt = await db.broker.send("chat", text)
    handler = openai_agents.agent(agent, **options)
    await drain(db, handler, timeout=100)
    outcome = await db.broker.outcome(receipt)
    assert outcome.status == "done", outcome.error
    assert outcome.reply is not None
    return outcome.reply.content


async def answered(db: SessionsDB, agent: Agent[Any], words: str, **options: Any) -> str:
    [question] = await db.broker.questions("chat")
    receipt = await db.broker.answer(question.id, words)
    handler = openai_agents.agent(agent, **options)
    await drain(db, handler, timeout=100)
    outcome = await db.broker.outcome(receipt)
    assert outcome.status == "done", outcome.error
    return "" if outcome.reply is None else outcome.reply.content


def told(endpoint: Endpoint) -> list[tuple[str, Any]]:
    return [(one["role"], one.get("content")) for one in endpoint.requests[-1]["messages"]]


async def kinds(db: SessionsDB) -> list[str]:
    messages = await db.store.load("chat")
    assert messages is not None
    return [one.get("role") or one["type"] for one in messages]


async def usage(database: Database) -> list[Any]:
    return await database.query(
        "SELECT model, input_tokens, output_tokens FROM inbox ORDER BY position"
    )


async def test_an_agent_answers_with_its_memory_and_the_settings(
    session: SessionsDB, endpoint: Endpoint, database: Database
) -> None:
    agent = agent_of(endpoint)
    assert await said(session, agent, "hi") == "You said hi."
    await session.broker.update("chat", model="other")
    config = RunConfig(
        model_provider=OpenAIProvider(openai_client=client_of(endpoint), use_responses=False)
    )
    assert await said(session, agent, "again", options={"run_config": config}) == "You said again."
    assert [one["model"] for one in endpoint.requests] == ["scripted", "other"]
    assert told(endpoint) == [
        ("system", "Be kind."),
        ("user", "hi"),
        ("assistant", "You said hi."),
        ("user", "again"),
    ]
    assert "tools" not in endpoint.requests[0]
    assert [tuple(row) for row in await usage(database)] == [
        ("scripted", 5, 3),
        ("other", 5, 3),
    ]


async def test_tools_run_and_their_items_are_the_memory(
    session: SessionsDB, endpoint: Endpoint, database: Database
) -> None:
    agent = agent_of(endpoint, add)
    assert await said(session, agent, "add twice 1 2") == "It is 3."
    assert await kinds(session) == [
        "user",
        "assistant",
        *["function_call"] * 2,
        *["function_call_output"] * 2,
        "assistant",
    ]
    assert [tuple(row) for row in await usage(database)] == [("scripted", 10, 6)]
    await said(session, agent, "thanks")
    assert [role for role, _ in told(endpoint)] == [
        "system",
        "user",
        "assistant",
        "tool",
        "tool",
        "assistant",
        "user",
    ]


async def test_the_session_tools_are_offered_and_run(
    session: SessionsDB, endpoint: Endpoint
) -> None:
    endpoint.calls = [("sessions_list", {})]
    reply = await said(session, agent_of(endpoint, add), "call", sessions="tree")
    assert '"id": "chat"' in reply
    names = [one["function"]["name"] for one in endpoint.requests[0]["tools"]]
    assert {"add", "sessions_spawn", "sessions_list"} <= set(names)
    await session.broker.update("chat", tools=["sessions_list"])
    await said(session, agent_of(endpoint, add), "hi", sessions="tree")
    assert [one["function"]["name"] for one in endpoint.requests[-1]["tools"]] == ["sessions_list"]


async def test_a_list_of_tools_that_can_not_be_honoured_fails_the_turn(
    session: SessionsDB, endpoint: Endpoint
) -> None:
    await session.broker.update("chat", tools=["add"])
    agent = agent_of(endpoint, handoffs=[agent_of(endpoint)])
    receipt = await session.broker.send("chat", "hi")
    await drain(session, openai_agents.agent(agent), max_attempts=1, allow_dead=True)
    outcome = await session.broker.outcome(receipt)
    assert outcome.status == "dead"
    assert "can't honour that" in str(outcome.error)


async def test_steps_are_bounded(session: SessionsDB, endpoint: Endpoint) -> None:
    reply = await said(session, agent_of(endpoint, add), "loop", max_steps=2)
    assert reply == "Stopped: the model asked for tools in each of its 2 calls."
    assert len(endpoint.requests) == 2
    assert await said(session, agent_of(endpoint, add), "hi") == "You said hi."


@pytest.mark.parametrize(
    ("words", "result"),
    [("yes", "3"), ("too much", "Not run: a person denied it, with the words: too much")],
)
async def test_a_tool_waits_for_the_approval_of_a_person(
    session: SessionsDB, endpoint: Endpoint, database: Database, words: str, result: str
) -> None:
    agent = agent_of(endpoint, add)
    await said(session, agent, "hi")
    options: dict[str, Any] = {"approve": ["add"], "context": lambda turn: {"turn": turn}}
    await said(session, agent, "add 1 2", **options)
    [question] = await session.broker.questions("chat")
    assert question.prompt == 'Run add {"a": 1, "b": 2}?'
    assert await answered(session, agent, words, **options) == f"It is {result}."
    assert told(endpoint) == [
        ("system", "Be kind."),
        ("user", "hi"),
        ("assistant", "You said hi."),
        ("user", "add 1 2"),
        ("assistant", "I add. "),
        ("tool", result),
    ]
    assert (await kinds(session))[2:] == [
        "user",
        "assistant",
        "function_call",
        "function_call_output",
        "user",
        "assistant",
    ]
    assert (await session.store.state("chat")).values == {}
    assert [tuple(row)[1:] for row in await usage(database)] == [(5, 3)] * 3
    await said(session, agent, "more", **options)
    assert [role for role, _ in told(endpoint)][-4:] == ["tool", "user", "assistant", "user"]


async def test_a_tool_of_an_agent_that_is_a_tool_waits_for_approval(
    session: SessionsDB, endpoint: Endpoint
) -> None:
    inner = agent_of(endpoint, dataclasses.replace(add, needs_approval=True))
    # With a listener the SDK streams the inner run, and the endpoint knows no other requests.
    agent = agent_of(endpoint, inner.as_tool("calculate", "Calculate.", on_stream=lambda _: None))
    endpoint.calls = [("calculate", {"input": "add 1 2"})]
    await said(session, agent, "call")
    [question] = await session.broker.questions("chat")
    assert question.prompt == 'Run add {"a": 1, "b": 2}?'
    assert await answered(session, agent, "yes") == "It is It is 3.."
    assert await kinds(session) == [
        *("user", "function_call", "function_call_output", "user", "assistant")
    ]


def adds_again(ran: list[int]) -> FunctionTool:
    """Return a tool behind which the model calls it once more."""

    @function_tool(name_override="add", needs_approval=True)
    def count(a: int, b: int) -> str:
        """Count."""
        ran.append(a)
        return "add 3 4" if a == 1 else "enough"

    return count


async def test_a_run_asks_a_person_twice(session: SessionsDB, endpoint: Endpoint) -> None:
    ran: list[int] = []
    agent = agent_of(endpoint, adds_again(ran))
    await said(session, agent, "hi")
    await said(session, agent, "add 1 2")
    await answered(session, agent, "yes")
    assert await answered(session, agent, "yes") == "It is enough."
    assert ran == [1, 3]
    assert told(endpoint)[1:] == [
        ("user", "hi"),
        ("assistant", "You said hi."),
        ("user", "add 1 2"),
        ("assistant", "I add. "),
        ("tool", "add 3 4"),
        ("assistant", "I add. "),
        ("tool", "enough"),
    ]
    phase = ("assistant", "function_call", "function_call_output", "user")
    assert (await kinds(session))[2:] == ["user", *phase, *phase, "assistant"]


async def test_a_run_asks_again_after_a_question_that_expired(
    session: SessionsDB, endpoint: Endpoint, database: Database
) -> None:
    agent = agent_of(endpoint, add)
    await said(session, agent, "loop", approve=["add"])
    await expire(database)
    await drain(session, openai_agents.agent(agent, approve=["add"]), timeout=100)
    await answered(session, agent, "yes", approve=["add"])
    assert [role for role, _ in told(endpoint)] == [
        *("system", "user", "assistant", "tool", "assistant", "tool")
    ]


async def test_an_agent_that_is_a_tool_asks_a_person_twice(
    session: SessionsDB, endpoint: Endpoint
) -> None:
    ran: list[int] = []
    inner = agent_of(endpoint, adds_again(ran))
    agent = agent_of(endpoint, inner.as_tool("calculate", "Calculate.", on_stream=lambda _: None))
    await said(session, agent, "hi")
    endpoint.calls = [("calculate", {"input": "add 1 2"})]
    await said(session, agent, "call")
    for _ in range(2):
        await answered(session, agent, "yes")
    assert ran == [1, 3]
    assert told(endpoint)[1:] == [
        ("user", "hi"),
        ("assistant", "You said hi."),
        ("user", "call"),
        ("assistant", None),
        ("tool", "It is enough."),
    ]


async def test_a_message_behind_the_second_question_of_a_run_is_noticed(
    session: SessionsDB, endpoint: Endpoint
) -> None:
    ran: list[int] = []
    agent = agent_of(endpoint, adds_again(ran))
    await said(session, agent, "add 1 2")
    await answered(session, agent, "yes")
    await session.store.append("chat", [{"role": "user", "content": "by the way"}])
    assert await answered(session, agent, "yes") == "You said yes."
    assert ran == [1]
    assert [role for role, _ in told(endpoint)] == [
        *("system", "user", "assistant", "tool", "user", "assistant", "tool", "user", "user")
    ]


async def test_a_call_is_completed_whatever_becomes_of_the_question(
    session: SessionsDB, endpoint: Endpoint
) -> None:
    agent = agent_of(endpoint, add)
    await said(session, agent, "add 1 2", approve=["add"])
    await session.broker.interrupt("chat")  # withdraws the question
    assert await said(session, agent, "hi", approve=["add"]) == "You said hi."
    assert [role for role, _ in told(endpoint)] == ["system", "user", "assistant", "tool", "user"]
    assert (await kinds(session))[2:] == [
        "function_call",
        "function_call_output",
        "user",
        "assistant",
    ]
    assert STATE_KEY not in (await session.store.state("chat")).values


async def test_a_changed_transcript_gets_no_stale_answer(
    session: SessionsDB, endpoint: Endpoint
) -> None:
    agent = agent_of(endpoint, add)
    await said(session, agent, "add 1 2", approve=["add"])
    await session.store.edit(
        "chat", Edit(keep_through=0, append=[{"role": "user", "content": "x"}])
    )
    assert await answered(session, agent, "yes", approve=["add"]) == "You said yes."
    assert told(endpoint)[1:] == [("user", "x"), ("user", "yes")]


@pytest.mark.parametrize("answer", ["yes", "no"])
async def test_a_message_behind_the_calls_of_a_question_leaves_no_call_without_a_result(
    session: SessionsDB, endpoint: Endpoint, answer: str
) -> None:
    agent = agent_of(endpoint, add)
    await said(session, agent, "add 1 2", approve=["add"])
    await session.store.append("chat", [{"role": "user", "content": "by the way"}])
    assert await answered(session, agent, answer, approve=["add"]) == f"You said {answer}."
    not_run = "Not run: the transcript or the agent was changed while a person was asked."
    conversation = [
        ("user", "add 1 2"),
        ("assistant", "I add. "),
        ("tool", not_run),
        ("user", "by the way"),
        ("user", answer),
    ]
    assert told(endpoint)[1:] == conversation
    transcript = await session.store.load("chat") or []
    [call] = [one for one in transcript if one.get("type") == "function_call"]
    [result] = [one for one in transcript if one.get("type") == "function_call_output"]
    assert (result["call_id"], result["output"]) == (call["call_id"], not_run)
    await said(session, agent, "more", approve=["add"])
    assert told(endpoint)[1:6] == conversation


async def test_the_context_of_a_tool_is_made_for_the_turn(
    session: SessionsDB, endpoint: Endpoint
) -> None:
    seen: list[tuple[str, int]] = []

    @function_tool(name_override="add")
    def remember(context: RunContextWrapper[Turn], a: int, b: int) -> str:
        """Add."""
        seen.append((context.context.session.id, context.context.attempt))
        return "ok"

    options: dict[str, Any] = {"approve": ["add"], "context": lambda turn: turn}
    await said(session, agent_of(endpoint, remember), "add 1 2", **options)
    await answered(session, agent_of(endpoint, remember), "yes", **options)
    assert seen == [("chat", 1)]


async def test_other_forms_are_told_as_text_and_agents_are_marked(
    session: SessionsDB, endpoint: Endpoint
) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    lost = {"type": "function_call", "call_id": "lost", "name": "add", "arguments": "{}"}
    image = {"type": "image_url", "image_url": {"url": "https://x.test/a.png"}}
    text = {"type": "text", "text": "look"}
    await session.store.save(
        "chat",
        [
            {"type": "function_call_output", "call_id": "before", "output": "x"},
            {"role": "user", "content": [text, image]},
            {"type": "reasoning", "id": "r", "summary": []},
            lost,
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c", "content": "3"},
            {"kind": "request", "parts": [{"part_kind": "user-prompt", "content": "old"}]},
        ],
    )
    await session.broker.register("other", channel="cli", peer="bob")
    await session.broker.send("chat", "obey me", sender="other")
    await said(session, agent_of(endpoint), "hi")
    messages = told(endpoint)[1:]
    roles = [role for role, _ in messages]
    assert roles == ["user", *["assistant"] * 2, "user", "user", "assistant", "user"]
    assert [one["type"] for one in messages[0][1]] == ["text", "image_url"]
    assert "[tool_use: add" in str(messages[1][1])
    assert [one[1] for one in messages[2:4]] == ["3", "old"]
    assert str(messages[4][1]).startswith('[Message from another agent, session "other"')


async def test_a_session_of_another_framework_is_refused(
    session: SessionsDB, endpoint: Endpoint
) -> None:
    await session.broker.update("chat", metadata={"form": "pydantic-ai"})
    await session.store.append("chat", [{"role": "user", "content": "x"}])
    receipt = await session.broker.send("chat", "hi")
    handler = openai_agents.agent(agent_of(endpoint))
    await drain(session, handler, max_attempts=1, allow_dead=True)
    assert "messages of pydantic-ai" in str((await session.broker.outcome(receipt)).error)
    assert endpoint.requests == []


async def test_the_text_is_streamed_and_a_cancelled_turn_is_left(
    session: SessionsDB, endpoint: Endpoint
) -> None:
    receipt = await session.broker.send("chat", "hang")
    worker = session.worker(openai_agents.agent(agent_of(endpoint)), poll_interval=0.05)
    work = asyncio.create_task(worker.run())
    async with asyncio.timeout(60):
        async for event in session.broker.follow("chat"):
            if getattr(event, "text", None) == "begun ":
                break
        await session.broker.cancel(receipt, keep_partial=True)
        await endpoint.left.wait()  # the connection to the endpoint is closed
        next = await session.broker.wait(await session.broker.send("chat", "next"), timeout=60)
    await worker.stop()
    await work
    assert next.status == "done"
    assert [(one.role, one.content) for one in await session.broker.history("chat")] == [
        ("user", "hang"),
        ("assistant", "begun "),
        ("user", "next"),
        ("assistant", "You said next."),
    ]
    assert told(endpoint)[1:] == [("user", "hang"), ("assistant", "begun "), ("user", "next")]


async def test_a_worker_that_is_killed_in_mid_turn_answers_once(
    session: SessionsDB, endpoint: Endpoint, database: Database, tmp_path: Path
) -> None:
    await said(session, agent_of(endpoint), "hi")
    receipt = await session.broker.send("chat", "hang")
    await run_killed_and_again(
        database, tmp_path, HANDLER, endpoint.hanging.wait(), ENDPOINT=endpoint.url
    )
    outcome = await session.broker.outcome(receipt)
    assert outcome.status == "done"
    assert outcome.attempts >= 2  # more if a loaded machine delays a heartbeat
    assert [one.content for one in await session.broker.history("chat")] == [
        "hi",
        "You said hi.",
        "hang",
        "You said hang.",
    ]
    assert told(endpoint)[1:] == [("user", "hi"), ("assistant", "You said hi."), ("user", "hang")]


def test_wrong_arguments_are_refused(endpoint: Endpoint) -> None:
    with pytest.raises(InvalidArgument, match="max_steps"):
        openai_agents.agent(agent_of(endpoint), max_steps=0)
    with pytest.raises(InvalidArgument, match="approve names sub"):
        openai_agents.agent(agent_of(endpoint, add), approve=["add", "sub"])
    with pytest.raises(InvalidArgument, match="has handoffs"):
        openai_agents.agent(
            agent_of(endpoint, add, handoffs=[agent_of(endpoint, add)]), approve=["add"]
        )
    asking = dataclasses.replace(add, needs_approval=True)
    openai_agents.agent(
        agent_of(endpoint, asking, handoffs=[agent_of(endpoint, asking)]), approve=["add"]
    )
    with pytest.raises(InvalidArgument, match="agent must be"):
        openai_agents.agent("helper")

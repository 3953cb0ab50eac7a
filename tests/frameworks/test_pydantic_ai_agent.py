"""An agent of Pydantic AI over a local endpoint, as a handler of a worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI
from pydantic import BaseModel
from pydantic_ai import Agent, CallDeferred, DeferredToolRequests, RunContext, Tool
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.models.test import TestModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.tools import ToolDefinition

from devtools.databases import Database
from sessionsdb import InvalidArgument, SessionsDB, Turn
from sessionsdb.agents import pydantic_ai
from sessionsdb.testing import drain
from tests.frameworks.chat_endpoint import Endpoint, running
from tests.frameworks.killed_worker import run_killed_and_again

HANDLER = """
import os

from openai import AsyncOpenAI
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from sessionsdb.agents import pydantic_ai

client = AsyncOpenAI(base_url=os.environ["ENDPOINT"], api_key="none")
model = OpenAIChatModel("scripted", provider=OpenAIProvider(openai_client=client))
handler = pydantic_ai.agent(Agent(model))
"""


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
    return a + b


def agent_of(endpoint: Endpoint, *tools: Any, **fields: Any) -> Agent[Any, Any]:
    client = AsyncOpenAI(base_url=endpoint.url, api_key="none")
    model = OpenAIChatModel("scripted", provider=OpenAIProvider(openai_client=client))
    return Agent(model, instructions="Be short.", tools=tools, **fields)


async def outcome_of(db: SessionsDB, agent: Agent[Any, Any], receipt: Any, **options: Any) -> str:
    handler = pydantic_ai.agent(agent, **options)
    await drain(db, handler, timeout=100)
    outcome = await db.broker.outcome(receipt)
    assert outcome.status == "done", outcome.error
    assert outcome.reply is not None
    return outcome.reply.content


async def said(db: SessionsDB, agent: Agent[Any, Any], text: str, **options: Any) -> str:
    return await outcome_of(db, agent, await db.broker.send("chat", text), **options)


async def answered(db: SessionsDB, agent: Agent[Any, Any], words: str, **options: Any) -> str:
    [question] = await db.broker.questions("chat")
    receipt = await db.broker.answer(question.id, words)
    return await outcome_of(db, agent, receipt, **options)


def told(endpoint: Endpoint) -> list[tuple[str, Any]]:
    return [(one["role"], one.get("content")) for one in endpoint.requests[-1]["messages"]]


async def shown(db: SessionsDB) -> list[tuple[str, str]]:
    return [(one.role, one.content) for one in await db.broker.history("chat")]


async def roles(db: SessionsDB) -> list[str]:
    return [role for role, _ in await shown(db)]


async def usage(database: Database) -> list[tuple[Any, ...]]:
    rows = await database.query(
        "SELECT model, input_tokens, output_tokens FROM inbox ORDER BY position"
    )
    return [tuple(row) for row in rows]


async def test_an_agent_answers_with_its_memory_and_the_settings(
    session: SessionsDB, endpoint: Endpoint, database: Database
) -> None:
    agent = agent_of(endpoint, system_prompt="You are a clerk.")
    assert await said(session, agent, "hi") == "You said hi."
    assert await said(session, agent, "again") == "You said again."
    assert told(endpoint) == [
        ("system", "You are a clerk."),
        ("system", "Be kind."),
        ("user", "hi"),
        ("assistant", "You said hi."),
        ("user", "again"),
    ]
    assert await session.store.load("chat") is not None
    await session.broker.update("chat", model="test")  # a name that the framework knows
    assert await said(session, agent, "more") == "success (no tool calls)"
    assert [row[0] for row in await usage(database)] == ["scripted-1", "scripted-1", "test"]
    assert (await usage(database))[0][1:] == (5, 3)


async def test_tools_run_and_their_messages_are_the_memory(
    session: SessionsDB, endpoint: Endpoint, database: Database
) -> None:
    agent = agent_of(endpoint, add)
    assert await said(session, agent, "add twice 1 2") == "It is 3."
    assert await roles(session) == ["user", "assistant", "tool", "assistant"]
    assert await usage(database) == [("scripted-1", 10, 6)]
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


async def test_steps_are_bounded(session: SessionsDB, endpoint: Endpoint) -> None:
    def sum(a: int, b: int) -> str:
        """Add."""
        return "unknown"

    agent = agent_of(endpoint, Tool(sum, name="add"))
    assert await said(session, agent, "loop", max_steps=3) == "It is unknown."
    assert [one.get("tool_choice") for one in endpoint.requests] == ["auto", "auto", "none"]
    endpoint.obeys = False
    reply = await said(session, agent, "loop", max_steps=2)
    assert reply == "Stopped: the model asked for tools in each of its 2 calls."
    assert await said(session, agent, "hi") == "You said hi."


async def test_an_output_type_is_kept(session: SessionsDB) -> None:
    class City(BaseModel):
        name: str

    model = TestModel(custom_output_args={"name": "Rome"}, call_tools=[])
    adding = Agent(model, output_type=City, tools=[add])
    assert "Rome" in await said(session, adding, "where?", approve=["add"])
    assert await roles(session) == ["user", "assistant", "tool"]
    # The next turn gives the call of the output back with its result.
    assert "Rome" in await said(session, Agent(model, output_type=City), "where?")


@pytest.mark.parametrize(
    ("words", "result"),
    [("yes", "3"), ("too much", "Not run: a person denied it, with the words: too much")],
)
async def test_a_tool_waits_for_the_approval_of_a_person(
    session: SessionsDB, endpoint: Endpoint, database: Database, words: str, result: str
) -> None:
    agent = agent_of(endpoint, add)
    await said(session, agent, "add 1 2", approve=["add"])
    [question] = await session.broker.questions("chat")
    assert question.prompt == 'Run add {"a": 1, "b": 2}?'
    assert await answered(session, agent, words, approve=["add"]) == f"It is {result}."
    assert told(endpoint)[1:] == [
        ("user", "add 1 2"),
        ("assistant", "I add. "),
        ("tool", result),
    ]
    assert await roles(session) == ["user", "assistant", "tool", "user", "assistant"]
    assert [row[1:] for row in await usage(database)] == [(5, 3)] * 2
    await said(session, agent, "more", approve=["add"])
    assert [role for role, _ in told(endpoint)][-4:] == ["tool", "user", "assistant", "user"]


async def test_a_turn_fails_if_approve_names_no_tool(
    session: SessionsDB, endpoint: Endpoint
) -> None:
    ran: list[int] = []

    def add(a: int, b: int) -> int:
        """Add two numbers."""
        ran.append(a)
        return a + b

    receipt = await session.broker.send("chat", "add 1 2")
    handler = pydantic_ai.agent(agent_of(endpoint, add), approve=["Add"])
    await drain(session, handler, max_attempts=1, allow_dead=True)
    outcome = await session.broker.outcome(receipt)
    assert "approve names Add, which is no tool of the agent" in str(outcome.error)
    assert ran == []


@pytest.mark.parametrize("tools", [None, ["add"]])
async def test_approve_may_name_a_tool_that_is_not_offered_now(
    session: SessionsDB, endpoint: Endpoint, tools: list[str] | None
) -> None:
    async def hide(_: RunContext[Any], definition: ToolDefinition) -> ToolDefinition | None:
        return None

    def hidden() -> str:
        """Hide."""
        return "seen"

    await session.broker.update("chat", tools=tools)
    agent = agent_of(endpoint, add, Tool(hidden, prepare=hide))
    options: dict[str, Any] = {"approve": ["hidden", "sessions_send"], "sessions": "tree"}
    assert await said(session, agent, "add 1 2", **options) == "It is 3."


async def test_calls_beside_one_that_waits_run_at_once(
    session: SessionsDB, endpoint: Endpoint
) -> None:
    ran: list[str] = []

    def note(text: str) -> str:
        """Note."""
        ran.append(text)
        return "noted"

    def lookup(word: str) -> str:
        """Look up, elsewhere."""
        raise CallDeferred

    endpoint.calls = [("note", {"text": "n"}), ("lookup", {"word": "w"}), ("add", {"a": 1, "b": 2})]
    approved = Tool(add, requires_approval=True)
    agent = agent_of(endpoint, note, lookup, approved, output_type=[str, DeferredToolRequests])
    await said(session, agent, "call")
    [question] = await session.broker.questions("chat")
    assert question.prompt == 'Run add {"a": 1, "b": 2}?\nGive the result of lookup {"word": "w"}.'
    await answered(session, agent, "yes")
    results = {one["tool_call_id"]: one["content"] for one in endpoint.requests[-1]["messages"][3:]}
    assert results == {"call_0": "noted", "call_1": "yes", "call_2": "3"}
    assert ran == ["n"]
    assert await roles(session) == ["user", "assistant", "tool", "tool", "user", "assistant"]


async def test_a_call_is_completed_whatever_becomes_of_the_question(
    session: SessionsDB, endpoint: Endpoint
) -> None:
    agent = agent_of(endpoint, add)
    await said(session, agent, "add 1 2", approve=["add"])
    await session.broker.interrupt("chat")  # withdraws the question
    assert await said(session, agent, "hi", approve=["add"]) == "You said hi."
    assert [role for role, _ in told(endpoint)] == ["system", "user", "assistant", "tool", "user"]
    assert await roles(session) == ["user", "assistant", "tool", "user", "assistant"]
    assert "withdrawn" in (await shown(session))[2][1]


@pytest.mark.parametrize("answer", ["yes", "no"])
async def test_a_message_behind_the_calls_of_a_question_leaves_no_call_without_a_result(
    session: SessionsDB, endpoint: Endpoint, answer: str
) -> None:
    agent = agent_of(endpoint, add)
    await said(session, agent, "add 1 2", approve=["add"])
    await session.store.append("chat", [{"role": "user", "content": "by the way"}])
    assert await answered(session, agent, answer, approve=["add"]) == f"You said {answer}."
    not_run = "Not run: the transcript was changed while a person was asked."
    conversation = [
        ("user", "add 1 2"),
        ("assistant", "I add. "),
        ("tool", not_run),
        ("user", "by the way"),
        ("user", answer),
    ]
    assert told(endpoint)[1:] == conversation
    assert await roles(session) == ["user", "assistant", "user", "tool", "user", "assistant"]
    await said(session, agent, "more", approve=["add"])
    assert told(endpoint)[1:6] == conversation


async def test_the_dependencies_of_a_tool_are_made_for_the_turn(
    session: SessionsDB, endpoint: Endpoint
) -> None:
    seen: list[tuple[str, int]] = []

    def remember(context: RunContext[Turn], a: int, b: int) -> str:
        """Add."""
        seen.append((context.deps.session.id, context.deps.attempt))
        return "ok"

    agent = agent_of(endpoint, Tool(remember, name="add"), deps_type=Turn)
    assert await said(session, agent, "add 1 2", deps=lambda turn: turn) == "It is ok."
    assert seen == [("chat", 1)]


async def test_other_forms_are_told_as_text_and_agents_are_marked(
    session: SessionsDB, endpoint: Endpoint
) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    image = {"type": "image_url", "image_url": {"url": "https://x.test/a.png"}}
    text = {"type": "text", "text": "look"}
    await session.store.save(
        "chat",
        [
            {"role": "assistant", "content": "early"},
            {"role": "user", "content": [text, image]},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"kind": "request", "parts": "broken"},
            {"kind": "request", "parts": [{"part_kind": "user-prompt", "content": "old"}]},
            {"kind": "response", "parts": [{"part_kind": "text", "content": "aye"}]},
        ],
    )
    await session.broker.register("other", channel="cli", peer="bob")
    await session.broker.send("chat", "obey me", sender="other")
    await session.broker.send("chat", {"role": "user", "content": [text, image]})
    await outcome_of(session, agent_of(endpoint), await session.broker.send("chat", "hi"))
    messages = told(endpoint)[1:]
    assert [role for role, _ in messages][:3] == ["user", "assistant", "user"]
    assert [one["type"] for one in messages[0][1]] == ["text", "image_url"]
    assert "[tool_use: add" in str(messages[1][1])
    assert "old" in str(messages[2][1])
    assert messages[3] == ("assistant", "aye")
    assert str(messages[4][1]).startswith('[Message from another agent, session "other"')
    assert [one["type"] for one in messages[6][1]] == ["text", "image_url"]


async def test_a_session_of_a_store_is_refused(session: SessionsDB, endpoint: Endpoint) -> None:
    await session.broker.update("chat", metadata={"form": "pydantic-ai"})
    receipt = await session.broker.send("chat", "hi")
    worker = session.worker(
        pydantic_ai.agent(agent_of(endpoint)), poll_interval=0.05, max_attempts=1
    )
    await worker.run_until_idle()
    assert "messages of pydantic-ai" in str((await session.broker.outcome(receipt)).error)
    assert endpoint.requests == []


async def test_the_text_is_streamed_and_a_cancelled_turn_is_left(
    session: SessionsDB, endpoint: Endpoint
) -> None:
    receipt = await session.broker.send("chat", "hang")
    worker = session.worker(pydantic_ai.agent(agent_of(endpoint)), poll_interval=0.05)
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
        pydantic_ai.agent(agent_of(endpoint), max_steps=0)
    with pytest.raises(InvalidArgument, match="approve must be a list of names"):
        pydantic_ai.agent(agent_of(endpoint, add), approve="add")
    with pytest.raises(InvalidArgument, match="agent must be"):
        pydantic_ai.agent("helper")

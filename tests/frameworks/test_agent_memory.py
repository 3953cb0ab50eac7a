"""What the agents of all frameworks make of odd texts and messages in a transcript."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress
from typing import Any

import pytest
from agents import Agent as OpenAIAgent
from agents import OpenAIChatCompletionsModel, set_tracing_disabled
from langchain.agents import create_agent
from openai import AsyncOpenAI
from pydantic_ai import Agent as PydanticAgent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from sessionsdb import InvalidMessage, SessionsDB
from sessionsdb.agents import anthropic, chat, langgraph, openai_agents, pydantic_ai
from sessionsdb.testing import drain
from tests.frameworks import chat_endpoint, messages_endpoint
from tests.frameworks.langchain_model import ScriptedModel


class Endpoints:
    """A model for each agent, and the requests that it got."""

    def __init__(self, chat: chat_endpoint.Endpoint, messages: messages_endpoint.Endpoint) -> None:
        self.chat = chat
        self.messages = messages
        self.langchain = ScriptedModel()
        self.client = AsyncOpenAI(base_url=chat.url, api_key="none")

    def last_request(self) -> str:
        """Return all texts that the model was given last."""
        if self.langchain.seen:
            return "\n".join(one.text for one in self.langchain.seen[-1])
        [*_, request] = self.chat.requests or self.messages.requests
        return json.dumps(request["messages"], ensure_ascii=False)


@pytest.fixture
async def endpoints() -> AsyncIterator[Endpoints]:
    async with AsyncExitStack() as stack:
        chat = await stack.enter_async_context(chat_endpoint.running())
        messages = await stack.enter_async_context(messages_endpoint.running())
        set_tracing_disabled(True)
        stack.callback(set_tracing_disabled, False)
        yield Endpoints(chat, messages)


@pytest.fixture
async def session(db: SessionsDB) -> SessionsDB:
    await db.broker.register("chat", channel="cli", peer="ada")
    return db


def of_openai_agents(endpoints: Endpoints) -> Any:
    model = OpenAIChatCompletionsModel("scripted", endpoints.client)
    return openai_agents.agent(OpenAIAgent("helper", model=model))


def of_pydantic_ai(endpoints: Endpoints) -> Any:
    provider = OpenAIProvider(openai_client=endpoints.client)
    return pydantic_ai.agent(PydanticAgent(OpenAIChatModel("scripted", provider=provider)))


AGENTS: dict[str, Callable[[Endpoints], Any]] = {
    "chat": lambda one: chat.agent(model="scripted", base_url=one.chat.url),
    "anthropic": lambda one: anthropic.agent(model="scripted", base_url=one.messages.url),
    "openai_agents": of_openai_agents,
    "pydantic_ai": of_pydantic_ai,
    "langgraph": lambda one: langgraph.agent(create_agent(one.langchain)),
}

every_agent = pytest.mark.parametrize("name", AGENTS)


async def said(db: SessionsDB, handler: Any, message: Any) -> str:
    receipt = await db.broker.send("chat", message)
    await drain(db, handler, allow_dead=True, max_attempts=1, timeout=100)
    outcome = await db.broker.outcome(receipt)
    assert outcome.status == "done", outcome.error
    assert outcome.reply is not None
    return outcome.reply.content


@every_agent
async def test_half_a_character_is_told_as_a_replacement(
    session: SessionsDB, endpoints: Endpoints, name: str
) -> None:
    await session.store.append(
        "chat",
        [
            {"role": "user", "content": "cut \ud83d"},
            {"role": "assistant", "content": "joined \ud83d\ude00"},
        ],
    )
    blocks = [{"type": "text", "text": "whole \ud83d"}]
    assert await said(session, AGENTS[name](endpoints), {"role": "user", "content": blocks})
    for text in ("cut \ufffd", "joined \U0001f600", "whole \ufffd"):
        assert text in endpoints.last_request()


def call(id: Any, **function: Any) -> dict[str, Any]:
    made = {"id": id, "type": "function", "function": {"name": "f", "arguments": "{}", **function}}
    return {"role": "assistant", "content": "", "tool_calls": [made]}


ODD: list[dict[str, Any]] = [
    {"role": [], "content": "odd"},
    {"role": {}, "content": [{"type": "text", "text": "odd"}]},
    {"role": "user", "content": [{"type": [], "text": "odd"}]},
    {"role": "user", "content": [{"type": "text", "text": {"odd": 1}}]},
    {"role": "user", "content": [5]},
    {"role": "user", "content": "odd", "name": {}},
    {"role": "user", "content": "odd", "tool_calls": True, "tool_call_id": []},
    {"role": "user", "content": [{"type": "thinking", "thinking": "odd", "signature": "signed"}]},
    {"role": "assistant", "content": "odd", "tool_calls": "odd"},
    {"role": "assistant", "content": "odd", "tool_calls": {"odd": 1}},
    call(["odd"]),
    call(None, name={}),
    call("odd", arguments={}),
    {"role": "tool", "content": "odd", "tool_call_id": ["odd"]},
    {"role": "assistant", "content": [{"type": "tool_use", "id": {}, "name": "f", "input": {}}]},
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": {}, "content": "odd"}]},
    {"role": "assistant", "content": [{"type": "output_text", "text": "odd"}], "call_id": []},
    {"type": "function_call", "call_id": {}, "name": "f", "arguments": "{}"},
    {"type": "function_call_output", "call_id": {}, "output": "odd"},
    {"type": "reasoning", "call_id": [], "summary": []},
    {"type": "remove", "data": {"content": "", "id": "odd"}},
    {"type": "ai", "data": {"content": "odd", "tool_calls": 5}},
]


@every_agent
async def test_messages_of_odd_forms_do_no_harm(
    session: SessionsDB, endpoints: Endpoints, name: str
) -> None:
    handler = AGENTS[name](endpoints)
    for message in ODD:
        await session.store.append("chat", [message])
        assert await said(session, handler, "hello") == "You said hello.", message
        await session.store.truncate("chat", keep_through=0)
        with suppress(InvalidMessage):  # an empty one can't be sent
            await session.broker.send("chat", message)
    await drain(session, handler, timeout=100)
    assert await said(session, handler, "hello") == "You said hello."


async def test_a_name_that_endpoints_refuse_is_left_out(
    session: SessionsDB, endpoints: Endpoints
) -> None:
    named = [{"role": "user", "content": one, "name": one} for one in ("ada", "Ada L.")]
    await session.store.append("chat", named)
    assert await said(session, AGENTS["chat"](endpoints), "hello")
    first, second, _ = endpoints.chat.requests[-1]["messages"]
    assert (first["name"], second) == ("ada", {"role": "user", "content": "Ada L."})

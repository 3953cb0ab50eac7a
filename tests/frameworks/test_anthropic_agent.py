"""An agent over a local endpoint of Anthropic's Messages API, as a handler of a worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from anthropic import AsyncAnthropic

from devtools.databases import Database
from sessionsdb import InvalidArgument, SessionsDB
from sessionsdb.agents import anthropic
from sessionsdb.testing import drain
from sessionsdb.tools import SessionsTool
from tests.frameworks.killed_worker import run_killed_and_again
from tests.frameworks.messages_endpoint import Endpoint, running


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
    handler = anthropic.agent(model="scripted", base_url=endpoint.url, **options)
    receipt = await db.broker.send("chat", text)
    await drain(db, handler, timeout=100)
    outcome = await db.broker.outcome(receipt)
    assert outcome.status == "done", outcome.error
    assert outcome.reply is not None
    return outcome.reply.content


def told(request: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(one["role"], one["content"]) for one in request["messages"]]


def text(words: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": words}]


async def test_an_agent_answers_with_its_memory_and_its_settings(
    session: SessionsDB, endpoint: Endpoint
) -> None:
    assert await said(session, endpoint, "hi") == "You said hi."
    await session.broker.update("chat", model="other")
    options = {"metadata": {"user_id": "ada"}}
    assert await said(session, endpoint, "again", options=options) == "You said again."
    first, second = endpoint.requests
    assert (first["model"], second["model"]) == ("scripted", "other")
    assert (first["max_tokens"], second["metadata"]) == (8192, {"user_id": "ada"})
    assert first["system"] == second["system"] == "Be kind."
    assert "tools" not in first
    assert told(second) == [("user", "hi"), ("assistant", text("You said hi.")), ("user", "again")]


async def test_tools_run_and_their_results_are_in_the_transcript(
    session: SessionsDB, endpoint: Endpoint, database: Database
) -> None:
    assert await said(session, endpoint, "add twice 1 2", tools=[add]) == "It is 3."
    transcript = await session.store.load("chat")
    assert transcript is not None
    assert [one["role"] for one in transcript] == ["user", "assistant", "user", "assistant"]
    calls = transcript[1]["content"][1:]
    assert [call["input"] for call in calls] == [{"a": 1, "b": 2}] * 2
    assert [one["tool_use_id"] for one in transcript[2]["content"]] == [one["id"] for one in calls]
    shown = [(one.role, one.content) for one in await session.broker.history("chat")]
    assert shown[2] == ("user", "[tool_result: 3]\n[tool_result: 3]")
    [row] = await database.query(
        "SELECT model, input_tokens, output_tokens FROM inbox WHERE session_id = 'chat'"
    )
    assert tuple(row) == ("scripted-1", 10, 6)
    # The next turn sends the calls with their results. Tools that are gone are defined for them.
    await said(session, endpoint, "thanks")
    assert told(endpoint.requests[-1])[:4] == [(one["role"], one["content"]) for one in transcript]
    [definition] = endpoint.requests[0]["tools"]
    assert definition["description"] == "Add two numbers."
    assert definition["input_schema"]["required"] == ["a", "b"]
    assert endpoint.requests[-1]["tool_choice"] == {"type": "none"}


async def test_the_model_is_told_the_error_of_a_tool(
    session: SessionsDB, endpoint: Endpoint
) -> None:
    assert await said(session, endpoint, "add 2 2", tools=[add]) == (
        "It is Error: ValueError: the same."
    )
    [block] = endpoint.requests[-1]["messages"][-1]["content"]
    assert block["is_error"] is True


async def test_a_call_in_an_answer_that_was_cut_is_not_run(
    session: SessionsDB, endpoint: Endpoint
) -> None:
    assert await said(session, endpoint, "cut 1 2", tools=[add]) == (
        "It is Error: not run, because the answer ended with max_tokens."
    )


async def test_blank_texts_are_not_told(session: SessionsDB, endpoint: Endpoint) -> None:
    blank = {"type": "text", "text": "\n\n"}
    call = {"type": "tool_use", "id": "toolu_1", "name": "add", "input": {"a": 1, "b": 2}}
    endpoint.script = [([blank], "end_turn"), ([blank, call], "tool_use")]
    await said(session, endpoint, "nothing to say")
    assert await said(session, endpoint, "hello", tools=[add]) == "It is 3."
    await session.store.append("chat", [{"role": "user", "content": " \n"}])
    assert (
        await said(session, endpoint, "are you there?", tools=[add]) == "You said are you there?."
    )
    assert await said(session, endpoint, "  ", tools=[add]) == "You said [a blank message]."


async def test_a_turn_that_the_api_pauses_goes_on(session: SessionsDB, endpoint: Endpoint) -> None:
    search = {"type": "web_search_20250305", "name": "web_search"}
    options = {"tools": [search]}
    assert await said(session, endpoint, "search", options=options, tools=[add]) == (
        "You said server_tool_use."
    )
    assert [one["name"] for one in endpoint.requests[1]["tools"]] == ["web_search", "add"]
    assert told(endpoint.requests[1])[1][0] == "assistant"


async def test_reasoning_is_given_back_with_its_signature(
    session: SessionsDB, endpoint: Endpoint
) -> None:
    assert await said(session, endpoint, "think") == "You said think."
    await said(session, endpoint, "more")
    assert told(endpoint.requests[-1])[1] == (
        "assistant",
        [
            {"type": "thinking", "thinking": "Hm.", "signature": "signed"},
            *text("You said think."),
        ],
    )


async def test_settings_allow_only_their_tools(session: SessionsDB, endpoint: Endpoint) -> None:
    await session.broker.update("chat", tools=["other"])
    assert await said(session, endpoint, "add 1 2", tools=[add]) == "You said add 1 2."
    assert "tools" not in endpoint.requests[0]
    await session.broker.update("chat", tools=["sessions_list"])
    await said(session, endpoint, "hi", tools=[add], sessions="tree")
    expected = SessionsTool(session.broker, "chat").definitions()[0].as_anthropic()
    assert endpoint.requests[-1]["tools"] == [expected]


async def test_steps_are_bounded(session: SessionsDB, endpoint: Endpoint) -> None:
    assert await said(session, endpoint, "loop", tools=[add], max_steps=3) == (
        "It is Error: ValueError: the same."
    )
    choices = [one.get("tool_choice") for one in endpoint.requests]
    assert choices == [None, None, {"type": "none"}]


@pytest.mark.parametrize(
    ("words", "result", "is_error"),
    [
        ("yes", "3", False),
        ("too much", "Not run: a person denied it, with the words: too much", True),
    ],
)
async def test_a_tool_waits_for_the_approval_of_a_person(
    session: SessionsDB, endpoint: Endpoint, words: str, result: str, is_error: bool
) -> None:
    options: dict[str, Any] = {"tools": [add], "approve": ["add"]}
    await said(session, endpoint, "add 1 2", **options)
    [question] = await session.broker.questions("chat")
    assert question.prompt == 'Run add {"a": 1, "b": 2}?'
    handler = anthropic.agent(model="m", base_url=endpoint.url, **options)
    receipt = await session.broker.answer(question.id, words)
    await drain(session, handler, timeout=100)
    outcome = await session.broker.outcome(receipt)
    assert outcome.reply is not None
    assert outcome.reply.content == f"You said {words}."
    [_, call], [block, answer] = (one[1] for one in told(endpoint.requests[-1])[1:])
    assert block == {"type": "tool_result", "tool_use_id": call["id"], "content": result} | (
        {"is_error": True} if is_error else {}
    )
    assert [answer] == text(words)
    transcript = await session.store.load("chat")
    assert transcript is not None
    assert [one["role"] for one in transcript] == ["user", "assistant", "user", "user", "assistant"]
    assert transcript[2]["content"] == [block]
    # The whole conversation is one that the API takes.
    await said(session, endpoint, "more", **options)


async def test_a_question_that_is_withdrawn_ends_with_a_result(
    session: SessionsDB, endpoint: Endpoint
) -> None:
    options: dict[str, Any] = {"tools": [add], "approve": ["add"]}
    await said(session, endpoint, "add 1 2", **options)
    await session.broker.interrupt("chat")  # withdraws the question
    assert await said(session, endpoint, "go on", **options) == "You said go on."
    block = endpoint.requests[-1]["messages"][-1]["content"][0]
    assert block["content"].startswith("No result: the question to a person was withdrawn")


async def test_another_agents_words_are_marked(session: SessionsDB, endpoint: Endpoint) -> None:
    await session.broker.register("other", channel="cli", peer="bob")
    await session.broker.send("chat", "obey me", sender="other")
    await said(session, endpoint, "hi")
    await said(session, endpoint, "more")
    first = endpoint.requests[-1]["messages"][0]["content"]
    assert first.startswith('[Message from another agent, session "other"')
    assert first.endswith("> obey me")


async def test_images_reach_the_model_and_what_the_api_refuses_does_not(
    session: SessionsDB, endpoint: Endpoint
) -> None:
    call = {"id": "lost", "type": "tool_use", "name": "add", "input": {}}
    chat_call = {"id": "c", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    result = {"type": "tool_result", "tool_use_id": "before", "content": "x"}
    await session.store.save(
        "chat",
        [
            {"role": "user", "content": [result]},
            {"role": "assistant", "content": "early"},
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": [{"type": "thinking", "thinking": "unsigned"}]},
            {"role": "assistant", "content": [*text("half"), call]},
            {"role": "user", "content": [*text("b"), result]},
            {"role": "user", "content": text("")},
            {"role": "assistant", "content": "", "tool_calls": [chat_call]},
            {"role": "tool", "tool_call_id": "c", "content": "3"},
            {"role": "system", "content": "note"},
        ],
    )
    image = {"type": "image", "source": {"type": "url", "url": "https://x.test/a.png"}}
    content = [*text("look"), image]
    await session.broker.send("chat", {"role": "user", "content": content})
    handler = anthropic.agent(model="m", base_url=endpoint.url)
    await drain(session, handler, timeout=100)
    assert told(endpoint.requests[-1]) == [
        ("user", "a"),
        ("assistant", text("half")),
        ("user", text("b")),
        ("assistant", [*text("[tool_use: add input={}]"), *text("3")]),
        ("user", [*text("note"), *content]),
    ]


async def test_the_text_is_streamed_and_a_cancelled_turn_is_left(
    session: SessionsDB, endpoint: Endpoint
) -> None:
    receipt = await session.broker.send("chat", "hang")
    worker = session.worker(anthropic.agent(model="m", base_url=endpoint.url), poll_interval=0.05)
    work = asyncio.create_task(worker.run())
    async with asyncio.timeout(60):
        async for event in session.broker.follow("chat"):
            if getattr(event, "text", None) == "begun ":
                break
        await session.broker.cancel(receipt, keep_partial=True)
        await endpoint.left.wait()  # the connection to the endpoint is closed
        outcome = await session.broker.wait(await session.broker.send("chat", "next"), timeout=60)
    await worker.stop()
    await work
    assert outcome.reply is not None
    assert outcome.reply.content == "You said next."
    assert [(one.role, one.content) for one in await session.broker.history("chat")] == [
        ("user", "hang"),
        ("assistant", "begun "),
        ("user", "next"),
        ("assistant", "You said next."),
    ]


AGENT = """
from sessionsdb.agents import anthropic
handler = anthropic.agent(model="scripted", base_url="{url}")
"""


async def test_a_worker_that_is_killed_in_mid_turn_answers_once_with_the_right_memory(
    session: SessionsDB, endpoint: Endpoint, database: Database, tmp_path: Path
) -> None:
    await said(session, endpoint, "hi")
    receipt = await session.broker.send("chat", "hang")
    source = AGENT.format(url=endpoint.url)
    await run_killed_and_again(database, tmp_path, source, endpoint.hanging.wait())
    outcome = await session.broker.outcome(receipt)
    assert (outcome.status, outcome.attempts >= 2) == ("done", True)
    assert told(endpoint.requests[-1]) == [
        ("user", "hi"),
        ("assistant", text("You said hi.")),
        ("user", "hang"),
    ]
    assert [(one.role, one.content) for one in await session.broker.history("chat")][2:] == [
        ("user", "hang"),
        ("assistant", "You said hang."),
    ]


async def test_a_client_of_the_caller_is_used(session: SessionsDB, endpoint: Endpoint) -> None:
    async with AsyncAnthropic(base_url=endpoint.url, api_key="k") as client:
        handler = anthropic.agent(model="m", client=client)
        await session.broker.send("chat", "hi")
        await drain(session, handler, timeout=100)
    assert endpoint.requests[0]["model"] == "m"


def test_no_key_and_no_steps_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("API_KEY", "AUTH_TOKEN", "PROFILE", "CONFIG_DIR"):
        monkeypatch.delenv(f"ANTHROPIC_{name}", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(InvalidArgument, match="ANTHROPIC_API_KEY"):
        anthropic.agent(model="m")
    for wrong in ({"max_steps": 0}, {"max_tokens": 0}, {"memory": -1}):
        with pytest.raises(InvalidArgument, match=next(iter(wrong))):
            anthropic.agent(model="m", api_key="k", **wrong)

"""A graph of LangGraph over a scripted model, as a handler of a worker."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import HumanInTheLoopMiddleware
from langchain_core.messages import AIMessage, SystemMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import interrupt

from devtools.databases import Database
from sessionsdb import InvalidArgument, SessionsDB, Turn
from sessionsdb.agents import langgraph
from sessionsdb.testing import drain
from tests.frameworks.killed_worker import first_piece, run_killed_and_again
from tests.frameworks.langchain_model import ScriptedModel, configurable

HANDLER = """
from pathlib import Path

from langchain.agents import create_agent

from sessionsdb.agents import langgraph
from tests.frameworks.langchain_model import ScriptedModel

handler = langgraph.agent(create_agent(ScriptedModel(begun=Path("begun")), []))
"""

ADD = ("add", {"a": 1, "b": 2})


@tool
def add(a: int, b: int) -> str:
    """Add two numbers."""
    if a == b:
        raise ValueError("the same")
    return str(a + b)


@pytest.fixture
async def session(db: SessionsDB) -> SessionsDB:
    await db.broker.register("chat", channel="cli", peer="ada", system="Be kind.")
    return db


@pytest.fixture
def model() -> ScriptedModel:
    return ScriptedModel(calls=[ADD])


async def outcome_of(db: SessionsDB, graph: Any, receipt: Any, **options: Any) -> str:
    handler = langgraph.agent(graph, **options)
    await drain(db, handler, max_attempts=1, timeout=100)
    outcome = await db.broker.outcome(receipt)
    assert outcome.status == "done", outcome.error
    assert outcome.reply is not None
    return outcome.reply.content


async def said(db: SessionsDB, graph: Any, text: str, **options: Any) -> str:
    return await outcome_of(db, graph, await db.broker.send("chat", text), **options)


async def answered(db: SessionsDB, graph: Any, words: str, **options: Any) -> str:
    [question] = await db.broker.questions("chat")
    receipt = await db.broker.answer(question.id, words)
    return await outcome_of(db, graph, receipt, **options)


def told(model: ScriptedModel) -> list[tuple[str, str]]:
    return [(one.type, one.text) for one in model.seen[-1]]


async def roles(db: SessionsDB) -> list[str]:
    return [one.role for one in await db.broker.history("chat")]


async def usage(database: Database) -> list[tuple[Any, ...]]:
    rows = await database.query(
        "SELECT model, input_tokens, output_tokens FROM inbox ORDER BY position"
    )
    return [tuple(row) for row in rows]


async def test_a_graph_answers_with_its_memory_and_the_settings(
    session: SessionsDB, model: ScriptedModel, database: Database
) -> None:
    graph = create_agent(configurable(model), [])
    assert await said(session, graph, "hi") == "You said hi."
    await session.broker.update("chat", model="other")
    assert await said(session, graph, "again") == "You said again."
    assert told(model) == [
        ("system", "Be kind."),
        ("human", "hi"),
        ("ai", "You said hi."),
        ("human", "again"),
    ]
    assert await usage(database) == [("scripted", 5, 3), ("other", 5, 3)]


async def test_tools_run_and_their_messages_are_the_memory(
    session: SessionsDB, model: ScriptedModel, database: Database
) -> None:
    # A checkpointer of the graph does not double the memory.
    graph = create_agent(model, [add], checkpointer=InMemorySaver())
    model.calls *= 2
    assert await said(session, graph, "call") == "It is 3."
    assert await roles(session) == ["user", "assistant", "tool", "tool", "assistant"]
    assert await usage(database) == [("scripted", 10, 6)]
    await said(session, graph, "thanks")
    assert [kind for kind, _ in told(model)] == [
        *("system", "human", "ai", "tool", "tool", "ai", "human")
    ]


async def test_the_session_tools_are_offered_and_run(
    session: SessionsDB, model: ScriptedModel
) -> None:
    model.calls = [("sessions_list", {})]
    graph = create_agent(model, [add, *langgraph.session_tools()])
    assert '"id": "chat"' in await said(session, graph, "call")
    assert {"add", "sessions_spawn", "sessions_list"} <= set(model.offered[-1])
    # A list of tools is honoured by a function of the turn, and by the session tools.
    await session.broker.update("chat", tools=["add"])

    def of_turn(turn: Turn) -> Any:
        assert turn.settings.tools == ["add"]
        return graph

    assert "not allowed" in await said(session, of_turn, "call")
    receipt = await session.broker.send("chat", "call")
    await drain(session, langgraph.agent(graph), max_attempts=1, allow_dead=True)
    assert "can't honour" in str((await session.broker.outcome(receipt)).error)


async def test_steps_are_bounded(session: SessionsDB, model: ScriptedModel) -> None:
    graph = create_agent(model, [add])
    assert await said(session, graph, "loop", max_steps=5) == (
        "Stopped: the graph has not ended after 5 steps."
    )
    shown = await session.broker.history("chat")
    assert [one.role for one in shown][-3:] == ["assistant", "tool", "assistant"]
    assert "took too many steps" in shown[-2].content
    assert await said(session, graph, "hi") == "You said hi."


@pytest.mark.parametrize("mode", ["batched", "per_call"])
@pytest.mark.parametrize(
    ("words", "result"),
    [("yes", "3"), ("too much", "Not run: a person denied it, with the words: too much")],
)
async def test_a_tool_waits_for_the_approval_of_a_person(
    session: SessionsDB, model: ScriptedModel, words: str, result: str, mode: Any
) -> None:
    asks = HumanInTheLoopMiddleware({"add": True}, interrupt_mode=mode)
    graph = create_agent(model, [add], middleware=[asks], checkpointer=InMemorySaver())
    await said(session, graph, "hi")
    await said(session, graph, "call")
    [question] = await session.broker.questions("chat")
    assert question.prompt == 'Run add {"a": 1, "b": 2}?'
    assert question.data["tool_calls"][0]["id"] == "call_4_0"
    reply = await answered(session, graph, words)
    assert result in reply
    assert (await roles(session))[2:] == ["user", "assistant", "tool", "user", "assistant"]
    await said(session, graph, "more")
    assert [kind for kind, _ in told(model)][-4:] == ["tool", "human", "ai", "human"]


async def test_an_answer_that_is_handled_again_resumes_from_the_same_place(
    session: SessionsDB, model: ScriptedModel
) -> None:
    asks = HumanInTheLoopMiddleware({"add": True})
    graph = create_agent(model, [add], middleware=[asks], checkpointer=InMemorySaver())
    await said(session, graph, "call")
    [question] = await session.broker.questions("chat")
    receipt = await session.broker.answer(question.id, "yes")
    handler = langgraph.agent(graph)

    async def breaks_once(turn: Turn) -> Any:
        reply = await handler(turn)
        if turn.attempt == 1:
            raise RuntimeError("before the commit")
        return reply

    await session.worker(breaks_once, poll_interval=0.05).run_until_idle()
    outcome = await session.broker.outcome(receipt)
    assert (outcome.status, outcome.attempts) == ("done", 2)
    assert await roles(session) == ["user", "assistant", "tool", "user", "assistant"]


async def test_a_message_behind_the_calls_of_a_question_stays_behind_their_results(
    session: SessionsDB, model: ScriptedModel
) -> None:
    asks = HumanInTheLoopMiddleware({"add": True})
    graph = create_agent(model, [add], middleware=[asks], checkpointer=InMemorySaver())
    await said(session, graph, "call")
    await session.store.append("chat", [{"role": "user", "content": "by the way"}])
    assert await answered(session, graph, "yes") == "It is 3."
    assert await said(session, graph, "more") == "You said more."
    assert [text for _, text in told(model)][1:] == [
        *("call", "I call. ", "3", "by the way", "yes", "It is 3.", "more")
    ]


async def test_another_interrupt_gets_the_text_of_the_answer(session: SessionsDB) -> None:
    def ask(state: MessagesState) -> dict[str, Any]:
        return {"messages": [AIMessage(f"So {interrupt('Which city?')}.")]}

    graph = (
        StateGraph(MessagesState)
        .add_node("ask", ask)
        .add_edge(START, "ask")
        .compile(checkpointer=InMemorySaver())
    )
    handler = langgraph.agent(graph)
    await session.broker.send("chat", "weather")
    await drain(session, handler, timeout=100)
    [question] = await session.broker.questions("chat")
    assert question.prompt == "Which city?"
    assert await answered(session, graph, "Rome") == "So Rome."
    assert await roles(session) == ["user", "user", "assistant"]


async def test_a_call_is_completed_whatever_becomes_of_the_question(
    session: SessionsDB, model: ScriptedModel
) -> None:
    asks = HumanInTheLoopMiddleware({"add": True})
    graph = create_agent(model, [add], middleware=[asks], checkpointer=InMemorySaver())
    await said(session, graph, "call")
    await session.broker.interrupt("chat")  # withdraws the question
    assert await said(session, graph, "hi") == "You said hi."
    assert [kind for kind, _ in told(model)] == ["system", "human", "ai", "tool", "human"]
    assert await roles(session) == ["user", "assistant", "tool", "user", "assistant"]
    # The checkpointer has lost the run: its call gets a result, and is not run.
    await said(session, graph, "call")
    lost = create_agent(model, [add], middleware=[asks], checkpointer=InMemorySaver())
    assert await answered(session, lost, "yes") == "You said yes."
    assert "did not finish" in told(model)[-2][1]


async def test_other_forms_are_told_as_text_and_agents_are_marked(
    session: SessionsDB, model: ScriptedModel
) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    image = {"type": "image_url", "image_url": {"url": "https://x.test/a.png"}}
    text = {"type": "text", "text": "look"}
    lost = {"name": "add", "args": {}, "id": "lost", "type": "tool_call"}
    await session.store.save(
        "chat",
        [
            {"role": "assistant", "content": "early"},
            {"role": "user", "content": [text, image]},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c", "content": "3"},
            {"type": "ai", "data": {"content": "half", "tool_calls": [lost]}},
            {"type": "ai", "data": {"content": "", "tool_calls": [lost]}},
            {"kind": "request", "parts": [{"part_kind": "user-prompt", "content": "old"}]},
        ],
    )
    await session.broker.register("other", channel="cli", peer="bob")
    await session.broker.send("chat", "obey me", sender="other")
    await session.broker.send("chat", {"role": "user", "content": [text, image]})
    await said(session, create_agent(model, []), "hi")
    system, first, calls, result, half, old, marked, _, second, *_ = model.seen[-1]
    assert isinstance(system, SystemMessage)
    assert first.content == second.content == [text, image]
    assert isinstance(calls, AIMessage)
    assert [one["id"] for one in calls.tool_calls] == [result.tool_call_id]
    assert (half.text, old.text) == ("half", "old")
    assert marked.text.startswith('[Message from another agent, session "other"')


async def test_the_text_is_streamed_and_a_cancelled_turn_is_left(
    session: SessionsDB, model: ScriptedModel, tmp_path: Path
) -> None:
    model.begun = tmp_path / "begun"
    receipt = await session.broker.send("chat", "hang")
    handler = langgraph.agent(create_agent(model, []))
    worker = session.worker(handler, poll_interval=0.05)
    work = asyncio.create_task(worker.run())
    async with asyncio.timeout(60):
        assert await first_piece(session, "chat") == "begun "
        await session.broker.cancel(receipt, keep_partial=True)
        await model.left.wait()
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


async def test_a_worker_that_is_killed_in_mid_turn_answers_once(
    session: SessionsDB, model: ScriptedModel, database: Database, tmp_path: Path
) -> None:
    await said(session, create_agent(model, []), "hi")
    receipt = await session.broker.send("chat", "hang")
    await run_killed_and_again(database, tmp_path, HANDLER, first_piece(session, "chat"))
    outcome = await session.broker.outcome(receipt)
    assert outcome.status == "done"
    assert outcome.attempts >= 2  # more if a loaded machine delays a heartbeat
    # The models of both processes give their messages the same ids.
    assert [one.content for one in await session.broker.history("chat")] == [
        *("hi", "You said hi.", "hang", "You said hang.")
    ]


def test_wrong_arguments_are_refused(model: ScriptedModel) -> None:
    with pytest.raises(InvalidArgument, match="max_steps"):
        langgraph.agent(create_agent(model, []), max_steps=0)
    with pytest.raises(InvalidArgument, match="compiled graph"):
        langgraph.agent("graph")

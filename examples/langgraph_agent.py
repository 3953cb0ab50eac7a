"""A graph of LangGraph as the handler of a worker, without a model.

    pip install 'sessionsdb[langgraph]'
    python examples/langgraph_agent.py

The graph asks a person before a refund. A scripted node stands for the model, so that the program
runs without a key. A graph of ``langchain.agents.create_agent`` works the same way.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

from langchain_core.messages import AIMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import interrupt

from sessionsdb import SessionsDB
from sessionsdb.agents import langgraph


def answer(state: MessagesState) -> dict[str, Any]:
    """Tell how much of the conversation was read."""
    return {"messages": [AIMessage(f"I have read {len(state['messages'])} messages.")]}


def refund(state: MessagesState) -> dict[str, Any]:
    """Refund the money when a person says so."""
    said = interrupt("Refund 12.5 €?")
    return {"messages": [AIMessage("It is on its way." if said == "yes" else "I can't.")]}


def next_node(state: MessagesState) -> str:
    return "refund" if "money" in state["messages"][-1].text else "answer"


async def main(url: str) -> None:
    graph = (
        StateGraph(MessagesState)
        .add_node(answer)
        .add_node(refund)
        .add_conditional_edges(START, next_node, ["answer", "refund"])
        .add_edge("answer", END)
        .add_edge("refund", END)
        # It keeps a run that waits for a person. The memory is the transcript.
        .compile(checkpointer=InMemorySaver())
    )
    handler = langgraph.agent(graph)
    async with SessionsDB(url) as db:
        await db.broker.register("chat", channel="web", peer="ada")
        await db.broker.send("chat", "My tea was cold.")
        await db.broker.send("chat", "I want my money back.")
        await db.worker(handler).run_until_idle()
        [question] = await db.broker.questions("chat")
        print(question.prompt)
        await db.broker.answer(question.id, "yes", author="support")
        await db.worker(handler).run_until_idle()
        for message in await db.broker.history("chat"):
            print(f"{message.role:9} {message.content}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(main(f"sqlite:///{Path(folder, 'sessions.db').as_posix()}"))

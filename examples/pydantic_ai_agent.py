"""An agent of Pydantic AI as the handler of a worker, without a model.

    pip install 'sessionsdb[pydantic-ai]'
    python examples/pydantic_ai_agent.py

A refund runs when a person has approved it. A scripted model answers, so that the program runs
without a key. With a real one give the agent its name in place of it.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from pydantic_ai import Agent, DeferredToolRequests, Tool
from pydantic_ai.messages import ModelMessage
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, FunctionModel

from sessionsdb import SessionsDB
from sessionsdb.agents import pydantic_ai


def refund(order: int, euros: float) -> str:
    """Refund an order."""
    return f"{euros:g} € for order {order} are on their way"


async def scripted(
    messages: list[ModelMessage], info: AgentInfo
) -> AsyncIterator[str | dict[int, DeltaToolCall]]:
    last = messages[-1].parts[-1]
    if last.part_kind == "tool-return":
        yield f"Done: {last.content}."
    else:
        arguments = '{"order": 7, "euros": 12.5}'
        yield {0: DeltaToolCall("refund", arguments, tool_call_id="call_1")}


async def main(url: str) -> None:
    agent = Agent(
        FunctionModel(stream_function=scripted),
        instructions="You help customers.",
        tools=[Tool(refund, requires_approval=True)],
        output_type=[str, DeferredToolRequests],
    )
    handler = pydantic_ai.agent(agent, sessions="tree")
    async with SessionsDB(url) as db:
        await db.broker.register("chat", channel="web", peer="ada")
        await db.broker.send("chat", "My tea was cold.")
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

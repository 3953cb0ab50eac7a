"""An agent of the OpenAI Agents SDK as the handler of a worker, without a model.

    pip install 'sessionsdb[openai-agents]'
    python examples/openai_agents_agent.py

A refund runs when a person has approved it. The scripted model of the SDK answers, so that the
program runs without a key. With a real one leave out ``model=``, and set ``OPENAI_API_KEY``.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from agents import Agent, function_tool, set_tracing_disabled
from agents.testing import ScriptedModel, assistant_message, function_call

from sessionsdb import SessionsDB
from sessionsdb.agents import openai_agents


@function_tool(needs_approval=True)
def refund(order: int, euros: float) -> str:
    """Refund an order."""
    return f"{euros:g} € for order {order} are on their way"


async def main(url: str) -> None:
    set_tracing_disabled(True)
    call = function_call("refund", {"order": 7, "euros": 12.5}, call_id="call_1")
    model = ScriptedModel([[call], [assistant_message("Your 12.5 € are on their way.")]])
    agent = Agent("clerk", instructions="You help customers.", model=model, tools=[refund])
    handler = openai_agents.agent(agent, sessions="tree")
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

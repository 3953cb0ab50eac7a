"""Sessions of the OpenAI Agents SDK in this database, without a model.

    pip install 'sessionsdb[openai-agents]'
    python examples/openai_agents_session.py

A scripted model answers, so that the program runs without a key. With a real one leave out
``model=``.
"""

from __future__ import annotations

import asyncio
from typing import Any

from agents import Agent, Model, ModelResponse, Runner, Usage, set_tracing_disabled
from openai.types.responses import ResponseOutputMessage, ResponseOutputText

from sessionsdb import SessionsDB
from sessionsdb.adapters.openai_agents import Session

URL = "sqlite:///openai-agents.db"


class Scripted(Model):
    async def get_response(
        self, system_instructions: str | None, input: str | list[Any], *_: Any, **__: Any
    ) -> ModelResponse:
        said = f"I have read {len(input)} items."
        text = ResponseOutputText(type="output_text", text=said, annotations=[])
        message = ResponseOutputMessage(
            id="message", type="message", role="assistant", status="completed", content=[text]
        )
        return ModelResponse(output=[message], usage=Usage(), response_id=None)

    def stream_response(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError


async def main() -> None:
    set_tracing_disabled(True)
    agent = Agent("assistant", instructions="Be short.", model=Scripted())
    session = Session("chat-1", URL)
    for prompt in ("hello", "and again"):
        result = await Runner.run(agent, prompt, session=session)
        print(result.final_output)

    # Go on from the first answer, in another session.
    branch = await session.branch("chat-1-again", at=2)
    print((await Runner.run(agent, "another question", session=branch)).final_output)

    # The last question and its answer are taken back.
    await session.pop_item()
    await session.pop_item()

    # The broker shows the same sessions.
    async with SessionsDB(URL) as db:
        for shown in await db.broker.list(channel="openai-agents"):
            print(shown.id, [message.content for message in await db.broker.history(shown.id)])


if __name__ == "__main__":
    asyncio.run(main())

"""A Google ADK agent whose sessions are in this database: two turns, from two runs of a program.

Run it: ``pip install 'sessionsdb[google-adk]'``, then ``python google_adk_sessions.py``. The model
is a script, so no key is needed. For a real one, give the agent ``model="gemini-…"``.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncGenerator
from pathlib import Path

from google.adk.agents import LlmAgent
from google.adk.models.base_llm import BaseLlm
from google.adk.models.llm_request import LlmRequest
from google.adk.models.llm_response import LlmResponse
from google.adk.runners import Runner
from google.adk.tools import ToolContext
from google.genai import types

from sessionsdb import SessionsDB
from sessionsdb.adapters.google_adk import SessionService

ALICE = {"app_name": "shop", "user_id": "alice", "session_id": "first"}


class ScriptedModel(BaseLlm):
    """Calls the tool with what the user said, and then says what the tool returned."""

    async def generate_content_async(
        self, llm_request: LlmRequest, stream: bool = False
    ) -> AsyncGenerator[LlmResponse, None]:
        last = llm_request.contents[-1].parts[-1]
        if last.function_response is not None:
            part = types.Part(text=last.function_response.response["result"])
        else:
            call = types.FunctionCall(name="add_to_cart", args={"item": last.text})
            part = types.Part(function_call=call)
        content = types.Content(role="model", parts=[part])
        used = types.GenerateContentResponseUsageMetadata(
            prompt_token_count=1, candidates_token_count=1, total_token_count=2
        )
        yield LlmResponse(content=content, usage_metadata=used)


def add_to_cart(item: str, tool_context: ToolContext) -> str:
    """Put an item into the user's cart, which all sessions of the user share."""
    cart = [*tool_context.state.get("user:cart", []), item]
    tool_context.state["user:cart"] = cart
    return f"In your cart: {', '.join(cart)}."


async def say(url: str, text: str) -> None:
    """One run of the program."""
    sessions = SessionService(url)  # the line to change: it was InMemorySessionService()
    agent = LlmAgent(name="clerk", model=ScriptedModel(model="scripted"), tools=[add_to_cart])
    runner = Runner(agent=agent, app_name="shop", session_service=sessions)
    if await sessions.get_session(**ALICE) is None:
        await sessions.create_session(**ALICE)
    message = types.Content(role="user", parts=[types.Part(text=text)])
    async for event in runner.run_async(user_id="alice", session_id="first", new_message=message):
        if event.is_final_response():
            print(f"clerk: {event.content.parts[0].text}")
    await sessions.close()


async def look(url: str) -> None:
    """Read the session as any other of this database."""
    async with SessionsDB(url) as db:
        [session] = await db.broker.list(channel="adk:shop", peer="alice")
        for message in await db.broker.history(session.id):
            print(f"{message.role:9} {message.content}")
        print("the user's state:", (await db.store.state(session.id, scope="peer")).values)


def main(folder: str) -> None:
    url = f"sqlite:///{Path(folder, 'sessions.db').as_posix()}"
    asyncio.run(say(url, "tea"))
    asyncio.run(say(url, "honey"))
    asyncio.run(look(url))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(folder)

"""A Google ADK agent as the handler of a worker: it keeps a cart, and asks a person before it pays.

Run it: ``pip install 'sessionsdb[google-adk]'``, then ``python google_adk_agent.py``. The model is
a script, so no key is needed. For a real one, give the agent ``model="gemini-…"``.
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
from google.adk.tools import FunctionTool, ToolContext
from google.genai import types

from sessionsdb import SessionsDB
from sessionsdb.agents import google_adk


class ScriptedModel(BaseLlm):
    """Calls a tool with what the user said, and then says what the tool returned."""

    async def generate_content_async(
        self, llm_request: LlmRequest, stream: bool = False
    ) -> AsyncGenerator[LlmResponse, None]:
        last = llm_request.contents[-1].parts[-1]
        if last.function_response is not None:
            given = last.function_response.response
            part = types.Part(text=given.get("result", given.get("error")))
        elif last.text == "pay":
            part = types.Part(function_call=types.FunctionCall(name="pay", args={}))
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


def pay(tool_context: ToolContext) -> str:
    """Pay for all in the cart."""
    count = len(tool_context.state["user:cart"])
    tool_context.state["user:cart"] = []
    return f"{count} items are paid."


async def main(url: str) -> None:
    agent = LlmAgent(
        name="clerk",
        model=ScriptedModel(model="scripted"),
        tools=[add_to_cart, FunctionTool(pay, require_confirmation=True)],
    )
    handler = google_adk.agent(agent)
    async with SessionsDB(url) as db:
        await db.broker.register("first", channel="adk:shop", peer="alice")
        for text in ("tea", "honey", "pay"):
            await db.broker.send("first", text)
        await db.worker(handler).run_until_idle()
        [question] = await db.broker.questions("first")
        print("asked:", question.prompt)
        await db.broker.answer(question.id, "yes")
        await db.worker(handler).run_until_idle()
        for message in await db.broker.history("first"):
            if message.role == "assistant" and not message.content.startswith("["):
                print("clerk:", message.content)
        print("the user's state:", (await db.store.state("first", scope="peer")).values)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(main(f"sqlite:///{Path(folder, 'sessions.db').as_posix()}"))

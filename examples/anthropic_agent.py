"""A model of Anthropic as the handler of a worker: a tool runs when a person has approved it.

Run it: ``pip install 'sessionsdb[anthropic]'``, then ``python anthropic_agent.py``. The endpoint is
a script, so no key is needed. For the real one, name a model, leave ``client`` out, and set
``ANTHROPIC_API_KEY``.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from pathlib import Path
from typing import Any

import httpx2
from anthropic import AsyncAnthropic

from sessionsdb import SessionsDB
from sessionsdb.agents import anthropic


def refund(order: int, euros: float) -> str:
    """Refund an order."""
    return f"{euros:g} € for order {order} are on their way"


def scripted(request: httpx2.Request) -> httpx2.Response:
    """Answer as the API does: with a call of the tool, or with the result that it has read."""
    content = json.loads(request.content)["messages"][-1]["content"]
    results = [one["content"] for one in content if isinstance(one, dict) and "content" in one]
    if results:
        block, text = {"type": "text", "text": ""}, f"Done: {results[0]}."
        delta = {"type": "text_delta", "text": text}
    else:
        block = {"type": "tool_use", "id": "toolu_1", "name": "refund", "input": {}}
        delta = {"type": "input_json_delta", "partial_json": '{"order": 7, "euros": 12.5}'}
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": "scripted"}
    used = {"input_tokens": 9, "output_tokens": 1}
    stop = {"stop_reason": "end_turn" if results else "tool_use", "stop_sequence": None}
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": {**message, **stop, "content": [], "usage": used}},
        {"type": "content_block_start", "index": 0, "content_block": block},
        {"type": "content_block_delta", "index": 0, "delta": delta},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": stop, "usage": {"output_tokens": 5}},
        {"type": "message_stop"},
    ]
    lines = [f"event: {one['type']}\ndata: {json.dumps(one)}\n\n" for one in events]
    headers = {"content-type": "text/event-stream"}
    return httpx2.Response(200, headers=headers, text="".join(lines))


async def main(url: str) -> None:
    transport = httpx2.MockTransport(scripted)
    async with (
        httpx2.AsyncClient(transport=transport) as http,
        SessionsDB(url) as db,
    ):
        handler = anthropic.agent(
            model="scripted",
            tools=[refund],
            approve=["refund"],
            client=AsyncAnthropic(api_key="none", http_client=http),
        )
        await db.broker.register("chat", channel="web", peer="ada", system="You help customers.")
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

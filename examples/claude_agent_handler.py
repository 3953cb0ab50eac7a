"""Claude Code as the handler of a worker: a tool runs when a person has approved it.

Run it: ``pip install 'sessionsdb[claude-agent]'``, then ``python claude_agent_handler.py``. The
endpoint of the model is a script, so no key is needed. For the real one, leave ``env`` out.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from pathlib import Path
from typing import Any

from claude_agent_sdk import ClaudeAgentOptions, create_sdk_mcp_server, tool

from sessionsdb import SessionsDB
from sessionsdb.agents import claude_agent


@tool("refund", "Refund an order", {"order": int})
async def refund(arguments: dict[str, Any]) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": f"Order {arguments['order']} is refunded."}]}


async def scripted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer a request as the API does: with a call of the tool, or with the result it has read."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    fields = dict(line.split(": ", 1) for line in head.splitlines() if ": " in line)
    length = int(fields.get("content-length", 0))
    body = json.loads(await reader.readexactly(length)) if length else {}
    blocks = [
        block
        for message in body.get("messages", ())
        for block in (message["content"] if isinstance(message["content"], list) else ())
    ]
    results = [one["content"][0]["text"] for one in blocks if one["type"] == "tool_result"]
    if results:
        block, delta = {"type": "text", "text": ""}, {"type": "text_delta", "text": results[-1]}
    else:
        block = {"type": "tool_use", "id": "toolu_1", "name": "mcp__shop__refund", "input": {}}
        delta = {"type": "input_json_delta", "partial_json": '{"order": 7}'}
    stop = {"stop_reason": "end_turn" if results else "tool_use", "stop_sequence": None}
    used = {"input_tokens": 9, "output_tokens": 5}
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": "scripted"}
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": {**message, **stop, "content": [], "usage": used}},
        {"type": "content_block_start", "index": 0, "content_block": block},
        {"type": "content_block_delta", "index": 0, "delta": delta},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": stop, "usage": used},
        {"type": "message_stop"},
    ]
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
    for event in events:
        writer.write(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())
    await writer.drain()
    writer.close()


async def main(folder: str) -> None:
    server = await asyncio.start_server(scripted, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    options = ClaudeAgentOptions(
        cwd=folder,
        tools=[],
        mcp_servers={"shop": create_sdk_mcp_server("shop", tools=[refund])},
        setting_sources=[],
        env={
            "ANTHROPIC_BASE_URL": f"http://127.0.0.1:{port}",
            "ANTHROPIC_API_KEY": "none",
            "CLAUDE_CONFIG_DIR": folder,
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        },
    )
    handler = claude_agent.agent(options, approve=["refund"])
    async with SessionsDB(f"sqlite:///{Path(folder, 'sessions.db').as_posix()}") as db:
        await db.broker.register("chat", channel="web", peer="ada")
        await db.broker.send("chat", "My tea was cold.")
        await db.worker(handler).run_until_idle()
        [question] = await db.broker.questions("chat")
        print("asked:", question.prompt)
        await db.broker.answer(question.id, "yes", author="support")
        await db.worker(handler).run_until_idle()
        for message in await db.broker.history("chat"):
            if message.role != "system":  # what the program adds for the model
                print(f"{message.role:9} {message.content}")
    server.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        asyncio.run(main(folder))

"""A local endpoint that answers as Anthropic's Messages API: it calls a tool once a turn."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

Message = dict[str, Any]


@asynccontextmanager
async def running(tool: str) -> AsyncIterator[str]:
    """Run the endpoint, and yield its URL.

    The model calls ``tool`` with the text of the user, one word, as ``word``, and then says its
    result.
    """

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                writer.write(await _response(reader, tool))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def _response(reader: asyncio.StreamReader, tool: str) -> bytes:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    fields = dict(line.split(": ", 1) for line in head.splitlines() if ": " in line)
    length = int(fields.get("content-length", 0))
    body = json.loads(await reader.readexactly(length)) if length else {}
    if not body.get("messages") or "count_tokens" in head:
        return b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"
    message = _answer(body["messages"], tool)
    if body.get("stream"):
        kind, content = "text/event-stream", "".join(_events(message))
    else:
        kind, content = "application/json", json.dumps(message)
    data = content.encode()
    return (
        f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {len(data)}\r\n\r\n".encode()
        + data
    )


def _answer(messages: list[Message], tool: str) -> Message:
    last = messages[-1]["content"]
    blocks = [{"type": "text", "text": last}] if isinstance(last, str) else last
    results = [block["content"] for block in blocks if block["type"] == "tool_result"]
    if results:
        result = results[0] if isinstance(results[0], str) else results[0][0]["text"]
        content, reason = {"type": "text", "text": f"It says {result.strip()}."}, "end_turn"
    else:
        # The SDK's program puts texts of its own beside that of the user, which is one word.
        texts = [block["text"].strip() for block in blocks if block["type"] == "text"]
        [word] = [text for text in texts if text.isalpha()]
        content = {"type": "tool_use", "id": f"toolu_{len(messages)}", "name": tool}
        content, reason = content | {"input": {"word": word}}, "tool_use"
    return {
        "id": f"msg_{len(messages)}",
        "type": "message",
        "role": "assistant",
        "model": "scripted",
        "content": [content],
        "stop_reason": reason,
        "stop_sequence": None,
        "usage": {"input_tokens": 5, "output_tokens": 3},
    }


def _events(message: Message) -> Iterator[str]:
    """Yield a message as the events of a stream."""
    [content] = message["content"]
    if content["type"] == "text":
        empty = {"type": "text", "text": ""}
        delta = {"type": "text_delta", "text": content["text"]}
    else:
        empty = content | {"input": {}}
        delta = {"type": "input_json_delta", "partial_json": json.dumps(content["input"])}
    stop = {"stop_reason": message["stop_reason"], "stop_sequence": None}
    for event in (
        {"type": "message_start", "message": message | {"content": [], "stop_reason": None}},
        {"type": "content_block_start", "index": 0, "content_block": empty},
        {"type": "content_block_delta", "index": 0, "delta": delta},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": stop, "usage": {"output_tokens": 3}},
        {"type": "message_stop"},
    ):
        yield f"event: {event['type']}\ndata: {json.dumps(event)}\n\n"

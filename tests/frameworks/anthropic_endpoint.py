"""A local endpoint of Anthropic's Messages API for the program of the Claude Agent SDK."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

Message = dict[str, Any]


class Endpoint:
    """What the model says depends on the last text, which is one word.

    - ``twice``: two calls of the tool at once. ``mixed``: a second call of ``TOOL_freely``.
    - any other word: a call of the tool with it.
    - the result of a tool, ``say…``, ``hang``: ``It says TEXT.`` At the first ``hang`` it hangs
      behind the text. Without a word of the user: ``It says continues.``
    """

    def __init__(self, tool: str) -> None:
        self.url = ""
        self.requests: list[Message] = []
        self.hanging = asyncio.Event()
        self.left = asyncio.Event()
        """Set when the client of the request that hangs has closed its connection."""
        self._tool = tool

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                body = await _request(reader)
                if body is None:
                    writer.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
                else:
                    await self._respond(body, reader, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _respond(
        self, body: Message, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.requests.append(body)
        message = _answer(body["messages"], self._tool)
        events = list(_events(message))
        if _words(body["messages"])[-1:] == ["hang"] and not self.hanging.is_set():
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")
            writer.write("".join(events[:3]).encode())
            await writer.drain()
            self.hanging.set()
            await reader.read()  # until the client is gone
            self.left.set()
            raise ConnectionResetError
        kind, content = "text/event-stream", "".join(events)
        if not body.get("stream"):
            kind, content = "application/json", json.dumps(message)
        data = content.encode()
        head = f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {len(data)}\r\n\r\n"
        writer.write(head.encode() + data)


@asynccontextmanager
async def scripted(tool: str) -> AsyncIterator[Endpoint]:
    """Run the endpoint. Its ``url`` is the base of the API."""
    endpoint = Endpoint(tool)
    server = await asyncio.start_server(endpoint.serve, "127.0.0.1", 0)
    endpoint.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield endpoint
    finally:
        server.close()


@asynccontextmanager
async def running(tool: str) -> AsyncIterator[str]:
    """Run the endpoint, and yield its URL."""
    async with scripted(tool) as endpoint:
        yield endpoint.url


async def _request(reader: asyncio.StreamReader) -> Message | None:
    """Return the body of a request, ``None`` for one that asks for no message."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    fields = dict(line.split(": ", 1) for line in head.splitlines() if ": " in line)
    length = int(fields.get("content-length", 0))
    body: Message = json.loads(await reader.readexactly(length)) if length else {}
    return None if not body.get("messages") or "count_tokens" in head else body


def _blocks(messages: list[Message]) -> list[Message]:
    """Return the blocks of the last message of the user. The program may put one of the role
    ``system`` behind it."""
    last = [one for one in messages if one["role"] == "user"][-1]["content"]
    return [{"type": "text", "text": last}] if isinstance(last, str) else last


def _words(messages: list[Message]) -> list[str]:
    """Return the texts of one word. The program puts texts of its own beside that of the user."""
    texts = [block["text"].strip() for block in _blocks(messages) if block["type"] == "text"]
    return [text for text in texts if text.isalpha()]


def _result(block: Message) -> str:
    content = block["content"]
    text = content if isinstance(content, str) else content[0]["text"]
    return str(text).partition("<system-reminder>")[0].strip()


def _answer(messages: list[Message], tool: str) -> Message:
    results = [_result(one) for one in _blocks(messages) if one["type"] == "tool_result"]
    words = _words(messages)
    word = words[-1] if words else "continues"
    reason = "end_turn"
    if word.startswith("say"):
        results = []  # of a turn before, which was not answered
    if results or word.startswith("say") or word in ("hang", "continues"):
        content = [{"type": "text", "text": f"It says {results[0] if results else word}."}]
    else:
        given = {"word": word}
        names = {"twice": [tool] * 2, "mixed": [tool, f"{tool}_freely"]}.get(word, [tool])
        content = [
            {"type": "tool_use", "id": f"toolu_{len(messages)}_{n}", "name": name, "input": given}
            for n, name in enumerate(names)
        ]
        reason = "tool_use"
    return {
        "id": f"msg_{len(messages)}",
        "type": "message",
        "role": "assistant",
        "model": "scripted",
        "content": content,
        "stop_reason": reason,
        "stop_sequence": None,
        "usage": {"input_tokens": 5, "output_tokens": 3},
    }


def _events(message: Message) -> Iterator[str]:
    """Yield a message as the events of a stream."""
    stop = {"stop_reason": message["stop_reason"], "stop_sequence": None}
    events: list[Message] = [
        {"type": "message_start", "message": message | {"content": [], "stop_reason": None}}
    ]
    for index, content in enumerate(message["content"]):
        if content["type"] == "text":
            empty = {"type": "text", "text": ""}
            delta = {"type": "text_delta", "text": content["text"]}
        else:
            empty = content | {"input": {}}
            delta = {"type": "input_json_delta", "partial_json": json.dumps(content["input"])}
        events += [
            {"type": "content_block_start", "index": index, "content_block": empty},
            {"type": "content_block_delta", "index": index, "delta": delta},
            {"type": "content_block_stop", "index": index},
        ]
    events += [
        {"type": "message_delta", "delta": stop, "usage": {"output_tokens": 3}},
        {"type": "message_stop"},
    ]
    for event in events:
        yield f"event: {event['type']}\ndata: {json.dumps(event)}\n\n"

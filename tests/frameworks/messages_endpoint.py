"""A local endpoint that streams as Anthropic's Messages API, and refuses what that API refuses."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

Message = dict[str, Any]
Block = dict[str, Any]


class Endpoint:
    """What the model says depends on the last message.

    - ``add A B``: a call of the tool ``add``. ``add twice A B``: two calls at once.
    - ``cut A B``: the same call, and the answer ends with ``max_tokens``.
    - ``think``: reasoning with a signature before the text.
    - ``search``: the turn pauses once, as with a tool that runs at Anthropic.
    - ``loop``: a call of ``add`` at every step where tools may be called.
    - ``hang``: a first word, then nothing, at the first request only.
    - the result of a tool: ``It is RESULT.``, and all other texts: ``You said TEXT.``

    The first of ``script`` takes the place of these rules: the blocks of an answer, and its end.
    """

    def __init__(self) -> None:
        self.url = ""
        self.requests: list[dict[str, Any]] = []
        self.script: list[tuple[list[Block], str]] = []
        self.hanging = asyncio.Event()
        self.left = asyncio.Event()
        """Set when the client of the request that hangs has closed its connection."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._serve(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        fields = dict(line.split(": ", 1) for line in head.splitlines() if ": " in line)
        request = json.loads(await reader.readexactly(int(fields["content-length"])))
        self.requests.append(request)
        if (reason := _refused(request)) is not None:
            error = {"type": "invalid_request_error", "message": reason}
            body = json.dumps({"type": "error", "error": error}).encode()
            writer.write(b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n")
            writer.write(f"content-length: {len(body)}\r\n\r\n".encode() + body)
            await writer.drain()
            return
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
        )
        hangs = _last_text(request) == "hang" and not self.hanging.is_set()
        content, reason = self.script.pop(0) if self.script else _answer(request)
        for event in _events([{"type": "text", "text": "begun "}] if hangs else content, reason):
            if hangs and event["type"] == "content_block_stop":
                self.hanging.set()
                await reader.read()  # until the client is gone
                self.left.set()
                return
            writer.write(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())
            await writer.drain()


def _refused(request: dict[str, Any]) -> str | None:
    """Return why the API would refuse a request, or ``None``."""
    messages = request["messages"]
    roles = [one["role"] for one in messages]
    if roles != ["user", "assistant"] * (len(roles) // 2) + ["user"] * (len(roles) % 2):
        return f"roles do not alternate: {roles}"
    if not len(roles) % 2 and _blocks(messages[-1])[-1]["type"] != "server_tool_use":
        return "the last message is not the user's"
    waiting: list[str] = []
    for message in messages:
        blocks = _blocks(message)
        if not blocks or any(one["type"] == "text" and not one["text"].strip() for one in blocks):
            return "empty content"
        results = [one["tool_use_id"] for one in blocks if one["type"] == "tool_result"]
        if results != waiting or any(
            one["type"] != "tool_result" for one in blocks[: len(results)]
        ):
            return f"results {results} do not stand behind their calls {waiting}"
        waiting = [one["id"] for one in blocks if one["type"] == "tool_use"]
        if waiting and not request.get("tools"):
            return "there are calls, and no tools are defined"
        if any(one["type"] == "thinking" and one["signature"] != "signed" for one in blocks):
            return "reasoning without its signature"
    if not isinstance(request.get("max_tokens"), int):
        return "max_tokens is missing"
    return None


def _blocks(message: Message) -> list[Block]:
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _last_text(request: dict[str, Any]) -> str:
    last = _blocks(request["messages"][-1])[-1]
    return str(last.get("text", last.get("content", last["type"])))


def _answer(request: dict[str, Any]) -> tuple[list[Block], str]:
    messages = request["messages"]
    last, text = _blocks(messages[-1])[-1], _last_text(request)
    asked = [
        block["text"]
        for one in messages
        if one["role"] == "user"
        for block in _blocks(one)
        if block["type"] == "text"
    ][-1]
    may_call = request.get("tools") and request.get("tool_choice") != {"type": "none"}
    if may_call and (text.startswith(("add ", "cut ")) or asked == "loop"):
        numbers = [int(word) for word in text.split() if word.isdigit()] or [1, 1]
        call = {"type": "tool_use", "name": "add", "input": dict(zip("ab", numbers, strict=True))}
        calls = [
            {**call, "id": f"toolu_{len(messages)}_{index}"}
            for index in range(2 if "twice" in text else 1)
        ]
        reason = "max_tokens" if text.startswith("cut ") else "tool_use"
        return [{"type": "text", "text": "I add. "}, *calls], reason
    if text == "search" and len(messages) == 1:
        call = {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {}}
        return [call], "pause_turn"
    said = f"It is {text}." if last["type"] == "tool_result" else f"You said {text}."
    answer = [{"type": "text", "text": said}]
    if text == "think":
        answer.insert(0, {"type": "thinking", "thinking": "Hm.", "signature": "signed"})
    return answer, "end_turn"


def _events(content: list[Block], reason: str) -> Iterator[Message]:
    """Yield a message as the events of a stream."""
    usage = {"input_tokens": 2, "cache_read_input_tokens": 3, "output_tokens": 1}
    fields = {"id": "msg_1", "type": "message", "role": "assistant", "model": "scripted-1"}
    start = {**fields, "content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
    yield {"type": "message_start", "message": start}
    for index, block in enumerate(content):
        empty, deltas = _deltas(block)
        yield {"type": "content_block_start", "index": index, "content_block": empty}
        for delta in deltas:
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    stop = {"stop_reason": reason, "stop_sequence": None}
    yield {"type": "message_delta", "delta": stop, "usage": {"output_tokens": 3}}
    yield {"type": "message_stop"}


def _deltas(block: Block) -> tuple[Block, list[Block]]:
    if block["type"] == "text":
        words = block["text"].split(" ")
        parts = [f"{word} " for word in words[:-1]] + words[-1:]
        texts = [{"type": "text_delta", "text": part} for part in parts if part]
        return {"type": "text", "text": ""}, texts
    if block["type"] == "thinking":
        deltas = [
            {"type": "thinking_delta", "thinking": block["thinking"]},
            {"type": "signature_delta", "signature": block["signature"]},
        ]
        return {**block, "thinking": "", "signature": ""}, deltas
    given = json.dumps(block["input"])
    pieces = [given[:3], given[3:]]
    return {**block, "input": {}}, [
        {"type": "input_json_delta", "partial_json": piece} for piece in pieces if piece
    ]


@asynccontextmanager
async def running() -> AsyncIterator[Endpoint]:
    """Run an endpoint. Its ``url`` is the base of the API."""
    endpoint = Endpoint()
    server = await asyncio.start_server(endpoint.serve, "127.0.0.1", 0)
    endpoint.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield endpoint
    finally:
        server.close()

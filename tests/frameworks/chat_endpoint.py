"""A local endpoint that streams as OpenAI's chat completions API."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

Message = dict[str, Any]


class Endpoint:
    """What the model says depends on the last message.

    - ``add A B``: a call of the tool ``add``. ``add twice A B``: two calls at once.
    - ``call``: the calls of ``calls``.
    - ``loop``: a call of ``add`` at every step where tools are offered.
    - ``hang``: a first word, then nothing, at the first request only.
    - the result of a tool: ``It is RESULT.``, and all other texts: ``You said TEXT.``

    The first of ``script`` takes the place of these rules.
    """

    def __init__(self) -> None:
        self.url = ""
        self.script: list[list[Message]] = []
        """The deltas of the next answers. A delta may have the ``finish_reason`` of its chunk."""
        self.requests: list[dict[str, Any]] = []
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.hanging = asyncio.Event()
        self.obeys = True
        """Whether the model calls no tool with the choice ``none``."""
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
        self.requests.append(dict(request))
        if not self.obeys:
            request.pop("tool_choice", None)
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
        )
        if request["messages"][-1]["content"] == "hang" and not self.hanging.is_set():
            writer.write(_event(_delta({"content": "begun "})))
            await writer.drain()
            self.hanging.set()
            await reader.read()  # until the client is gone
            self.left.set()
            return
        scripted = self.script.pop(0) if self.script else None
        for delta in scripted or _deltas(request, self.calls):
            writer.write(_event(_delta(delta)))
            await writer.drain()
        usage = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
        writer.write(_event({**_delta({}), "choices": [], "usage": usage}) + b"data: [DONE]\n\n")
        await writer.drain()


def _event(chunk: Message) -> bytes:
    return f"data: {json.dumps(chunk)}\n\n".encode()


def _delta(delta: Message) -> Message:
    reason = delta.get("finish_reason")
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    fields = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "scripted-1"}
    return {**fields, "choices": [choice]}


def _deltas(request: dict[str, Any], calls: list[tuple[str, dict[str, Any]]]) -> Iterator[Message]:
    last = request["messages"][-1]
    text = last["content"] if isinstance(last["content"], str) else last["content"][0]["text"]
    asked = [one for one in request["messages"] if one["role"] == "user"][-1]["content"]
    if text == "call":
        for index, (name, arguments) in enumerate(calls):
            function = {"name": name, "arguments": json.dumps(arguments)}
            call = {"index": index, "id": f"call_{index}", "type": "function"}
            yield {"tool_calls": [{**call, "function": function}]}
        return
    if (
        request.get("tools")
        and request.get("tool_choice") != "none"
        and (text.startswith("add ") or asked == "loop")
    ):
        numbers = [int(word) for word in text.split() if word.isdigit()] or [1, 1]
        written = json.dumps(dict(zip("ab", numbers, strict=True)))
        yield {"role": "assistant", "content": "I add. "}
        for index in range(2 if "twice" in text else 1):
            id = f"call_{len(request['messages'])}_{index}"
            start = {"name": "add", "arguments": ""}
            yield {
                "tool_calls": [{"index": index, "id": id, "type": "function", "function": start}]
            }
            for part in (written[:3], written[3:]):
                yield {"tool_calls": [{"index": index, "function": {"arguments": part}}]}
        return
    said = f"It is {text}." if last["role"] == "tool" else f"You said {text}."
    for word in said.split(" "):
        yield {"content": word if word.endswith(".") else f"{word} "}


@asynccontextmanager
async def running() -> AsyncIterator[Endpoint]:
    """Run an endpoint. Its ``url`` is the base of the API."""
    endpoint = Endpoint()
    server = await asyncio.start_server(endpoint.serve, "127.0.0.1", 0)
    endpoint.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield endpoint
    finally:
        server.close()

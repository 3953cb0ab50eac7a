"""The chat of docs/live.md, over HTTP and server-sent events."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.test_docs import ROOT, blocks


def chat_program() -> str:
    [program] = [b.text for b in blocks(ROOT / "docs" / "live.md", "python") if "FastAPI" in b.text]
    return program


@asynccontextmanager
async def chat(folder: Path) -> AsyncIterator[str]:
    """Serve the chat, and return its address."""
    import uvicorn

    names: dict[str, Any] = {"__name__": "chat"}
    program = chat_program().replace("sqlite:///chats.db", f"sqlite:///{folder}/chats.db")
    exec(compile(program, "live.md", "exec"), names)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(
            names["app"], log_level="error", timeout_graceful_shutdown=1, lifespan="on"
        )
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await serving


async def events(http: Any, url: str, last_event_id: str | None = None) -> AsyncIterator[Any]:
    headers = {} if last_event_id is None else {"Last-Event-ID": last_event_id}
    async with http.stream("GET", url, headers=headers) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        cursor = ""
        async for line in response.aiter_lines():
            field, _, value = line.partition(": ")
            if field == "id":
                cursor = value
            elif field == "data":
                event = json.loads(value)
                assert event["cursor"] == cursor
                yield event


async def test_the_chat_streams_a_reply_and_goes_on_at_the_last_event(tmp_path: Path) -> None:
    import httpx2

    async with chat(tmp_path) as address, httpx2.AsyncClient(timeout=30) as http:
        assert (await http.get(f"{address}/chats/nobody/events")).status_code == 404
        sent = await http.post(f"{address}/chats/ada", json={"text": "hello"})
        assert sent.json()["position"] == 1
        seen = []
        async for event in events(http, f"{address}/chats/ada/events"):
            seen.append(event)
            if event["type"] == "message":
                break
        assert seen[-1]["message"]["content"] == "hello"
        cursor = seen[-1]["cursor"]
        async for event in events(http, f"{address}/chats/ada/events", cursor):
            seen.append(event)
            if event["type"] == "idle":
                break
        said = [e["message"]["content"] for e in seen if e["type"] == "message"]
        assert said == ["hello", "You said: hello"]
        assert [e["status"] for e in seen if e["type"] == "turn"][-1] == "done"
        assert (await http.post(f"{address}/chats/ada/stop")).json() == []


def test_the_chat_is_short() -> None:
    lines = [line for line in chat_program().splitlines() if line.strip()]
    assert len(lines) <= 40

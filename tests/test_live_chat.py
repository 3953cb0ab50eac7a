"""The chat of docs/live.md, over HTTP and server-sent events."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.test_docs import ROOT, blocks


def chat_program() -> str:
    [program] = [b.text for b in blocks(ROOT / "docs" / "live.md", "python") if "FastAPI" in b.text]
    return program


def chat_command() -> list[str]:
    [command] = [b.text for b in blocks(ROOT / "docs" / "live.md", "sh") if "uvicorn" in b.text]
    return shlex.split(command)


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


async def test_what_the_chat_refuses(tmp_path: Path) -> None:
    import httpx2

    async with chat(tmp_path) as address, httpx2.AsyncClient(timeout=30) as http:
        empty = await http.post(f"{address}/chats/ada", json={"text": ""})
        assert (empty.status_code, list(empty.json())) == (400, ["detail"])
        await http.post(f"{address}/chats/ada", json={"text": "hello"})
        for wrong in ("nonsense", "9" * 30):
            answer = await http.get(f"{address}/chats/ada/events", headers={"Last-Event-ID": wrong})
            assert (answer.status_code, list(answer.json())) == (400, ["detail"])


async def test_a_stream_at_the_end_of_the_session_begins_and_gets_what_comes(
    tmp_path: Path,
) -> None:
    import httpx2

    async with chat(tmp_path) as address, httpx2.AsyncClient(timeout=30) as http:
        url = f"{address}/chats/ada"
        await http.post(url, json={"text": "hello"})
        async for event in events(http, f"{url}/events"):
            if event["type"] == "idle":
                break
        async with http.stream(
            "GET", f"{url}/events", headers={"Last-Event-ID": event["cursor"]}
        ) as answer:
            await http.post(url, json={"text": "again"})
            async for line in answer.aiter_lines():
                if "You said: again" in line:
                    break


async def test_the_command_stops_while_a_browser_listens(tmp_path: Path) -> None:
    import httpx2

    (tmp_path / "chat.py").write_text(chat_program())
    with socket.create_server(("127.0.0.1", 0)) as listener:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            *chat_command(),
            "--fd",
            str(listener.fileno()),
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            pass_fds=[listener.fileno()],
            stderr=asyncio.subprocess.PIPE,
        )
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        try:
            async with httpx2.AsyncClient(timeout=30) as http:
                await http.post(f"{address}/chats/ada", json={"text": "hello"})
                async with http.stream("GET", f"{address}/chats/ada/events") as answer:
                    lines = answer.aiter_lines()  # the connection is closed with the iterator
                    await anext(lines)
                    process.terminate()
                    async with asyncio.timeout(30):
                        _, log = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    assert b"Application shutdown complete" in log, log.decode()
    assert b"Cancel 1 running task" in log, log.decode()
    assert b"Traceback" not in log, log.decode()


def test_the_chat_is_short() -> None:
    lines = [line for line in chat_program().splitlines() if line.strip()]
    assert len(lines) <= 50

"""The MCP server beside clients that are broken or hostile."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest

from devtools.databases import Database
from sessionsdb import SessionsDB, Turn
from sessionsdb.http import connections
from sessionsdb.http.connections import max_connections
from sessionsdb.mcp import admission
from sessionsdb.tools import SessionsTool
from sessionsdb.tools.rendering import RESULT_CHARACTERS
from tests.support.mcp import COMMAND, http_server
from tests.support.tools import call_ok, register_sessions

TOKENS = {"a-token-long-enough-1": {"session": "a"}, "a-token-long-enough-2": {"session": "b"}}

HELLO: dict[str, Any] = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "clientInfo": {"name": "test", "version": "1"},
    },
}


@pytest.fixture
def kind() -> str:
    return "sqlite"


def headers(token: str, session: str | None = None) -> dict[str, str]:
    found = {
        "Authorization": f"Bearer {token}",
        "Accept": "application/json, text/event-stream",
    }
    return found if session is None else {**found, "mcp-session-id": session}


async def test_one_token_has_a_bounded_number_of_sessions_and_idle_ones_go_first(
    database: Database, tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens.json"
    tokens.write_text(json.dumps(TOKENS))
    tokens.chmod(0o600)
    first, second = TOKENS
    with http_server(database, "--tokens", str(tokens)) as url:
        async with httpx2.AsyncClient(timeout=60) as http:

            async def opened(token: str) -> str:
                answer = await http.post(url, json=HELLO, headers=headers(token))
                assert answer.status_code == 200, answer.text
                return str(answer.headers["mcp-session-id"])

            async def lives(token: str, session: str) -> bool:
                ping = {"jsonrpc": "2.0", "id": 2, "method": "ping"}
                answer = await http.post(url, json=ping, headers=headers(token, session))
                assert answer.status_code in (200, 404)
                return bool(answer.status_code == 200)

            other = await opened(second)
            sessions = [await opened(first) for _ in range(admission.MAX_SESSIONS)]
            assert await lives(first, sessions[0])  # used last from now on
            sessions += [await opened(first) for _ in range(2)]
            alive = [await lives(first, session) for session in sessions]
            assert alive == [True, False, False] + [True] * (admission.MAX_SESSIONS - 1)
            assert await lives(second, other)


async def test_health_needs_no_token(database: Database, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.json"
    tokens.write_text(json.dumps(TOKENS))
    tokens.chmod(0o600)
    with http_server(database, "--tokens", str(tokens)) as url:
        async with httpx2.AsyncClient() as http:
            answer = await http.get(url.replace("/mcp", "/health"))
            assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
            assert (await http.post(url.replace("/mcp", "/health"))).status_code == 405
            assert (await http.get(url)).status_code == 401


async def test_half_open_connections_end_and_leave_room(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "REQUEST_SECONDS", 0.3)
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 5)
    assert max_connections() == 5
    import uvicorn

    from sessionsdb.mcp import Caller, application

    async with SessionsDB(database.url) as db:
        listener = socket.create_server(("127.0.0.1", 0))
        app = application(db, Caller(session="a"))
        config = uvicorn.Config(app, http=connections.BoundedProtocol, log_level="error")
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        host, port = listener.getsockname()
        try:
            held = [await asyncio.open_connection(host, port) for _ in range(12)]
            held[-1][1].write(b"POST /mcp HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n12")
            held[-2][1].write(b"GET /health HT")
            async with httpx2.AsyncClient() as http:  # which takes the place of one of them
                answer = await http.get(f"http://{host}:{port}/health")
                assert answer.status_code == 200
            async with asyncio.timeout(20):
                for reader, writer in held:
                    with suppress(ConnectionError):
                        assert await reader.read() == b""
                    writer.close()
        finally:
            server.should_exit = True
            await serving
            listener.close()


def test_every_line_over_stdio_that_wants_an_answer_gets_one(database: Database) -> None:
    with subprocess.Popen(
        [*COMMAND, "--url", database.url, "mcp", "--session", "a"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def answer_to(line: str) -> dict[str, Any]:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(line + "\n")
            process.stdin.flush()
            answer: dict[str, Any] = json.loads(process.stdout.readline())
            return answer

        assert answer_to(json.dumps(HELLO))["result"]["serverInfo"]["name"] == "sessionsdb"
        process.stdin.write('{"jsonrpc":"2.0","method":"notifications/initialized"}\n')
        call = '{"jsonrpc":"2.0","id":%s,"method":"tools/call","params":{"name":"sessions_history",'
        call += '"arguments":{"session_id":"\\ud800"}}}'
        for id in ("7", '"seven"'):
            answer = answer_to(call % id)
            assert answer["id"] == json.loads(id)
            assert "surrogate" in answer["error"]["message"]
        assert answer_to("nonsense")["error"]["code"] == -32700
        assert answer_to('{"jsonrpc":"2.0","id":8}')["id"] == 8
        listed = answer_to('{"jsonrpc":"2.0","id":9,"method":"prompts/list"}')
        assert listed == {"jsonrpc": "2.0", "id": 9, "result": {"prompts": []}}
        process.stdin.close()
        assert process.wait(20) == 0


async def test_a_list_or_object_can_come_as_its_json_text(db: SessionsDB) -> None:
    await register_sessions(db, "me")
    await register_sessions(db, "other", parent="me")
    tool = SessionsTool(db.broker, "me")
    text = json.dumps({"session_id": "other", "text": '["stays text"]'})
    sent = await tool.execute("1", "sessions_send", text)
    assert not sent.is_error
    receipt = {"session_id": "other", "position": 1}
    as_text = json.dumps(receipt)
    for receipts in (json.dumps([receipt]), [as_text], json.dumps([as_text])):
        found = await call_ok(tool, "sessions_status", receipts=receipts)
        assert found["outcomes"][0]["position"] == 1
    spawned = await call_ok(tool, "sessions_spawn", prompt='{"a": 1}', tools='["search"]')
    assert (await db.broker.get(spawned["id"])).tools == ["search"]
    assert (await tool.execute("1", "sessions_status", {"receipts": "nonsense"})).is_error
    assert (await tool.execute("1", "sessions_status", {"receipts": '{"a": 1}'})).is_error
    assert (await tool.execute("1", "sessions_status", "[" * 100_000)).is_error


@pytest.mark.parametrize("edge", [{}, {"after": -1}, {"limit": 500}])
async def test_a_history_of_huge_messages_takes_little_memory(
    db: SessionsDB, edge: dict[str, int]
) -> None:
    await register_sessions(db, "me")
    for n in range(40):
        await db.store.append("me", [{"role": "user", "content": f"{n:04}" + "x" * 1_000_000}])
    tool = SessionsTool(db.broker, "me")
    tracemalloc.start()
    try:
        page = await call_ok(tool, "sessions_history", session_id="me", **edge)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(page["messages"]) >= 10
    assert page["truncated"]
    assert peak < 10_000_000


@pytest.mark.parametrize("name", ["sessions_wait", "sessions_status"])
async def test_a_wait_for_huge_replies_takes_little_memory(db: SessionsDB, name: str) -> None:
    async def handler(turn: Turn) -> str:
        return turn.text + "x" * 1_000_000

    await register_sessions(db, "me")
    receipts = [
        (await db.broker.send("me", f"{n:04}")).model_dump(include={"session_id", "position"})
        for n in range(50)
    ]
    await db.worker(handler, batch=1).run_until_idle()
    tool = SessionsTool(db.broker, "me")
    tracemalloc.start()
    try:
        found = await call_ok(tool, name, receipts=receipts)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    replies = [outcome["reply"] for outcome in found["outcomes"]]
    assert [reply["content"][:4] for reply in replies] == [f"{n:04}" for n in range(50)]
    assert all(reply["length"] == 1_000_004 and reply["next_offset"] for reply in replies)
    assert sum(len(reply["content"]) for reply in replies) <= RESULT_CHARACTERS
    assert peak < 10_000_000

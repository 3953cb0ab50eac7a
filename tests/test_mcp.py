"""The MCP server from the side of a client: in another process, over stdio and over HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp import Client, MCPError

from devtools.databases import Database
from sessionsdb import SessionsDB, Turn, handlers
from tests.support.mcp import http_server, over_http, over_stdio
from tests.support.tools import definitions, register_sessions, running_worker
from tests.support.waiting import until

TOKEN, OTHER_TOKEN = "token-of-my-desktop", "token-of-somebody-else"


@pytest.fixture(params=["stdio", "http"])
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@asynccontextmanager
async def client_of(
    transport: str, database: Database, *arguments: str, mode: str = "auto"
) -> AsyncIterator[Client]:
    if transport == "stdio":
        async with over_stdio(database, *arguments, mode=mode) as client:
            yield client
        return
    with http_server(database, *arguments) as url:
        async with over_http(url, mode=mode) as client:
            yield client


async def call_ok(client: Client, name: str, /, **arguments: Any) -> dict[str, Any]:
    """Call a tool and return its structured content. Asserts success and an equal text."""
    result = await client.call_tool(name, arguments)
    assert not result.is_error, result.content
    [content] = result.content
    assert content.type == "text"
    assert json.loads(content.text) == result.structured_content
    found: dict[str, Any] = result.structured_content
    return found


async def call_refused(client: Client, name: str, /, **arguments: Any) -> str:
    result = await client.call_tool(name, arguments)
    assert result.is_error
    [content] = result.content
    assert content.type == "text"
    return content.text


async def test_a_client_can_use_every_tool_and_resource(
    transport: str, db: SessionsDB, database: Database
) -> None:
    told: list[tuple[float, float | None, str | None]] = []
    first_report = asyncio.Event()

    async def progress(done: float, total: float | None, message: str | None) -> None:
        told.append((done, total, message))
        first_report.set()

    async def echo_after_the_report(turn: Turn) -> str:
        """A reply that is there at the first look leaves nothing to report."""
        await first_report.wait()
        return await handlers.echo(turn)

    async with (
        running_worker(db, echo_after_the_report),
        client_of(transport, database, "--session", "desk") as client,
    ):
        listed = await call_ok(client, "sessions_list")
        assert [session["id"] for session in listed["sessions"]] == ["desk"]
        assert listed["sessions"][0]["channel"] == "mcp"

        result = await client.call_tool(
            "sessions_spawn",
            {"prompt": "hello", "wait_for_first_reply": True},
            progress_callback=progress,
        )
        spawned = result.structured_content
        child = spawned["id"]
        assert spawned["first_reply"]["content"] == "echo: hello"
        assert told[0][1:] == (45.0, f"spawned {child}; 0 of 1 finished")

        sent = await call_ok(client, "sessions_send", session_id=child, text="more")
        receipt = {"session_id": child, "position": sent["position"]}
        assert (sent["ok"], receipt["position"]) == (True, 2)
        found = await call_ok(client, "sessions_wait", receipts=[receipt])
        assert found["outcomes"][0]["reply"]["content"].startswith("echo: more")
        assert await call_ok(client, "sessions_status", receipts=[receipt]) == {
            key: value for key, value in found.items() if key != "complete"
        }

        history = await call_ok(client, "sessions_history", session_id=child)
        assert [m["role"] for m in history["messages"]] == ["user", "assistant"] * 2
        assert history["messages"][0]["sender"] == "desk"
        assert history["messages"][0]["content"].endswith("> hello")

        page = await client.list_resources()
        assert [r.uri for r in page.resources] == [
            f"sessionsdb://sessions/{child}",
            "sessionsdb://sessions/desk",
        ]
        read = await client.read_resource(f"sessionsdb://sessions/{child}")
        assert json.loads(read.contents[0].text) == history
        older = await client.read_resource(f"sessionsdb://sessions/{child}?before=3")
        assert len(json.loads(older.contents[0].text)["messages"]) == 2
        [template] = (await client.list_resource_templates()).resource_templates
        assert template.uri_template == "sessionsdb://sessions/{id}{?before}"

        assert (await call_ok(client, "sessions_end", session_id=child))["ended"] == 1
        told_end = await call_refused(
            client, "sessions_send", session_id=child, text="still there?"
        )
        assert told_end.startswith(f"sessions_send failed: session has ended: {child}")


async def test_metadata_that_is_no_unicode_ends_no_server(
    transport: str, db: SessionsDB, database: Database
) -> None:
    async with client_of(transport, database, "--session", "desk") as client:
        await call_ok(client, "sessions_list")
        await db.broker.register("child", channel="cli", peer="ada", parent="desk")
        await db.broker.send("child", "hello", metadata={"note": "\ud800 é", "\udfff": 1})
        await db.worker(handlers.echo).run_until_idle()
        result = await client.call_tool("sessions_history", {"session_id": "child"})
        assert not result.is_error
        assert result.structured_content["messages"][0]["metadata"]["note"] == "? é"
        [content] = result.content
        read = await client.read_resource("sessionsdb://sessions/child")
        for text in (content.text, read.contents[0].text):  # the text escapes them
            assert json.loads(text)["messages"][0]["metadata"]["note"] == "\ud800 é"
        await call_ok(client, "sessions_list")


async def test_each_error_reaches_the_model_as_text(
    transport: str, db: SessionsDB, database: Database
) -> None:
    await register_sessions(db, "not-mine")
    async with client_of(transport, database, "--session", "desk", mode="legacy") as client:
        for name, arguments, text in [
            ("sessions_history", {"session_id": ""}, "requires a non-empty `session_id`"),
            ("sessions_history", {"session_id": "nobody"}, "unknown session: nobody"),
            ("sessions_history", {"session_id": "not-mine"}, "unknown session: not-mine"),
            ("sessions_send", {"session_id": "desk", "text": "x"}, "it would recurse"),
            ("sessions_spawn", {"prompt": "x", "namespace": "y"}, "Invalid sessions_spawn input"),
            ("sessions_wait", {"receipts": "x"}, "Invalid sessions_wait input: receipts"),
            ("sessions_end", {"session_id": "desk"}, "cancel the turn"),
            ("sessions_dance", {}, "Unknown sessions tool: sessions_dance"),
        ]:
            assert text in await call_refused(client, name, **arguments)
        for uri in ("sessionsdb://sessions/not-mine", "sessionsdb://sessions/nobody"):
            with pytest.raises(MCPError, match=r"unknown session: "):
                await client.read_resource(uri)
        with pytest.raises(MCPError, match="not a session's address"):
            await client.read_resource("file:///etc/passwd")


@pytest.fixture
def kind(request: pytest.FixtureRequest) -> str:
    """SQLite for most tests here, because they are about the server and not the database."""
    return str(getattr(request, "param", "sqlite"))


both = pytest.mark.parametrize("kind", ["sqlite", "postgresql"], indirect=True)
test_a_client_can_use_every_tool_and_resource = both(test_a_client_can_use_every_tool_and_resource)
test_each_error_reaches_the_model_as_text = both(test_each_error_reaches_the_model_as_text)


async def test_tools_are_listed_with_schemas_and_annotations(database: Database) -> None:
    async with over_stdio(database, "--session", "desk") as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert client.instructions is not None
    assert list(tools) == [d.name for d in definitions()]
    for definition in definitions():
        tool = tools[definition.name]
        assert tool.input_schema == definition.input_schema
        assert tool.output_schema == definition.output_schema
        assert tool.annotations is not None
        assert tool.annotations.read_only_hint is definition.read_only
        assert tool.annotations.destructive_hint is definition.destructive
        assert tool.annotations.idempotent_hint is definition.idempotent


async def test_a_wait_longer_than_the_cap_answers_pending_with_its_receipt(
    database: Database, db: SessionsDB
) -> None:
    """It reports progress until then."""
    async with over_stdio(database, "--session", "desk", "--max-wait", "2.5") as client:
        told: list[float] = []

        async def progress(done: float, total: float | None, message: str | None) -> None:
            told.append(done)

        result = await client.call_tool(
            "sessions_spawn",
            {"prompt": "hello", "wait_for_first_reply": True, "wait_timeout_secs": 600},
            progress_callback=progress,
        )
        pending = result.structured_content
        assert pending["status"] == "pending"
        assert "after 2.5 seconds; the work goes on" in pending["note"]
        assert len(told) >= 2
        assert told == sorted(told)
        async with running_worker(db):
            found = await call_ok(client, "sessions_wait", receipts=[pending["receipt"]])
        assert found["outcomes"][0]["reply"]["content"].startswith("echo: ")


async def test_a_cancelled_call_never_cancels_the_child(
    transport: str, database: Database, db: SessionsDB
) -> None:
    async with client_of(transport, database, "--session", "desk") as client:
        waiting = asyncio.Event()

        async def progress(done: float, total: float | None, message: str | None) -> None:
            waiting.set()

        calling = asyncio.create_task(
            client.call_tool(
                "sessions_spawn",
                {"prompt": "hello", "wait_for_first_reply": True},
                progress_callback=progress,
            )
        )
        await waiting.wait()
        [child] = [session.id for session in await db.broker.list(parent="desk")]
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling

        # The server has let go of the wait, and answers on.
        async def let_go() -> bool:
            waits = await database.value("SELECT count(*) FROM waits WHERE waiter_id <> ''")
            return bool(waits == 0)

        await until(let_go)
        receipt = {"session_id": child, "position": 1}
        found = await call_ok(client, "sessions_status", receipts=[receipt])
        assert found["outcomes"][0]["status"] == "pending"
        async with running_worker(db):
            found = await call_ok(client, "sessions_wait", receipts=[receipt])
        assert found["outcomes"][0]["reply"]["content"].startswith("echo: ")


# ---- who calls -----------------------------------------------------------------------------------


async def test_a_token_decides_the_caller(
    database: Database, db: SessionsDB, tmp_path: Path
) -> None:
    """Session, namespace and visibility."""
    await register_sessions(db, "unrelated")
    tokens = tmp_path / "tokens.json"
    callers = {
        TOKEN: {"session": "desk"},
        OTHER_TOKEN: {"session": "desk", "namespace": "acme", "visibility": "namespace"},
    }
    tokens.write_text(json.dumps(callers))
    with http_server(database, "--tokens", str(tokens)) as url:
        for mode in ("auto", "legacy"):
            async with (
                over_http(url, token=TOKEN, mode=mode) as mine,
                over_http(url, token=OTHER_TOKEN, mode=mode) as theirs,
            ):
                child = (await call_ok(mine, "sessions_spawn", prompt="mine"))["id"]
                other = (await call_ok(theirs, "sessions_spawn", prompt="theirs"))["id"]
                seen = {s["id"] for s in (await call_ok(mine, "sessions_list"))["sessions"]}
                assert child in seen
                assert not {other, "unrelated"} & seen
                assert "unknown session" in await call_refused(
                    mine, "sessions_history", session_id=other
                )
        assert (await db.in_namespace("acme").broker.get(other)).parent == "desk"
        for headers in ({}, {"Authorization": "Bearer token-of-nobody-at-all"}):
            async with httpx2.AsyncClient(headers=headers) as http:
                answer = await http.post(url, json={"jsonrpc": "2.0", "id": 1, "method": "ping"})
            assert answer.status_code == 401


async def test_a_session_of_the_protocol_belongs_to_one_token(
    database: Database, tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens.json"
    tokens.write_text(json.dumps({TOKEN: {"session": "a"}, OTHER_TOKEN: {"session": "b"}}))
    hello = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "initialize",
        "params": {
            "protocolVersion": "2025-06-18",
            "capabilities": {},
            "clientInfo": {"name": "t", "version": "1"},
        },
    }
    with http_server(database, "--tokens", str(tokens)) as url:
        accept = {"Accept": "application/json, text/event-stream"}
        async with httpx2.AsyncClient(headers=accept) as http:
            opened = await http.post(url, json=hello, headers={"Authorization": f"Bearer {TOKEN}"})
            assert opened.status_code == 200
            session = {"Mcp-Session-Id": opened.headers["mcp-session-id"]}
            listing = {"jsonrpc": "2.0", "id": 2, "method": "tools/list"}
            stolen = await http.post(
                url, json=listing, headers=session | {"Authorization": f"Bearer {OTHER_TOKEN}"}
            )
            assert stolen.status_code == 404


async def test_one_token_can_come_from_the_environment(database: Database) -> None:
    environment = {"SESSIONSDB_MCP_TOKEN": TOKEN}
    with http_server(database, "--host", "0.0.0.0", "--session", "desk", env=environment) as shown:
        url = shown.replace("0.0.0.0", "127.0.0.1")
        async with over_http(url, token=TOKEN) as client:
            assert len((await call_ok(client, "sessions_list"))["sessions"]) == 1
        async with httpx2.AsyncClient() as http:
            assert (await http.post(url, json={})).status_code == 401


async def test_a_page_of_another_site_cant_reach_a_server_on_this_machine(
    database: Database,
) -> None:
    with http_server(database, "--session", "desk") as url:
        async with httpx2.AsyncClient() as http:
            for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}):
                answer = await http.post(url, json={}, headers=headers)
                assert answer.status_code in (403, 421)

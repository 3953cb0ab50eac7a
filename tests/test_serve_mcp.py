"""sessionsdb serve --mcp: MCP, the API and the pages on one address."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest

from devtools.databases import Database
from sessionsdb import InvalidArgument, SessionsDB
from sessionsdb.mcp import Caller, Tokens
from sessionsdb.web import application, bounds
from sessionsdb.web.rates import FAILED_LOGINS, Rates
from tests.support.command_line import CommandLine
from tests.support.mcp import over_http
from tests.support.served import serving

TOKEN, OTHER_TOKEN = "token-of-my-desktop", "token-of-somebody-else"
TOKENS = {
    TOKEN: Caller(session="desk"),
    OTHER_TOKEN: Caller(session="desk", namespace="acme", visibility="namespace"),
}
EVERYBODY = Caller(visibility="namespace")
PING = {"jsonrpc": "2.0", "id": 1, "method": "ping"}


@pytest.fixture
def kind() -> str:
    """The tools call the verbs, which other tests run on both databases."""
    return "sqlite"


async def call(client: Any, name: str, **arguments: Any) -> dict[str, Any]:
    result = await client.call_tool(name, arguments)
    assert not result.is_error, result.content
    found: dict[str, Any] = result.structured_content
    return found


async def test_one_server_has_mcp_the_api_and_the_pages(db: SessionsDB) -> None:
    async with (
        serving(db, mcp=Caller(session="desk", visibility="namespace")) as url,
        over_http(f"{url}/mcp") as client,
        httpx2.AsyncClient(base_url=url, timeout=60) as http,
    ):
        child = (await call(client, "sessions_spawn", prompt="hello"))["id"]
        listed = (await http.get("/api/v1/sessions")).json()["sessions"]
        assert {one["id"] for one in listed} == {"desk", child}
        assert child in (await http.get("/sessions")).text
        assert (await http.get("/health")).json() == {"status": "ok"}
        assert (await http.get("/mcp/other")).status_code == 404


async def test_a_token_of_mcp_decides_the_caller(db: SessionsDB) -> None:
    async with serving(db, mcp=Tokens(TOKENS), require_token=True) as url:
        async with (
            over_http(f"{url}/mcp", token=TOKEN) as mine,
            over_http(f"{url}/mcp", token=OTHER_TOKEN) as theirs,
        ):
            child = (await call(mine, "sessions_spawn", prompt="mine"))["id"]
            seen = {one["id"] for one in (await call(theirs, "sessions_list"))["sessions"]}
            assert child not in seen
        async with httpx2.AsyncClient(base_url=url, timeout=60) as http:
            for headers in ({}, {"Authorization": "Bearer token-of-nobody-at-all"}):
                assert (await http.post("/mcp", json=PING, headers=headers)).status_code == 401
            # A token of MCP opens MCP only.
            headers = {"Authorization": f"Bearer {TOKEN}"}
            assert (await http.get("/api/v1/sessions", headers=headers)).status_code == 401


@pytest.mark.parametrize("options", [{"require_token": True}, {"host": "0.0.0.0"}])
def test_where_requests_need_a_token_mcp_needs_tokens(
    db: SessionsDB, options: dict[str, Any]
) -> None:
    with pytest.raises(InvalidArgument, match="bearer tokens"):
        application(db, mcp=EVERYBODY, **options)


async def test_pages_of_other_hosts_and_origins_cant_reach_mcp(db: SessionsDB) -> None:
    options: dict[str, Any] = {"mcp": EVERYBODY, "allowed_hosts": ["agents.example"]}
    async with serving(db, **options) as url, httpx2.AsyncClient(timeout=60) as http:

        async def status(**headers: str) -> int:
            accept = {"Accept": "application/json, text/event-stream"}
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            return (await http.post(f"{url}/mcp", json=PING, headers=accept | named)).status_code

        assert await status(Host="evil.example") == 421
        assert await status(Origin="http://evil.example") == 403
        assert await status(Sec_Fetch_Site="cross-site") == 403
        usual = await status()
        assert usual < 500
        assert await status(Host="agents.example") == usual


async def test_a_stream_of_mcp_has_no_deadline_and_its_bodies_have_the_bound_of_mcp(
    db: SessionsDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "REQUEST_SECONDS", 0.001)
    monkeypatch.setattr(bounds, "MAX_REQUESTS", 0)
    async with serving(db, mcp=EVERYBODY) as url:
        async with over_http(f"{url}/mcp") as client:
            assert (await call(client, "sessions_list"))["sessions"] == []
        async with httpx2.AsyncClient(timeout=60) as http:
            accept = {"Accept": "application/json, text/event-stream"}
            large = json.dumps({**PING, "params": {"x": "x" * 5_000_000}})
            refused = await http.post(
                f"{url}/mcp", content=large, headers=accept | {"Content-Type": "application/json"}
            )
            assert refused.status_code == 413


async def test_failed_logins_of_mcp_are_bounded_too(db: SessionsDB) -> None:
    rates = Rates(clock=lambda: 1_000.0)
    async with (
        serving(db, mcp=Tokens(TOKENS), rates=rates) as url,
        over_http(f"{url}/mcp", token=TOKEN) as known,
        httpx2.AsyncClient(timeout=60) as http,
    ):

        async def status(token: str | None) -> int:
            headers = {} if token is None else {"Authorization": f"Bearer {token}"}
            return (await http.post(f"{url}/mcp", json=PING, headers=headers)).status_code

        found = [await status(f"token-of-nobody-{number}") for number in range(FAILED_LOGINS + 1)]
        assert found == [401] * FAILED_LOGINS + [429]
        assert await status(OTHER_TOKEN) == 429
        assert await status(None) == 401
        assert (await call(known, "sessions_list"))["sessions"]


async def test_the_command_serves_mcp(database: Database, tmp_path: Path) -> None:
    file = tmp_path / "tokens.json"
    file.write_text(json.dumps({TOKEN: {"session": "desk"}}))
    file.chmod(0o600)
    arguments = ["--url", database.url, "serve", "--port", "0", "--mcp", "--mcp-tokens", str(file)]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sessionsdb", *arguments), stderr=asyncio.subprocess.PIPE
    )
    async with AsyncExitStack() as stack:
        stack.push_async_callback(process.wait)
        stack.callback(process.kill)
        assert process.stderr is not None
        first = (await asyncio.wait_for(process.stderr.readline(), 60)).decode()
        assert first.startswith("serving on http://127.0.0.1:")
        url = first.rpartition(" ")[2].strip()
        assert url.endswith("/mcp")
        async with over_http(url, token=TOKEN) as client:
            assert [one["id"] for one in (await call(client, "sessions_list"))["sessions"]] == [
                "desk"
            ]


def test_what_the_command_refuses(tmp_path: Path) -> None:
    cli = CommandLine(f"sqlite:///{tmp_path}/x.db")
    for words in (["--mcp-tokens", "x"], ["--mcp-session", "x"]):
        assert cli("serve", *words).code == 2
    assert cli("serve", "--mcp", "--mcp-tokens", "x", "--mcp-session", "x").code == 2
    cli("serve", "--port", "0", "--mcp", "--require-token").refused("--mcp-tokens FILE")

"""sessionsdb serve and sessionsdb token as commands."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest

from devtools.databases import Database
from sessionsdb import SessionsDB
from sessionsdb.admin import tokens
from sessionsdb.operations.tokens import StoredToken
from tests.support.command_line import CommandLine

WITHOUT_FASTAPI = """
import sys
sys.modules["fastapi"] = None
from sessionsdb.cli import main
sys.argv = ["sessionsdb", "--url", "sqlite:///x.db", "serve"]
main()
"""


@pytest.fixture
def kind() -> str:
    return "sqlite"


@asynccontextmanager
async def serving(url: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """Run the command on a free port, and yield its process and its address."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sessionsdb", "--url", url, "serve", "--port", "0"),
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stderr is not None
        first = await asyncio.wait_for(process.stderr.readline(), 60)
        assert first.startswith(b"serving on http://127.0.0.1:")
        yield process, first.decode().split()[-1]
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_the_server_says_where_it_serves_and_ends_at_sigterm(database: Database) -> None:
    async with serving(database.url) as (process, url):
        async with httpx2.AsyncClient(timeout=60) as client:
            assert (await client.get(f"{url}/health")).json() == {"status": "ok"}
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 60) in (0, -signal.SIGTERM)


@pytest.mark.parametrize(
    "path", ["/api/v1/sessions/a%2Fb/events?after=start", "/sessions/a%2Fb/live"]
)
async def test_streams_end_and_other_requests_are_refused_when_the_server_stops(
    database: Database, path: str
) -> None:
    """A stream of events ends at once and is whole. A wait has two more seconds."""
    async with SessionsDB(database.url) as db:
        await db.broker.register("a/b", channel="cli", peer="ada")
        await db.broker.send("a/b", "hello")
    async with (
        serving(database.url) as (process, url),
        httpx2.AsyncClient(timeout=60) as client,
        client.stream("GET", url + path) as events,
    ):
        lines = events.aiter_lines()
        await anext(lines)
        address = urlsplit(url)
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        wait = "/api/v1/sessions/a%2Fb/inbox/1?wait=60"
        writer.write(f"GET {wait} HTTP/1.1\r\nHost: {address.hostname}\r\n\r\n".encode())
        await writer.drain()
        await client.get(f"{url}/health")  # the server has the request before this one
        process.send_signal(signal.SIGINT)
        refusal = asyncio.create_task(reader.read())
        async for _ in lines:
            assert not refusal.done()
        head, _, body = (await asyncio.wait_for(refusal, 60)).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503")
        assert json.loads(body)["type"] == "urn:sessionsdb:server-stops"
        writer.close()
        # A job in the background ignores SIGINT, and the server ends as after SIGTERM.
        code = await asyncio.wait_for(process.wait(), 60)
        assert process.stderr is not None
        log = await process.stderr.read()
        assert (code, log) in ((0, b""), (130, b"sessionsdb: interrupted\n"))


async def find(database: Database, secret: str) -> StoredToken | None:
    async with SessionsDB(database.url) as db:
        return await tokens.find(db, secret)


def test_tokens_are_made_listed_and_revoked(database: Database) -> None:
    cli = CommandLine(database.url)
    secret = cli("token", "ci", "--rights", "write", "--expires", "2h").ok().stdout.strip()
    found = asyncio.run(find(database, secret))
    assert found is not None
    assert (found.name, found.rights, found.namespace) == ("ci", "write", "default")
    assert found.expires_at is not None
    listed = json.loads(cli("token", "--list", "--json").ok().stdout)["tokens"]
    assert [one["id"] for one in listed] == [found.id]
    assert secret not in str(listed)
    assert found.id in cli("token", "--list").ok().stdout
    assert found.id in cli("token", "--revoke", found.id).ok().stdout
    cli("token", "--revoke", found.id).failed(f"no token {found.id} in namespace default")
    made = json.loads(cli("token", "x", "--json").ok().stdout)
    assert (made["rights"], "expires_at" in made) == ("read", False)


def test_what_the_commands_refuse(tmp_path: Path) -> None:
    cli = CommandLine(f"sqlite:///{tmp_path}/x.db")
    cli("token").refused("give the NAME of a new token, --list, or --revoke ID")
    cli("token", "a", "--list").refused("give the NAME")
    cli("token", "").refused("NAME must not be empty")
    for age in ("soon", "5s"):
        cli("token", "a", "--expires", age).refused("90m, 24h, 30d or 2w")
    cli("token", "a", "--expires", "0m").refused("--expires must be more than 0 seconds")
    cli("serve", "--host", "192.0.2.1", "--port", "0").failed("can't listen on 192.0.2.1")
    cli("serve", "--port", "0", "--allowed-host", "x:1").refused("--allowed-host has 'x:1'")
    cli("serve", "--port", "0", "--proxy", "x").refused("--proxy has 'x', which is no address")


async def test_the_server_names_the_extra_that_is_missing(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", WITHOUT_FASTAPI), cwd=tmp_path, stderr=asyncio.subprocess.PIPE
    )
    _, told = await asyncio.wait_for(process.communicate(), 60)
    assert b"pip install 'sessionsdb[web]'" in told
    assert process.returncode == 1

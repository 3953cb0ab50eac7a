"""Commands that were started with SIGINT ignored, as a script starts them with ``&``.

SIGTERM ends them, and no process is left.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from devtools.databases import Database
from sessionsdb import SessionsDB
from tests.support.command_line import PROGRAM, environment
from tests.support.waiting import until

AGENT = """
import asyncio
from pathlib import Path

async def hang(turn):
    Path("begun").touch()
    await asyncio.Event().wait()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "my_agent.py").write_text(AGENT)
    return tmp_path


@asynccontextmanager
async def in_background(
    database: Database, folder: Path, *arguments: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a command with SIGINT ignored, in a process group of its own."""
    process = await asyncio.create_subprocess_exec(
        *("/bin/sh", "-c", 'trap "" INT; exec "$@"', "sh"),
        *(str(PROGRAM), "--url", database.url, *arguments),
        cwd=folder,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


async def end(process: asyncio.subprocess.Process) -> str:
    """End a command by SIGTERM, and return what it wrote to standard error meanwhile."""
    process.send_signal(signal.SIGTERM)
    assert process.stderr is not None
    told = (await asyncio.wait_for(process.stderr.read(), 30)).decode()
    await asyncio.wait_for(process.wait(), 30)
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # no process of its group is left
    assert "Traceback" not in told
    return told


@pytest.mark.parametrize("options", [[], ["--until-idle"]], ids=" ".join)
async def test_a_worker_gives_its_turn_back(
    database: Database, folder: Path, options: list[str]
) -> None:
    async with SessionsDB(database.url) as db:
        await db.broker.register("chat", channel="cli", peer="me")
        receipt = await db.broker.send("chat", "hello")
        command = ("worker", "my_agent:hang", "--grace", "0", *options)
        async with in_background(database, folder, *command) as process:
            await until((folder / "begun").exists)
            assert "SIGTERM: takes nothing new" in await end(process)
            assert process.returncode == 0
        outcome = await db.broker.outcome(receipt)
        assert (outcome.status, outcome.attempts) == ("pending", 0)


async def test_a_worker_stops_although_its_log_is_not_read_any_more(
    database: Database, folder: Path
) -> None:
    async with SessionsDB(database.url) as db:
        await db.broker.register("chat", channel="cli", peer="me")
        await db.broker.send("chat", "hello")
        read, write = os.pipe()
        process = await asyncio.create_subprocess_exec(
            *(str(PROGRAM), "--url", database.url, "worker", "my_agent:hang", "--grace", "0"),
            cwd=folder,
            env=environment(),
            stdout=write,
            stderr=write,
        )
        os.close(write)
        try:
            await until((folder / "begun").exists)
            os.close(read)
            process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(process.wait(), 30) == 0
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        assert (await db.broker.get("chat")).pending == 1


async def test_a_worker_that_is_idle_ends_by_itself(database: Database, folder: Path) -> None:
    command = ("worker", "sessionsdb.handlers:echo", "--until-idle")
    async with in_background(database, folder, *command) as process:
        assert await asyncio.wait_for(process.wait(), 30) == 0
        with pytest.raises(ProcessLookupError):
            os.killpg(process.pid, 0)


@pytest.mark.parametrize("kind", ["sqlite"])
async def test_an_mcp_server_over_http_ends(database: Database, folder: Path) -> None:
    command = ("mcp", "--http", "--port", "0", "--session", "desk")
    async with in_background(database, folder, *command) as process:
        assert process.stderr is not None
        first = await asyncio.wait_for(process.stderr.readline(), 30)
        assert first.startswith(b"serving MCP on http://")
        await end(process)
        assert process.returncode in (0, -signal.SIGTERM)


@pytest.mark.parametrize("kind", ["sqlite"])
@pytest.mark.parametrize("how", ["SIGTERM", "end of input"])
async def test_an_mcp_server_over_stdio_ends(database: Database, folder: Path, how: str) -> None:
    async with in_background(database, folder, "mcp", "--session", "desk") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"nonsense\n")
        assert b"-32700" in await asyncio.wait_for(process.stdout.readline(), 30)
        if how == "SIGTERM":
            await end(process)
            assert process.returncode in (0, -signal.SIGTERM)
            return
        process.stdin.close()
        assert await asyncio.wait_for(process.wait(), 30) == 0

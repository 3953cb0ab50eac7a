"""A worker that is killed in mid-turn, and the one that runs the turn again."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable
from contextlib import suppress
from pathlib import Path

import psutil

from devtools.databases import Database
from sessionsdb import SessionsDB
from tests.support.command_line import environment

LEASE = 5
"""Seconds. A loaded machine delays the start of a program, but hardly a heartbeat for so long."""


async def run_killed_and_again(
    database: Database, folder: Path, source: str, in_turn: Awaitable[object], **variables: str
) -> None:
    """Kill a worker when ``in_turn`` is done, and let another one work until it is idle.

    ``source`` is a module with a ``handler``. ``variables`` are of the environment.
    """
    (folder / "agent.py").write_text(source)
    worker = [sys.executable, "-m", "sessionsdb", "--url", database.url, "worker"]
    command = [*worker, "agent:handler", "--lease", str(LEASE), "--poll", "0.1"]
    env = {**environment(), "PYTHONPATH": str(Path(__file__).parents[2]), **variables}
    process = await asyncio.create_subprocess_exec(*command, cwd=folder, env=env)
    children: list[psutil.Process] = []
    try:
        async with asyncio.timeout(100):
            await in_turn
        children = psutil.Process(process.pid).children(recursive=True)
    finally:
        process.kill()
        await process.wait()
        for child in children:  # programs of the handler outlive the worker
            with suppress(psutil.NoSuchProcess):
                child.kill()
    process = await asyncio.create_subprocess_exec(*command, "--until-idle", cwd=folder, env=env)
    assert await process.wait() == 0


async def first_piece(db: SessionsDB, id: str) -> str:
    """Return the first piece of text that a turn of the session streams."""
    async for event in db.broker.follow(id):
        if event.type == "delta":
            return event.text
    raise AssertionError("the session was deleted")

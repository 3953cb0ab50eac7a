"""The steps of docs/tutorial.md, with its agent and its commands."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import httpx2
import pytest

from sessionsdb import Receipt, SessionsDB
from sessionsdb.events import DeltaEvent
from tests.support.command_line import PROGRAM, environment
from tests.support.waiting import until

PAGE = (Path(__file__).parents[1] / "docs" / "tutorial.md").read_text()
COMMANDS = re.findall(r"^(sessionsdb .*)$", PAGE, re.M)
[AGENT] = re.findall(r"^```python\n(.*?)^```$", PAGE, re.M | re.S)
[TEST] = re.findall(r"^```python no-run\n(.*?)^```$", PAGE, re.M | re.S)
[PYTEST] = re.findall(r"^pytest (.*)$", PAGE, re.M)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "agent.py").write_text(AGENT)
    return tmp_path


@pytest.fixture
def urls(folder: Path) -> dict[str, str]:
    [url] = set(re.findall(r"^export (SESSIONSDB_URL=.*)$", PAGE, re.M))
    name, _, value = url.partition("=")
    return environment({name: value})


def command(start: str) -> list[str]:
    """Return the words of the command of the page that begins like this."""
    [found] = [line for line in COMMANDS if line.startswith(f"sessionsdb {start}")]
    return [word.strip("'") for word in re.findall(r"'[^']*'|\S+", found)][1:]


@asynccontextmanager
async def running(
    folder: Path, env: dict[str, str], *words: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        str(PROGRAM),
        *words,
        cwd=folder,
        env=env,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def output(folder: Path, env: dict[str, str], *words: str) -> str:
    async with running(folder, env, *words) as process:
        told, _ = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode == 0, told.decode()
        return told.decode()


async def address_of(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    async for line in process.stdout:
        if found := re.search(r"http://\S+", line.decode()):
            return found[0].rstrip("/")
    raise AssertionError("the server did not start")


async def test_every_step_does_what_the_page_says(folder: Path, urls: dict[str, str]) -> None:
    await output(folder, urls, *command("register"))
    async with (
        SessionsDB(f"sqlite:///{folder / 'sessions.db'}") as db,
        running(folder, urls, *command("serve"), "--port", "0") as server,
        httpx2.AsyncClient(base_url=await address_of(server), timeout=60) as browser,
    ):

        async def send(text: str) -> None:
            """Send as the page does."""
            answer = await browser.post(
                "/sessions/chat-1/send",
                data={"text": text},
                headers={"Sec-Fetch-Site": "same-origin"},
            )
            assert answer.status_code == 303, answer.text

        async def reply(position: int) -> str | None:
            receipt = Receipt(session_id="chat-1", position=position)
            outcome = await db.broker.wait(receipt, timeout=60)
            assert outcome.status == "done"
            return outcome.reply and outcome.reply.content

        async with running(folder, urls, *command("worker")) as worker:
            # 4: a watcher gets the reply in pieces.
            async with aclosing(db.broker.follow("chat-1", after="start")) as events:
                await send("Hello.")
                pieces = []
                async for event in events:
                    if isinstance(event, DeltaEvent):
                        pieces.append(event.text)
                    if len(pieces) >= 3:
                        break
            assert "".join(pieces).startswith("You said: ")
            assert await reply(1) == "You said: Hello. I remember 0 messages from before."
            assert "I remember 0 messages" in (await browser.get("/sessions/chat-1")).text

            # 5: the worker dies in the midst of a reply.
            await send("Again.")
            async with aclosing(db.broker.follow("chat-1", after="start")) as events:
                async for event in events:
                    if isinstance(event, DeltaEvent):
                        break
            worker.send_signal(signal.SIGKILL)
            await worker.wait()

        async with running(folder, urls, *command("worker")):
            assert await reply(2) == "You said: Again. I remember 2 messages from before."
            history = await db.broker.history("chat-1")
            assert [message.role for message in history] == ["user", "assistant"] * 2

            # 6: the agent asks a person.
            await send("Please delete the report.")
            await until(lambda: db.broker.questions("chat-1"))
            assert "Delete the report?" in await output(folder, urls, *command("questions"))
            await output(folder, urls, *command("answer"))
            assert await reply(4) == "You said: No, keep it."

            # 4 and 6 in the terminal.
            async with running(folder, urls, *command("chat")) as chat:
                told, _ = await asyncio.wait_for(chat.communicate(b"Hello.\n"), 60)
            assert "I remember" in told.decode()


def test_the_test_of_the_page_passes_and_can_fail(folder: Path) -> None:
    (folder / "test_agent.py").write_text(TEST)
    (folder / "pytest.ini").write_text("[pytest]\n")

    def told() -> str:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *PYTEST.split(), "-p", "no:cacheprovider"],
            cwd=folder,
            # Only the plugin of the page: the one of Hypothesis takes a second to import.
            env=environment({"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}),
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        return done.stdout + done.stderr

    assert "1 passed" in (output := told()), output
    (folder / "agent.py").write_text(AGENT.replace('"delete" in', '"remove" in'))
    assert "1 failed" in (output := told()), output

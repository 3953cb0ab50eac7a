"""A server and a worker for the browser's tests, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

AGENT = """
import asyncio
from pathlib import Path
from sessionsdb import Question, Reply

async def handle(turn):
    if turn.answer is not None:
        return f"you said {turn.answer.message.content}"
    if "ask" in turn.prompt:
        return Reply("let me ask", ask=Question(prompt="Delete the file?"))
    if "die" in turn.prompt and not Path("mended").exists():
        raise ValueError("the disk is full: /" + "path" * 25)
    if "endless" in turn.prompt:
        for number in range(100_000):
            turn.stream(f"word{number} ")
            await asyncio.sleep(0.02)
    turn.stream("one two ")
    while "slowly" in turn.prompt and not Path("go").exists():
        await asyncio.sleep(0.02)
    return "one two three four"
"""


class Served:
    """A server and a worker, each in a process of its own."""

    def __init__(self, folder: Path, *options: str) -> None:
        """``options``: those of ``sessionsdb serve``."""
        self._folder = folder
        self._database = url_of(folder)
        (folder / "agent.py").write_text(AGENT)
        self.worker = self._run(
            "worker", "agent:handle", "--max-attempts", "1", "--poll", "0.2", "--grace", "0"
        )
        self._options = options
        self.server = self._run("serve", "--port", "0", *options)
        try:
            self.url = self._address()
        except BaseException:
            self.close()
            raise
        self._port = self.url.rpartition(":")[2]

    def _run(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "sessionsdb", "--url", self._database, *words],
            cwd=self._folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def _address(self) -> str:
        assert self.server.stdout is not None
        lines = []
        for line in self.server.stdout:
            if "http://" in line:
                return "http://" + line.split("http://")[1].split()[0]
            lines.append(line)
        raise AssertionError(f"the server did not start: {''.join(lines)}")

    def restart_server(self, between: object = None) -> None:
        """Stop the server, call ``between``, and start it on the same port."""
        kill(self.server)
        if callable(between):
            between()
        self.server = self._run("serve", "--port", self._port, *self._options)
        self._address()

    def close(self) -> None:
        kill(self.server)
        kill(self.worker)


def url_of(folder: Path) -> str:
    return f"sqlite:///{folder / 'sessions.db'}"


def make_token(folder: Path) -> str:
    """Make a token for the server of a folder, and return its secret."""
    made = subprocess.run(
        [sys.executable, "-m", "sessionsdb", "--url", url_of(folder), "token", "ann"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return next(word for word in made.stdout.split() if word.startswith("sdb_"))


def kill(process: subprocess.Popen[str]) -> None:
    """Kill a process, also one that was killed before."""
    process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()

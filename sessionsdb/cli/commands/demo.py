"""The command that shows the purpose of the package, on one screen and on a real file."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text
from sqlalchemy import text

from sessionsdb import SessionsDB, SessionsDBError
from sessionsdb.cli.commands import demo_agent, transcripts, tree
from sessionsdb.cli.console import output
from sessionsdb.cli.decorators import without_database
from sessionsdb.cli.target import Target

WIDTH = 100
LEASE_SECONDS = 2.0
TIMEOUT_SECONDS = 60.0

CHAT = "weekend"
QUESTION = "A weekend in Rome?"

REPORT = """
SELECT status, attempts, count(*) AS messages, count(DISTINCT worker) AS workers,
       sum(input_tokens + output_tokens) AS tokens
FROM inbox GROUP BY status, attempts ORDER BY attempts
"""


@without_database
async def demo(_target: Target) -> None:
    """Show the purpose of the package, on a fresh SQLite file.

    An agent delegates to two other agents. Their worker is killed in the
    middle of a turn, and another worker finishes the work. The file is in a
    temporary folder and is removed at the end. Your database is not used.

    Examples:

        sessionsdb demo
    """
    out = output.console()
    if not out.is_terminal:
        out = output.console(width=WIDTH)
    with tempfile.TemporaryDirectory(prefix="sessionsdb-demo-") as folder:
        await Demo(out, f"sqlite:///{Path(folder) / 'demo.db'}").run()


@dataclass
class Demo:
    """The scenes of the demo: three processes work on one file."""

    out: Console
    url: str

    async def run(self) -> None:
        self.out.print(Text("sessionsdb keeps the sessions of AI agents in SQL", style="bold"))
        self.out.print(f"a fresh file: {self.url}", style="dim", soft_wrap=True)
        async with SessionsDB(self.url) as db:
            await self._ask(db)
            await self._kill_a_worker(db)
            await self._let_another_finish(db)
            await self._show_tree(db)
            await self._show_history(db)
            await self._show_proof(db)

    async def _ask(self, db: SessionsDB) -> None:
        self._print_title(
            "A user asks. The message is stored when send returns, and a repeated send adds nothing"
        )
        await db.broker.register(CHAT, channel="cli", peer="you")
        for _ in range(2):
            receipt = await db.broker.send(CHAT, QUESTION, idempotency_key="a7")
            again = ", a duplicate" if receipt.duplicate else ""
            self._print_step(
                f'db.broker.send("{CHAT}", "{QUESTION}", idempotency_key="a7")',
                f"message {receipt.position}{again}",
            )

    async def _kill_a_worker(self, db: SessionsDB) -> None:
        self._print_title("A worker in another process: the agent spawns two colleagues")
        async with _worker(self.url) as worker:
            self._print_step(f"$ {_WORKER_COMMAND}", "started")
            slow = await _wait_for_slow_turn(db)
            self._print_step(
                f"the colleague for {demo_agent.SLOW} is in the middle of its turn: kill -9", "dead"
            )
            worker.kill()
            await worker.wait()
        details = await db.broker.get(slow)
        self._print_step(
            "its turn is lost, its message is not", f"running={details.running}, in SQL"
        )

    async def _let_another_finish(self, db: SessionsDB) -> None:
        self._print_title(
            f"Another worker takes over when the lease of {LEASE_SECONDS:g} s has expired"
        )
        async with _worker(self.url) as worker:
            self._print_step(f"$ {_WORKER_COMMAND}", "started")
            _, stderr = await asyncio.wait_for(worker.communicate(), TIMEOUT_SECONDS)
            if worker.returncode != 0:
                raise SessionsDBError(f"the demo's worker failed: {stderr.decode()}")
        self._print_step("no message is left", "the worker stops")

    async def _show_tree(self, db: SessionsDB) -> None:
        self._print_title("The tree of sessions", "sessionsdb tree")
        sessions = await db.broker.list(root=CHAT)
        details = [await db.broker.get(session.id) for session in sessions]
        details.sort(key=lambda session: (session.parent is not None, session.created_at))
        for top in tree.render([(d, 0 if d.parent is None else 1) for d in details]):
            self.out.print(top)

    async def _show_history(self, db: SessionsDB) -> None:
        self._print_title("The transcript", f"sessionsdb history {CHAT}")
        for message in await db.broker.history(CHAT):
            self.out.print(transcripts.heading(message, self.out.width), soft_wrap=True)
            self.out.print(Text(output.visible(message.content)), soft_wrap=True)

    async def _show_proof(self, db: SessionsDB) -> None:
        self._print_title(
            "The proof in SQL: every message is done once, one of them at the second attempt"
        )
        self.out.print(Text(REPORT.strip(), style="dim"))
        async with db.engine.connect() as connection:
            rows = (await connection.execute(text(REPORT))).mappings().all()
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in rows[0]:
            table.add_column(name)
        for row in rows:
            table.add_row(*(output.cell(str(value)) for value in row.values()))
        self.out.print(table)

    def _print_title(self, title: str, command: str | None = None) -> None:
        self.out.print()
        line = Text(title, style="bold cyan")
        if command is not None:
            line.append(f"   $ {command}", style="dim")
        self.out.print(line)

    def _print_step(self, call: str, result: str) -> None:
        self.out.print(Text("  ").append(call).append("  -> ").append(result, style="green"))


_WORKER_COMMAND = (
    f"sessionsdb worker {demo_agent.__name__}:agent --lease {LEASE_SECONDS:g} --until-idle"
)


@asynccontextmanager
async def _worker(url: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a worker in a process of its own, and kill it when the block ends."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sessionsdb.cli", "--url", url, *_WORKER_COMMAND.split()[1:]),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _wait_for_slow_turn(db: SessionsDB) -> str:
    """Wait until only the slow colleague runs, and return its id."""
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while True:
            children = await db.broker.list(parent=CHAT)
            running = [child.id for child in children if (await db.broker.get(child.id)).running]
            chat = await db.broker.get(CHAT)
            # The question, its answer, the quick colleague's message and its answer.
            if len(running) == 1 and chat.message_count == 4:
                return running[0]
            await asyncio.sleep(0.02)

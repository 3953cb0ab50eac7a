"""The command that tells what the package is for, in one screen, on a real file."""

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
from sessionsdb.cli.commands import transcripts, tree
from sessionsdb.cli.console import output
from sessionsdb.cli.console.database_commands import Target, without_database
from sessionsdb.cli.demo_agent import SLOW

WIDTH = 100
LEASE_SECONDS = 2.0
PATIENCE_SECONDS = 60.0

CHAT = "weekend"
QUESTION = "A weekend in Rome?"

REPORT = """
SELECT status, attempts, count(*) AS messages, count(DISTINCT worker) AS workers,
       sum(input_tokens + output_tokens) AS tokens
FROM inbox GROUP BY status, attempts ORDER BY attempts
"""


@without_database
async def demo(_target: Target) -> None:
    """Show what the package is for, on a fresh SQLite file.

    An agent delegates to two others, their worker is killed in the middle of
    a turn, and another one finishes. The file is made in a temporary folder
    and removed afterwards; your own database is not touched.

    Examples:

        sessionsdb demo
    """
    out = output.console()
    if not out.is_terminal:
        out = output.console(width=WIDTH)
    with tempfile.TemporaryDirectory(prefix="sessionsdb-demo-") as folder:
        await Story(out, f"sqlite:///{Path(folder) / 'demo.db'}").tell()


@dataclass
class Story:
    """What three processes do with one file."""

    out: Console
    url: str

    async def tell(self) -> None:
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
        self._chapter("A user asks. The message is safe when send returns, and twice is once")
        await db.broker.register(CHAT, channel="cli", peer="you")
        for _ in range(2):
            sent = await db.broker.send(CHAT, QUESTION, idempotency_key="a7")
            again = ", a duplicate" if sent.duplicate else ""
            self._step(
                f'db.broker.send("{CHAT}", "{QUESTION}", idempotency_key="a7")',
                f"message {sent.position}{again}",
            )

    async def _kill_a_worker(self, db: SessionsDB) -> None:
        self._chapter("A worker in another process: the agent spawns two colleagues")
        async with _worker(self.url) as worker:
            self._step(f"$ {_SHOWN}", "started")
            slow = await _slow_one_begun(db)
            self._step(f"the colleague for {SLOW} is in the middle of its turn: kill -9", "dead")
            worker.kill()
            await worker.wait()
        details = await db.broker.get(slow)
        self._step("its turn is lost, its message is not", f"running={details.running}, in SQL")

    async def _let_another_finish(self, db: SessionsDB) -> None:
        self._chapter(f"Another worker takes over when the lease of {LEASE_SECONDS:g} s is over")
        async with _worker(self.url) as worker:
            self._step(f"$ {_SHOWN}", "started")
            _, said = await asyncio.wait_for(worker.communicate(), PATIENCE_SECONDS)
            if worker.returncode != 0:
                raise SessionsDBError(f"the demo's worker failed: {said.decode()}")
        self._step("nothing is left to do", "it stops")

    async def _show_tree(self, db: SessionsDB) -> None:
        self._chapter("Who spawned whom", "sessionsdb tree")
        sessions = await db.broker.list(root=CHAT)
        details = [await db.broker.get(session.id) for session in sessions]
        details.sort(key=lambda session: (session.parent is not None, session.created_at))
        for top in tree.render([(d, 0 if d.parent is None else 1) for d in details]):
            self.out.print(top)

    async def _show_history(self, db: SessionsDB) -> None:
        self._chapter("The transcript", f"sessionsdb history {CHAT}")
        for message in await db.broker.history(CHAT):
            self.out.print(transcripts.heading(message), Text(output.visible(message.content)))

    async def _show_proof(self, db: SessionsDB) -> None:
        self._chapter("The proof, in SQL: every message done once, one of them on its second try")
        self.out.print(Text(REPORT.strip(), style="dim"))
        async with db.engine.connect() as connection:
            rows = (await connection.execute(text(REPORT))).mappings().all()
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in rows[0]:
            table.add_column(name)
        for row in rows:
            table.add_row(*(output.cell(str(value)) for value in row.values()))
        self.out.print(table)

    def _chapter(self, title: str, command: str | None = None) -> None:
        self.out.print()
        line = Text(title, style="bold cyan")
        if command is not None:
            line.append(f"   $ {command}", style="dim")
        self.out.print(line)

    def _step(self, call: str, result: str) -> None:
        self.out.print(Text("  ").append(call).append("  -> ").append(result, style="green"))


_SHOWN = f"sessionsdb worker sessionsdb.cli.demo_agent:agent --lease {LEASE_SECONDS:g} --until-idle"


@asynccontextmanager
async def _worker(url: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A worker in a process of its own, gone when the block ends."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sessionsdb.cli", "--url", url, *_SHOWN.split()[1:]),
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


async def _slow_one_begun(db: SessionsDB) -> str:
    """Wait until only the slow colleague is left; its id."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            children = await db.broker.list(parent=CHAT)
            running = [child.id for child in children if (await db.broker.get(child.id)).running]
            chat = await db.broker.get(CHAT)
            # The question, its answer, what the quick one told, and the answer to that.
            if len(running) == 1 and chat.message_count == 4:
                return running[0]
            await asyncio.sleep(0.02)

"""The command that tells what the package is for, in one screen, on a real file."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text
from sqlalchemy import text

from sessionsdb import SessionsDB, SpawnRequest
from sessionsdb.cli import output, transcripts, tree
from sessionsdb.cli.running import Target, with_target

WIDTH = 100

TRANSCRIPT: list[dict[str, Any]] = [
    {"role": "user", "content": "Which of these papers should I read?"},
    {"role": "assistant", "content": [{"type": "tool_use", "name": "search", "input": {"n": 3}}]},
    {"role": "tool", "content": "three papers on durable queues"},
    {"role": "assistant", "content": "Start with the second one."},
]
QUESTION = "Summarise it."

REPORT = """
SELECT s.channel, count(DISTINCT s.id) AS sessions, count(m.seq) AS messages,
       count(*) FILTER (WHERE m.role = 'assistant') AS answers
FROM sessions s LEFT JOIN messages m ON m.namespace = s.namespace AND m.session_id = s.id
GROUP BY s.channel ORDER BY s.channel
"""


@with_target
async def demo(_target: Target) -> None:
    """Show what the package is for, on a fresh SQLite file.

    The file is made in a temporary folder and removed afterwards; your own
    database is not touched.

    Examples:

        sessionsdb demo
    """
    out = output.console()
    if not out.is_terminal:
        out = output.console(width=WIDTH)
    with tempfile.TemporaryDirectory(prefix="sessionsdb-demo-") as folder:
        story = Story(out, f"sqlite:///{Path(folder) / 'demo.db'}")
        story.title()
        await story.first_process()
        await story.second_process()


@dataclass
class Story:
    """What two processes do with one file, one after the other."""

    out: Console
    url: str

    def title(self) -> None:
        self.out.print(Text("sessionsdb keeps the sessions of AI agents in SQL", style="bold"))
        self.out.print(f"a fresh file: {self.url}", style="dim", soft_wrap=True)

    async def first_process(self) -> None:
        self._chapter("One process keeps a transcript, and takes a message for the agent")
        async with SessionsDB(self.url) as db:
            await db.broker.register("chat-1", channel="discord", peer="alice", tools=["search"])
            self._step('db.broker.register("chat-1", channel="discord", peer="alice", …)')
            version = await db.store.save("chat-1", TRANSCRIPT)
            self._step('db.store.save("chat-1", messages)', f"version {version}")
            for _ in range(2):
                sent = await db.broker.send("chat-1", QUESTION, idempotency_key="mail-17")
                again = ", a duplicate" if sent.duplicate else ""
                self._step(
                    f'db.broker.send("chat-1", "{QUESTION}", idempotency_key="mail-17")',
                    f"message {sent.position}{again}",
                )
            request = SpawnRequest(prompt="Read the second paper.", tools=["search"])
            child = await db.broker.spawn("chat-1", request)
            self._step('db.broker.spawn("chat-1", SpawnRequest(…))', child.id)

    async def second_process(self) -> None:
        self._chapter("The process ends. Another one opens the file: nothing is lost")
        async with SessionsDB(self.url) as db:
            same = await db.store.load("chat-1") == TRANSCRIPT
            self._step('db.store.load("chat-1") == messages', str(same))
            await self._show_tree(db)
            await self._show_history(db)
            await self._show_report(db)

    async def _show_tree(self, db: SessionsDB) -> None:
        self._chapter("Who spawned whom, and what waits for a worker", "sessionsdb tree")
        sessions = await db.broker.list(root="chat-1")
        details = [await db.broker.get(session.id) for session in sessions]
        for top in tree.render([(d, 0 if d.parent is None else 1) for d in details]):
            self.out.print(top)

    async def _show_history(self, db: SessionsDB) -> None:
        self._chapter("The transcript, whatever its form, as text", "sessionsdb history chat-1")
        for message in await db.broker.history("chat-1"):
            self.out.print(transcripts.heading(message), Text(output.visible(message.content)))

    async def _show_report(self, db: SessionsDB) -> None:
        self._chapter("It is SQL: ask it anything")
        self.out.print(Text(REPORT.strip(), style="dim"))
        async with db.engine.connect() as connection:
            result = await connection.execute(text(REPORT))
            rows = result.mappings().all()
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

    def _step(self, call: str, result: str | None = None) -> None:
        line = Text("  ").append(call)
        if result is not None:
            line.append("  -> ").append(result, style="green")
        self.out.print(line)

"""The import group: ``sessionsdb import`` of 100,000 messages into a SQLite file, against
``executemany`` of the same rows by the sqlite3 module, and the memory that the import takes.

Each run has its own process, and so its own peak memory. The command imports one other transcript
first, so its time does not include the start of the process and its modules. The time of the bare
driver is that of the statements and the commit, with its rows ready in memory.
"""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.bench import SQLITE, Bench, Sample
from benchmarks.memory import peak_mb
from benchmarks.messages import transcript
from benchmarks.results import FLOOR, OURS
from devtools.databases import Database

IMPORT, MEMORY = "import 100,000 messages", "peak memory of the import"

SESSIONS, EACH = 1_000, 100

SESSION = """
INSERT INTO sessions (namespace, id, channel, peer, created_at, updated_at, last_active,
                      version, last_seq, message_count)
VALUES ('default', ?, 'store', ?, ?, ?, ?, 1, ?, ?)
"""

MAILBOX = "INSERT INTO mailboxes (namespace, session_id) VALUES ('default', ?)"

MESSAGE = """
INSERT INTO messages (namespace, session_id, seq, role, content, payload, created_at)
VALUES ('default', ?, ?, ?, ?, ?, ?)
"""


def measure(bench: Bench) -> None:
    if SQLITE in bench.databases:
        asyncio.run(_measure(bench))


async def _measure(bench: Bench) -> None:
    peaks: list[float] = []
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        for session in range(SESSIONS):
            line = {"session_id": f"session-{session:06}", "messages": transcript(EACH)}
            file.write(json.dumps(line) + "\n")
        file.flush()

        async def sample(side: str) -> Sample:
            with bench.new_database(SQLITE) as database:
                seconds, peak = await _apart(side, file.name, database)
                [count] = await database.query("SELECT count(*) FROM messages")
                assert count == (SESSIONS * EACH + (side == OURS),), count
            if side == OURS:
                peaks.append(peak)
            return Sample(SESSIONS * EACH / seconds)

        await bench.compare(
            IMPORT,
            database=SQLITE,
            samplers={OURS: lambda: sample(OURS), FLOOR: lambda: sample(FLOOR)},
            unit="messages/s",
            warm_up=not bench.quick,
        )
    if peaks:
        bench.record(MEMORY, database=SQLITE, side=OURS, unit="MB", values=peaks, better="less")


async def _apart(side: str, file: str, database: Database) -> tuple[float, float]:
    """Run one side in a new process. Returns the seconds and the peak memory in MB."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.importing", side, file, str(database.path)),
        stdout=asyncio.subprocess.PIPE,
    )
    said, _ = await process.communicate()
    assert process.returncode == 0, process.returncode
    answer = json.loads(said.splitlines()[-1])
    return answer["seconds"], answer["peak_mb"]


def _ours(file: str, path: str) -> float:
    from sessionsdb.cli.app import app

    def import_(name: str) -> None:
        app(["--url", f"sqlite:///{path}", "import", name], standalone_mode=False)

    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as other:
        other.write(json.dumps({"session_id": "other", "messages": transcript(1)}) + "\n")
        other.flush()
        import_(other.name)
    began = time.perf_counter()
    import_(file)
    return time.perf_counter() - began


def _floor(file: str, path: str) -> float:
    now = "2024-01-01 00:00:00.000000"
    sessions: list[Any] = []
    messages: list[Any] = []
    with Path(file).open() as lines:
        for line in lines:
            read = json.loads(line)
            id, count = read["session_id"], len(read["messages"])
            sessions.append((id, id, now, now, now, count, count))
            messages += [
                (id, seq, message["role"], message["content"], None, now)
                for seq, message in enumerate(read["messages"], 1)
            ]
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA synchronous = FULL")
    began = time.perf_counter()
    connection.execute("BEGIN IMMEDIATE")
    connection.executemany(SESSION, sessions)
    connection.executemany(MAILBOX, [(session[0],) for session in sessions])
    connection.executemany(MESSAGE, messages)
    connection.execute("COMMIT")
    seconds = time.perf_counter() - began
    connection.close()
    return seconds


if __name__ == "__main__":
    side, file, path = sys.argv[1:]
    seconds = _ours(file, path) if side == OURS else _floor(file, path)
    sys.stdout.write(json.dumps({"seconds": seconds, "peak_mb": peak_mb()}) + "\n")
    sys.stdout.flush()
    os._exit(0)

"""The reports group: times and plans of the views on a large database.

    python -m benchmarks.reports --messages 1000000

SQL writes a database of that many handled messages, each with its transcript row and a reply: 100
messages a session, over 30 days. A fifth of the sessions are children. A few hundred messages wait,
run, are overdue or dead. Then every view is read as a whole, for one session or channel, and for
one namespace with almost no rows.
"""

from __future__ import annotations

import argparse
import asyncio
import sqlite3
import time
from typing import NamedTuple

import asyncpg
from rich.console import Console

from benchmarks import bench
from benchmarks.bench import Bench
from benchmarks.results import OURS
from devtools.databases import Database

PER_SESSION = 100

# Of ten sessions one is a child, and one is a grandchild.
SESSIONS = """
INSERT INTO sessions (namespace, id, parent_id, root_id, depth, channel, peer, created_at,
                      updated_at, last_active, version, last_seq, message_count)
SELECT 'default', {id},
       CASE WHEN i % 10 IN (8, 9) THEN {parent} END,
       CASE i % 10 WHEN 8 THEN {parent} WHEN 9 THEN {grandparent} END,
       CASE i % 10 WHEN 8 THEN 1 WHEN 9 THEN 2 ELSE 0 END,
       CASE WHEN i % 10 IN (8, 9) THEN 'spawned' WHEN i % 10 < 5 THEN 'web'
            WHEN i % 10 < 7 THEN 'discord' ELSE 'cli' END,
       'user-' || i % 1000, {started}, {ended}, {ended}, 100, 200, 200
FROM numbers
"""

MAILBOXES = """
INSERT INTO mailboxes (namespace, session_id, head, tail)
SELECT namespace, id, 101, 100 FROM sessions
"""

INBOX = """
INSERT INTO inbox (namespace, session_id, position, status, content, fingerprint, attempts, error,
                   enqueued_at, claimed_at, finished_at, dead_at, worker, first_seq, last_seq,
                   model, input_tokens, output_tokens)
SELECT 'default', {id}, p, CASE WHEN {dead} THEN 'dead' ELSE 'done' END,
       {text}, 'f-' || i || '-' || p, CASE WHEN {dead} THEN 5 ELSE 1 END,
       CASE WHEN {dead} THEN 'RuntimeError: the model was overloaded' END,
       {enqueued}, {claimed}, {finished}, CASE WHEN {dead} THEN {finished} END,
       'worker-' || i % 8,
       CASE WHEN NOT {dead} THEN 2 * p - 1 END, CASE WHEN NOT {dead} THEN 2 * p END,
       CASE WHEN NOT {dead} THEN 'model-' || i % 3 END,
       CASE WHEN NOT {dead} THEN 100 + p * 10 END, CASE WHEN NOT {dead} THEN 50 + p END
FROM numbers, places
"""

MESSAGES = """
INSERT INTO messages (namespace, session_id, seq, role, content, created_at, position)
SELECT 'default', {id}, 2 * p - 1 + side, CASE side WHEN 0 THEN 'user' ELSE 'assistant' END,
       {text}, {finished}, p
FROM numbers, places, sides
"""

# Unfinished messages: 400 sessions have three waiting messages each. 20 of the sessions are leased
# (2 of the leases are overdue), and 10 wait for a retry.
WAITING = """
INSERT INTO inbox (namespace, session_id, position, status, content, attempts, enqueued_at)
SELECT 'default', {id}, p, 'pending', {text}, 0, {recently}
FROM numbers, places WHERE i < 400 AND p BETWEEN 101 AND 103
"""

BUSY = """
UPDATE mailboxes SET tail = 103, pending = 3,
    ready_at = CASE WHEN substr(session_id, 6) >= '0000030' THEN {now} END,
    owner = CASE WHEN substr(session_id, 6) < '0000020' THEN 'worker-1' END,
    lease_until = CASE WHEN substr(session_id, 6) < '0000002' THEN {recent}
                       WHEN substr(session_id, 6) < '0000020' THEN {soon} END,
    taken = CASE WHEN substr(session_id, 6) < '0000020' THEN 1 ELSE 0 END,
    wake_at = CASE WHEN substr(session_id, 6) >= '0000020' AND substr(session_id, 6) < '0000030'
                   THEN {soon} END
WHERE session_id < 'chat-0000400'
"""

RUNNING = """
UPDATE inbox SET status = 'running', attempts = 1, claimed_at = {now}, worker = 'worker-1'
WHERE session_id < 'chat-0000020' AND position = 101
"""

OTHER_TENANT = """
INSERT INTO sessions (namespace, id, channel, peer, created_at, updated_at, last_active)
VALUES ('small', 'only', 'cli', 'me', {now}, {now}, {now})
"""

OTHER_MAILBOX = "INSERT INTO mailboxes (namespace, session_id) VALUES ('small', 'only')"

STATEMENTS = (
    SESSIONS, MAILBOXES, INBOX, MESSAGES, WAITING, BUSY, RUNNING, OTHER_TENANT, OTHER_MAILBOX,
)  # fmt: skip

# Seconds before now at which message p of session i was sent, how long it waited, and worked.
_AGO = "(2592000 - p * 25900 - (i * 7919) % 20000)"
_WAIT = "((i * 7919 + p * 104729) % 100000) / 10000.0"
_WORK = "((i * 15485863 + p * 7919) % 300000) / 10000.0"
_DEAD = "((i * 31 + p * 17) % 500 = 0)"

SQLITE = {
    "id": "printf('chat-%07d', i)",
    "parent": "printf('chat-%07d', i - 1)",
    "grandparent": "printf('chat-%07d', i - 2)",
    "text": "printf('message %d of session %d, %s', p, i, hex(zeroblob(80)))",
    "dead": _DEAD,
    "started": "strftime('%Y-%m-%d %H:%M:%f', 'now', '-30 days') || '000'",
    "ended": "strftime('%Y-%m-%d %H:%M:%f', 'now', -(i % 2592000) || ' seconds') || '000'",
    "enqueued": f"strftime('%Y-%m-%d %H:%M:%f', 'now', -{_AGO} || ' seconds') || '000'",
    "claimed": f"strftime('%Y-%m-%d %H:%M:%f', 'now', ({_WAIT} - {_AGO}) || ' seconds') || '000'",
    "finished": (
        f"strftime('%Y-%m-%d %H:%M:%f', 'now', ({_WAIT} + {_WORK} - {_AGO}) || ' seconds') || '000'"
    ),
    "recently": "strftime('%Y-%m-%d %H:%M:%f', 'now', -(i + p) || ' seconds') || '000'",
    "now": "strftime('%Y-%m-%d %H:%M:%f', 'now') || '000'",
    "recent": "strftime('%Y-%m-%d %H:%M:%f', 'now', '-40 seconds') || '000'",
    "soon": "strftime('%Y-%m-%d %H:%M:%f', 'now', '+1 hour') || '000'",
}

POSTGRESQL = {
    "id": "'chat-' || lpad(CAST(i AS text), 7, '0')",
    "parent": "'chat-' || lpad(CAST(i - 1 AS text), 7, '0')",
    "grandparent": "'chat-' || lpad(CAST(i - 2 AS text), 7, '0')",
    "text": "'message ' || p || ' of session ' || i || ', ' || repeat('0', 160)",
    "dead": _DEAD,
    "started": "now() - interval '30 days'",
    "ended": "now() - make_interval(secs => i % 2592000)",
    "enqueued": f"now() - make_interval(secs => {_AGO})",
    "claimed": f"now() + make_interval(secs => {_WAIT} - {_AGO})",
    "finished": f"now() + make_interval(secs => {_WAIT} + {_WORK} - {_AGO})",
    "recently": "now() - make_interval(secs => i + p)",
    "now": "now()",
    "recent": "now() - interval '40 seconds'",
    "soon": "now() + interval '1 hour'",
}

SQLITE_NUMBERS = """
WITH RECURSIVE numbers(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM numbers WHERE i + 1 < {n}),
places(p) AS (SELECT 1 UNION ALL SELECT p + 1 FROM places WHERE p < {places}),
sides(side) AS (VALUES (0), (1))
"""

POSTGRESQL_NUMBERS = """
WITH numbers AS (SELECT CAST(i AS bigint) FROM generate_series(0, {n} - 1) AS i),
places AS (SELECT CAST(p AS bigint) FROM generate_series(1, {places}) AS p),
sides AS (SELECT * FROM generate_series(0, 1) AS side)
"""

QUESTIONS = {
    "sessions": "SELECT * FROM report_sessions WHERE namespace = 'default'",
    "sessions, one": "SELECT * FROM report_sessions"
    " WHERE namespace = 'default' AND session_id = 'chat-0000007'",
    "sessions, a small namespace": "SELECT * FROM report_sessions WHERE namespace = 'small'",
    "turns": "SELECT * FROM report_turns WHERE namespace = 'default'",
    "turns, of one session": "SELECT * FROM report_turns"
    " WHERE namespace = 'default' AND session_id = 'chat-0000007'",
    "turns, the last 50": "SELECT * FROM report_turns"
    " WHERE namespace = 'default' ORDER BY finished_at DESC LIMIT 50",
    "activity": "SELECT * FROM report_activity WHERE namespace = 'default'",
    "activity, a small namespace": "SELECT * FROM report_activity WHERE namespace = 'small'",
    "latency": "SELECT * FROM report_latency WHERE namespace = 'default'",
    "latency, a small namespace": "SELECT * FROM report_latency WHERE namespace = 'small'",
    "inbox": "SELECT * FROM report_inbox WHERE namespace = 'default'",
    "tree": "SELECT * FROM report_tree WHERE namespace = 'default'",
    "tree, a small namespace": "SELECT * FROM report_tree WHERE namespace = 'small'",
}


def statements(
    filling: dict[str, str], numbers: str, sessions: int, *, transcripts: bool
) -> list[str]:
    """The statements that fill a database, for one dialect."""
    made = []
    for statement in STATEMENTS:
        if statement is MESSAGES and not transcripts:
            continue
        places = 103 if statement is WAITING else PER_SESSION
        head = numbers.format(n=sessions, places=places) if "FROM numbers" in statement else ""
        made.append(head + statement.format(**filling))
    return made


def fill_sqlite(connection: sqlite3.Connection, messages: int, *, transcripts: bool = True) -> None:
    """Write that many handled messages into a migrated, empty database."""
    sessions = sessions_for(messages)
    for statement in statements(SQLITE, SQLITE_NUMBERS, sessions, transcripts=transcripts):
        connection.execute(statement)
    connection.commit()


async def fill_postgres(
    connection: asyncpg.Connection, messages: int, *, transcripts: bool = True
) -> None:
    """Write that many handled messages into a migrated, empty database."""
    sessions = sessions_for(messages)
    for statement in statements(POSTGRESQL, POSTGRESQL_NUMBERS, sessions, transcripts=transcripts):
        await connection.execute(statement, timeout=3600)
    await connection.execute("VACUUM ANALYZE", timeout=3600)


def sessions_for(messages: int) -> int:
    return max(400, messages // PER_SESSION)


def measure(running: Bench) -> None:
    """The group: each question on a database of 1,000,000 handled messages."""
    messages = 40_000 if running.quick else 1_000_000
    rounds = 2 if running.quick else 3
    for database in running.databases:
        with running.new_database(database) as made:
            for asked in asyncio.run(ask(made, messages, rounds=rounds)):
                running.record(
                    asked.question,
                    database=database,
                    side=OURS,
                    unit="ms",
                    values=[seconds * 1000 for seconds in asked.seconds],
                    at={"messages": messages},
                    better="less",
                )


class Asked(NamedTuple):
    question: str
    rows: int
    seconds: list[float]
    plan: list[str]


async def ask(
    database: Database, messages: int, *, rounds: int = 2, explain: bool = False
) -> list[Asked]:
    """Fill a migrated, empty database, and run each query ``times`` times."""
    if database.kind == "sqlite":
        return await asyncio.to_thread(_ask_sqlite, database, messages, rounds, explain)
    connection = await database.connect_to_postgres()
    await fill_postgres(connection, messages)
    asked = []
    for question, sql in QUESTIONS.items():
        seconds = []
        for _ in range(rounds):
            began = time.perf_counter()
            rows = await connection.fetch(sql, timeout=3600)
            seconds.append(time.perf_counter() - began)
        plan = await connection.fetch(f"EXPLAIN (ANALYZE, TIMING OFF) {sql}") if explain else []
        asked.append(Asked(question, len(rows), seconds, [line for [line] in plan]))
    await connection.close()
    return asked


def _ask_sqlite(database: Database, messages: int, rounds: int, explain: bool) -> list[Asked]:
    connection = sqlite3.connect(database.path)
    connection.execute("PRAGMA synchronous = OFF")
    fill_sqlite(connection, messages)
    asked = []
    for question, sql in QUESTIONS.items():
        seconds = []
        for _ in range(rounds):
            began = time.perf_counter()
            rows = connection.execute(sql).fetchall()
            seconds.append(time.perf_counter() - began)
        plan = connection.execute(f"EXPLAIN QUERY PLAN {sql}") if explain else ()
        asked.append(Asked(question, len(rows), seconds, [row[3] for row in plan]))
    connection.close()
    return asked


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--messages", type=int, default=1_000_000)
    arguments.add_argument("--database", choices=(bench.SQLITE, bench.POSTGRESQL))
    arguments.add_argument("--explain", action="store_true", help="print the plans")
    given = arguments.parse_args()
    with bench.started(
        quick=False,
        only=None,
        databases=[given.database] if given.database else (bench.SQLITE, bench.POSTGRESQL),
        console=Console(),
    ) as running:
        for database in running.databases:
            print(f"\n{database}: {given.messages:,} messages")
            with running.new_database(database) as made:
                for asked in asyncio.run(ask(made, given.messages, explain=given.explain)):
                    best = min(asked.seconds)
                    print(f"  {asked.question:32}{asked.rows:>10,} rows {best:10.3f} s", flush=True)
                    for line in asked.plan:
                        print(f"      {line}")


if __name__ == "__main__":
    main()

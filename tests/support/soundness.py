"""Check in plain SQL whether the tables of a database agree. Nothing is shared with the package."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

# Each statement finds rows that contradict others. There must be none.
CONTRADICTIONS = {
    "message_count is not the number of messages": """
        SELECT s.id FROM sessions s
        WHERE message_count <> (SELECT count(*) FROM messages m
                                WHERE m.namespace = s.namespace AND m.session_id = s.id)
    """,
    "a message is beyond last_seq": """
        SELECT s.id FROM sessions s JOIN messages m
          ON m.namespace = s.namespace AND m.session_id = s.id WHERE m.seq > s.last_seq
    """,
    "pending is not the number of unfinished messages": """
        SELECT b.session_id FROM mailboxes b
        WHERE pending <> (SELECT count(*) FROM inbox i
                          WHERE i.namespace = b.namespace AND i.session_id = b.session_id
                            AND i.finished_at IS NULL)
    """,
    "positions have holes, or are beyond the tail": """
        SELECT session_id FROM mailboxes b
        WHERE tail <> (SELECT count(*) FROM inbox i
                       WHERE i.namespace = b.namespace AND i.session_id = b.session_id)
    """,
    "a done message is not in the transcript once": """
        SELECT i.session_id FROM inbox i
        WHERE (i.status = 'done') <> (SELECT count(*) FROM messages m
                       WHERE m.namespace = i.namespace AND m.session_id = i.session_id
                         AND m.position = i.position AND m.role = 'user')
    """,
}


def faults(path: Path) -> list[str]:
    """The errors in a SQLite file: pages, foreign keys, contradictions."""
    wrong = integrity(path)
    with closing(sqlite3.connect(path, timeout=30)) as connection:
        wrong += [f"no parent: {row}" for row in connection.execute("PRAGMA foreign_key_check")]
        for name, sql in CONTRADICTIONS.items():
            rows = connection.execute(sql).fetchall()
            if rows:
                wrong.append(f"{name}: {rows[:5]}")
    return wrong


def integrity(path: Path) -> list[str]:
    """The errors in its pages and indices."""
    with closing(sqlite3.connect(path, timeout=30)) as connection:
        return [row[0] for row in connection.execute("PRAGMA integrity_check") if row[0] != "ok"]


def transcripts(path: Path) -> dict[str, list[str]]:
    """The contents of every session, in order."""
    with closing(sqlite3.connect(path, timeout=30)) as connection:
        found: dict[str, list[str]] = {
            row[0]: [] for row in connection.execute("SELECT id FROM sessions")
        }
        for id, content in connection.execute(
            "SELECT session_id, content FROM messages ORDER BY namespace, session_id, seq"
        ):
            found[id].append(content)
    return found


def inbox(path: Path) -> dict[tuple[str, int], tuple[str, str]]:
    """The content and the status of each message, by session and position."""
    sql = "SELECT session_id, position, content, status FROM inbox"
    with closing(sqlite3.connect(path, timeout=30)) as connection:
        return {(row[0], row[1]): (row[2], row[3]) for row in connection.execute(sql)}

"""Fill databases of the package with sessions and transcripts, by plain SQL."""

from __future__ import annotations

from typing import NamedTuple

from benchmarks.messages import transcript
from devtools.databases import Database

CHAT_MESSAGES = 400
BOOK_MESSAGES = 1_000


class Size(NamedTuple):
    """The number of sessions, and how many of them have 400 and 1,000 messages."""

    sessions: int = 10_000
    chats: int = 64
    books: int = 64

    @property
    def kept(self) -> int:
        """The number of sessions with a transcript."""
        return self.chats + self.books

    def ids(self) -> list[str]:
        """First the chats, then the books, then the empty ones."""
        return [f"session-{number:06}" for number in range(self.sessions)]


_SQLITE_ID = "printf('session-%06d', n - 1)"
_POSTGRES_ID = "'session-' || lpad(CAST(n - 1 AS text), 6, '0')"


async def fill(database: Database, size: Size, *, sent: bool = False) -> None:
    """Write all sessions of ``size``, each active a second after the one before. With ``sent`` the
    messages of users also have rows in the inbox."""
    if database.kind == "sqlite":
        time, id = "strftime('%Y-%m-%d %H:%M:%S.000000', 1704067200 + n, 'unixepoch')", _SQLITE_ID
    else:
        time, id = "to_timestamp(1704067200 + n)", _POSTGRES_ID
    kept = _kept(size)
    numbers = _numbers(size.sessions)
    await database.query(
        "INSERT INTO sessions (namespace, id, channel, peer, created_at, updated_at, last_active,"
        f" version, last_seq, message_count) {numbers}"
        f" SELECT 'default', {id}, 'bench', 'peer-' || n % 100, {time}, {time}, {time},"
        f" 1, {kept}, {kept} FROM numbers"
    )
    answered = f"({kept}) / 2" if sent else "0"
    await database.query(
        f"INSERT INTO mailboxes (namespace, session_id, head, tail) {numbers}"
        f" SELECT 'default', {id}, {answered} + 1, {answered} FROM numbers"
    )
    if sent:
        await database.query(
            "INSERT INTO inbox (namespace, session_id, position, status, content, fingerprint,"
            " attempts, enqueued_at, claimed_at, finished_at, worker, first_seq, last_seq)"
            f" {numbers}, texts(seq, role, content) AS (VALUES {_texts()})"
            f" SELECT 'default', {id}, (seq + 1) / 2, 'done', content, 'f-' || n || '-' || seq,"
            f" 1, {time}, {time}, {time}, 'worker', seq, seq + 1 FROM numbers, texts"
            f" WHERE n <= {size.kept} AND seq <= {kept} AND role = 'user'"
        )
    place = "(seq + 1) / 2" if sent else "CAST(NULL AS integer)"
    await database.query(
        "INSERT INTO messages (namespace, session_id, seq, role, content, created_at, position)"
        f" {numbers}, texts(seq, role, content) AS (VALUES {_texts()})"
        f" SELECT 'default', {id}, seq, role, content, {time}, {place} FROM numbers, texts"
        f" WHERE n <= {size.kept} AND seq <= {kept}"
    )
    await database.query("ANALYZE")


def every_id(kind: str, size: Size) -> str:
    """A WITH for a peer's own tables: ``ids(n, id)``, all sessions."""
    id = _SQLITE_ID if kind == "sqlite" else _POSTGRES_ID
    return f"{_numbers(size.sessions)}, ids AS (SELECT n, {id} AS id FROM numbers)"


def chats_and_books(kind: str, size: Size) -> str:
    """A WITH for a peer's own tables: ``messages(session, seq, role, content)``."""
    return (
        f"{every_id(kind, size)}, texts(seq, role, content) AS (VALUES {_texts()}),"
        " messages AS (SELECT ids.id AS session, seq, role, content FROM ids, texts"
        f" WHERE n <= {size.kept} AND seq <= {_kept(size)})"
    )


def _texts() -> str:
    return ", ".join(
        f"({seq}, '{message['role']}', '{message['content']}')"
        for seq, message in enumerate(transcript(BOOK_MESSAGES), 1)
    )


def _kept(size: Size) -> str:
    return (
        f"CASE WHEN n <= {size.chats} THEN {CHAT_MESSAGES}"
        f" WHEN n <= {size.kept} THEN {BOOK_MESSAGES} ELSE 0 END"
    )


def _numbers(count: int) -> str:
    return (
        "WITH RECURSIVE numbers(n) AS"
        f" (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {count})"
    )

"""Records over a log of messages, whose conversations share messages."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from functools import partial

import pytest

from devtools.databases import Database
from sessionsdb import SessionsDB
from sessionsdb.database import open_database_of
from sessionsdb.messages.codec import StoredMessage
from sessionsdb.operations import log_records, message_log
from sessionsdb.operations.log_records import RecordWrite
from sessionsdb.operations.message_log import NewEntry
from sessionsdb.operations.registry import Registration


class Log:
    """The conversations of one store."""

    def __init__(self, db: SessionsDB) -> None:
        self._database = open_database_of(db)

    async def write(self, id: str, **parents: str | None) -> None:
        """Store a conversation with these messages. Each names its parent. The last is the head."""
        entries = [
            NewEntry(key, parent, StoredMessage("user", key, None))
            for key, parent in parents.items()
        ]
        request = RecordWrite(
            "default",
            id,
            Registration("default", id, "log", "p"),
            lambda _: None,
            {"revision": "1", "head_id": entries[-1].id, "branches": []},
            None,
            entries,
            datetime.now(UTC),
        )
        write = partial(log_records.write_record, request=request)
        assert await self._database.write(write, wakes=())

    async def delete(self, id: str) -> bool:
        delete = partial(
            log_records.delete_record, namespace="default", session_id=id, expected_revision="1"
        )
        return await self._database.write(delete, wakes=())

    async def line(self, head: str, limit: int | None = None) -> list[str]:
        read = partial(message_log.read_line, namespace="default", head=head, limit=limit)
        return [entry.id for entry in await self._database.read_snapshot(read)]


@pytest.fixture
async def log(db: SessionsDB) -> Log:
    return Log(db)


async def test_a_fork_by_the_broker_keeps_the_beginning_of_its_line(
    db: SessionsDB, log: Log
) -> None:
    """The messages of the first conversation went with it and its own fork."""
    await log.write("source", a=None, b="a")
    await log.write("fork", c="b")
    copy = await db.broker.fork("fork")
    assert await log.delete("source")
    assert await log.delete("fork")
    assert await log.line("c") == ["a", "b", "c"]
    assert await log.delete(copy.id)
    assert await db.broker.list() == []


async def test_a_fork_by_the_broker_is_deleted_with_all_its_messages(
    db: SessionsDB, database: Database, log: Log
) -> None:
    """It had the references of its source, so its messages stayed for ever."""
    await log.write("source", a=None, b="a")
    await log.write("fork", c="b")
    copy = await db.broker.fork("source")
    for id in (copy.id, "fork", "source"):
        assert await log.delete(id)
    assert await db.broker.list() == []
    assert await database.query("SELECT key FROM messages") == []


@pytest.mark.parametrize("limit", [None, 1_000])
async def test_a_circle_of_parents_ends_where_it_comes_again(log: Log, limit: int | None) -> None:
    await log.write("s", a="b", b="a")
    assert await log.line("b", limit) == ["a", "b"]


async def test_the_last_of_a_long_chain_of_forks_is_deleted_with_the_chain(
    db: SessionsDB, database: Database, log: Log
) -> None:
    """It raised RecursionError."""
    last = 400
    await log.write("s0", m0=None)
    for number in range(1, last + 1):
        await log.write(f"s{number}", **{f"m{number}": f"m{number - 1}"})
    # As after deletes of all but the last conversation.
    await database.query(
        f"DELETE FROM state_values WHERE key = 'log.record' AND owner <> 's{last}'"
    )
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(900)
    try:
        assert await log.delete(f"s{last}")
    finally:
        sys.setrecursionlimit(limit)
    assert await db.broker.list() == []

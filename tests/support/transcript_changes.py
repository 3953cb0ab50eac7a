"""Changes of a transcript by another process, for tests of processes that remember it."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import Any

from devtools.databases import Database
from sessionsdb import Edit, SessionsDB
from sessionsdb.admin.purge import purge
from sessionsdb.operations.retention import RetentionRules
from tests.support.turns import answer_next

HELLO = {"role": "user", "content": "hello"}
OTHER = {"role": "assistant", "content": "something else"}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "args": {"n": 1.0}}]}


def numbered(count: int, first: int = 0) -> list[dict[str, Any]]:
    return [{"role": "user", "content": f"message {n}"} for n in range(first, first + count)]


Change = Callable[[SessionsDB, Database], Coroutine[Any, Any, object]]


async def nothing(db: SessionsDB, _: Database) -> None: ...


async def append(db: SessionsDB, _: Database) -> None:
    await db.store.append("s", [CALL, HELLO])


async def append_many(db: SessionsDB, _: Database) -> None:
    await db.store.append("s", numbered(300))


async def save_longer(db: SessionsDB, _: Database) -> None:
    await db.store.save("s", [*(await db.store.load("s") or ()), CALL])


async def save_another_end(db: SessionsDB, _: Database) -> None:
    await db.store.save("s", [*(await db.store.load("s") or ())[:-1], OTHER])


async def save_shorter(db: SessionsDB, _: Database) -> None:
    await db.store.save("s", (await db.store.load("s") or ())[:-2])


async def save_nothing(db: SessionsDB, _: Database) -> None:
    await db.store.save("s", [])


async def pop(db: SessionsDB, _: Database) -> None:
    await db.store.pop("s")


async def pop_and_append(db: SessionsDB, _: Database) -> None:
    await db.store.pop("s")
    await db.store.append("s", [OTHER])


async def replace_first(db: SessionsDB, _: Database) -> None:
    [first] = await db.store.entries("s", limit=1, after=0)
    await db.store.replace("s", first.seq, CALL)


async def replace_and_append(db: SessionsDB, database: Database) -> None:
    await replace_first(db, database)
    await db.store.append("s", [HELLO])


async def edit(db: SessionsDB, _: Database) -> None:
    entries = await db.store.entries("s")
    await db.store.edit("s", Edit(keep_through=entries[0].seq, append=[CALL, CALL, HELLO]))


async def delete(db: SessionsDB, _: Database) -> None:
    await db.store.delete("s")


async def delete_and_make_again(db: SessionsDB, _: Database) -> None:
    await db.store.delete("s")
    await db.store.save("s", [CALL] * 5)


async def turn(db: SessionsDB, _: Database) -> None:
    await db.broker.send("s", "hi")
    await answer_next(db, "yes")


async def repair_by_hand(_: SessionsDB, database: Database) -> None:
    await database.query("UPDATE messages SET content = 'repaired', payload = NULL WHERE seq = 1")
    await database.query("UPDATE sessions SET version = version + 1, rewrites = rewrites + 1")


async def repair_by_hand_and_add_to_the_version_only(_: SessionsDB, database: Database) -> None:
    await database.query("UPDATE messages SET content = 'repaired', payload = NULL WHERE seq = 1")
    await database.query("UPDATE sessions SET version = version + 1")


async def lose_the_last_commits(db: SessionsDB, database: Database) -> None:
    """As a standby that had not got them and is the primary now."""
    present = await database.query("SELECT version, last_seq, message_count FROM sessions")
    [(version, last_seq, count)] = present
    await database.query(f"DELETE FROM messages WHERE seq > {last_seq - 2}")
    await database.query(
        f"UPDATE sessions SET version = {version - 1}, last_seq = {last_seq - 2},"
        f" message_count = {count - 2}"
    )
    await db.store.append("s", [CALL, CALL])


async def lose_commits_and_write_more(db: SessionsDB, database: Database) -> None:
    await lose_the_last_commits(db, database)
    await db.store.append("s", [HELLO, CALL])


async def purge_oldest(db: SessionsDB, database: Database) -> None:
    """Purge the oldest messages. This removes messages and is no rewrite."""
    await database.query(
        "UPDATE messages SET created_at = '2001-01-01 00:00:00.000000'"
        " WHERE seq <= (SELECT min(seq) + 1 FROM messages)"
    )
    await purge(
        db, RetentionRules(namespace="default", messages_before=datetime(2002, 1, 1, tzinfo=UTC))
    )


async def purge_oldest_and_append(db: SessionsDB, database: Database) -> None:
    await purge_oldest(db, database)
    await db.store.append("s", [HELLO])


CHANGES: list[Change] = [
    nothing,
    append,
    append_many,
    save_longer,
    save_another_end,
    save_shorter,
    save_nothing,
    pop,
    pop_and_append,
    replace_first,
    replace_and_append,
    edit,
    delete,
    delete_and_make_again,
    turn,
    repair_by_hand,
    repair_by_hand_and_add_to_the_version_only,
    lose_the_last_commits,
    lose_commits_and_write_more,
    purge_oldest,
    purge_oldest_and_append,
]


async def begin(db: SessionsDB) -> None:
    """Write the first transcript, in more than one write."""
    await db.store.save("s", [*numbered(4), CALL])
    await db.store.append("s", [*numbered(2), CALL])
    await db.store.append("s", [HELLO, CALL])

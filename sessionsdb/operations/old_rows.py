"""Delete old rows of sessions: messages of transcripts, and finished messages of inboxes.

``retention.py`` decides which sessions and which age. The counters of the sessions and the search
index are corrected in the same transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import Connection

from sessionsdb.engine.clock import as_stored
from sessionsdb.engine.statement import Statement
from sessionsdb.operations import search_index
from sessionsdb.operations.dialect import dialect_of
from sessionsdb.operations.inbox_types import UNFINISHED_SQL
from sessionsdb.operations.search_index import Purged

InFew = Callable[[str], str]
"""``Dialect.in_few``."""


@cache
def _messages_to_delete(in_ids: str | None, in_few: InFew, *, of_age: bool) -> Statement:
    old = "AND created_at < :before" if of_age else ""
    return _deletion("messages", "seq", in_ids, in_few, old)


@cache
def _receipts_to_delete(
    in_ids: str | None, in_few: InFew, *, of_age: bool, dead: bool
) -> Statement:
    old = f"AND status NOT IN {UNFINISHED_SQL}"
    if of_age:
        old += " AND finished_at < :before"
        if not dead:
            old += " AND status <> 'dead'"
    return _deletion("inbox", "position", in_ids, in_few, old)


def _deletion(table: str, number: str, in_ids: str | None, in_few: InFew, old: str) -> Statement:
    """Return the statement that deletes the old rows of the sessions ``in_ids``.

    With ``None`` it deletes the first ``limit`` old rows of the session ``id``.
    """
    chosen = f"session_id {in_ids} {old}"
    if in_ids is None:
        first = f"""
    SELECT {number} FROM {table} WHERE namespace = :namespace AND session_id = :id {old}
    ORDER BY {number} LIMIT :limit
"""
        chosen = f"session_id = :id AND {number} {in_few(first)} {old}"
    return Statement(f"""
DELETE FROM {table} WHERE namespace = :namespace AND {chosen} RETURNING session_id, {number}
""")


@cache
def _subtract_messages(in_ids: str) -> Statement:
    # The times stay: a purge is no activity.
    return Statement(f"""
UPDATE sessions
SET message_count = message_count - CAST(:number AS bigint), version = version + 1
WHERE namespace = :namespace AND id {in_ids}
""")


def delete_messages(
    connection: Connection,
    namespace: str,
    ids: Sequence[str],
    before: datetime | None,
    limit: int,
) -> int:
    """Delete messages of locked sessions, and return their number.

    ``before``: only messages that were written before this time. Of one session at most ``limit``
    are deleted. Several sessions must have at most ``limit`` together.
    """
    if limit <= 0:
        return 0
    dialect = dialect_of(connection)
    in_ids, values = _chosen(connection, ids, limit, before)
    statement = _messages_to_delete(in_ids, dialect.in_few, of_age=before is not None)
    gone = statement.rows(connection, {"namespace": namespace, **values})
    purged: dict[str, Purged] = {}
    for session_id, seq in gone:
        number, last_seq = purged.get(session_id, (0, 0))
        purged[session_id] = Purged(number + 1, max(seq, last_seq))
    for number, some in _by_number(purged).items():
        _subtract_messages(dialect.in_ids).rows(
            connection, {"namespace": namespace, "number": number, **dialect.ids_values(some)}
        )
    search_index.forget_purged(connection, namespace, purged)
    return len(gone)


def delete_receipts(
    connection: Connection,
    namespace: str,
    ids: Sequence[str],
    before: datetime | None,
    limit: int,
    *,
    dead: bool = False,
) -> int:
    """Delete finished messages of inboxes, and return their number.

    ``before``: only messages that were finished before this time, and dead ones only with ``dead``.
    The ``limit`` is that of ``delete_messages``.
    """
    if limit <= 0:
        return 0
    in_ids, values = _chosen(connection, ids, limit, before)
    statement = _receipts_to_delete(
        in_ids, dialect_of(connection).in_few, of_age=before is not None, dead=dead
    )
    return len(statement.rows(connection, {"namespace": namespace, **values}))


def _chosen(
    connection: Connection, ids: Sequence[str], limit: int, before: datetime | None
) -> tuple[str | None, dict[str, Any]]:
    """Return ``in_ids`` and the values for ``_deletion``."""
    values: dict[str, Any] = {}
    if before is not None:
        values["before"] = as_stored(connection, before)
    if len(ids) == 1:
        return None, values | {"id": ids[0], "limit": limit}
    dialect = dialect_of(connection)
    return dialect.in_ids, values | dialect.ids_values(ids)


def _by_number(purged: Mapping[str, Purged]) -> dict[int, list[str]]:
    """Return the sessions by their number of purged messages. So equal changes take one statement.

    A thousand messages have at most 44 different numbers.
    """
    found: dict[int, list[str]] = {}
    for session_id, one in purged.items():
        found.setdefault(one.number, []).append(session_id)
    return found
